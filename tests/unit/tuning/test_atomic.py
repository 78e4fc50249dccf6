"""Atomic folders: they get their name only when they are complete."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuning.atomic import atomic_folder, hidden_name
from tuning.errors import DeviceError


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("text")
        (folder / "inside" / "file").chmod(0o600)
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "inside" / "file").read_text() == "text"
    assert modes(tmp_path / "made") == {0o777 & ~umask, 0o666 & ~umask}


@pytest.mark.parametrize("shared", [False, True])
def test_after_an_error_only_the_old_folder_remains(tmp_path: Path, shared: bool) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "made", replace=True, shared=shared) as folder:
        (folder / "new").write_text("new")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "old"]
    with atomic_folder(tmp_path / "made", replace=True, shared=shared) as folder:
        assert (folder == hidden_name(tmp_path / "made")) == shared
        (folder / "new").write_text("new")
        assert (tmp_path / "made" / "old").exists(), "the old folder remains until the new one is complete"
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "new"]


def test_a_folder_with_files_is_not_replaced_by_default(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "first").write_text("1")
    with pytest.raises(DeviceError, match="made: cannot be written"), atomic_folder(tmp_path / "made"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "first"]


def test_a_folder_inside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="cannot be written"), atomic_folder(tmp_path / "file" / "made"):
        pass
