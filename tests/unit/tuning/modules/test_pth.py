"""Writing and reading of `.pth` checkpoints."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tuning.errors import DeviceError
from tuning.modules.pth import read_pth, write_pth


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Limits the size of every file to 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_written_weights_are_read_back(tmp_path: Path) -> None:
    weights = {"weight": torch.arange(6.0).reshape(2, 3)}
    write_pth(weights, tmp_path / "x.pt")
    assert torch.equal(read_pth(tmp_path / "x.pt")["weight"], weights["weight"])


def test_full_disk_is_reported_and_the_existing_file_is_unchanged(tmp_path: Path, full_disk: None) -> None:
    (tmp_path / "x.pt").write_bytes(b"before")
    with pytest.raises(DeviceError, match=r"x\.pt: cannot be written \(.*free space"):
        write_pth({"weight": torch.zeros(2**15)}, tmp_path / "x.pt")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x.pt", b"before")]
