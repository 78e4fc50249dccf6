"""Many scenes drawn in parallel: the same bytes from the same seed, whatever the number of processes."""

import functools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from data_gen.scenes.nouns import Noun, emoji_files, read_nouns
from data_gen.scenes.scene import Scene, draw_scene
from tuning.errors import ConfigError, DataError, DeviceError

CHUNK = 50  # scenes a process draws at a time
QUALITY = 90
FOLDER = 1000  # pictures in one
FEWEST_NOUNS = 8  # of three that are there, others must be left to ask after


@dataclass(frozen=True, slots=True)
class Studio:
    """What scenes are drawn from, and where they go.

    Args:
        files: the picture of each hexcode of `nouns`.
        folder: for pictures; their paths start with its name.
        split: whether there are so many that they go into folders of `FOLDER`.
    """

    nouns: tuple[Noun, ...]
    files: dict[str, Path]
    folder: Path
    seed: int
    split: bool

    def save(self, rng: random.Random, scene: Scene, number: int) -> str:
        """Draw a scene and write it as JPEG; gives its path from the folder above.

        Raises:
            DeviceError: the disk cannot take it.
        """
        path = self._shelf(number) / f"{number:06d}.jpg"
        try:
            draw_scene(rng, scene, self.files).save(path, quality=QUALITY)
        except OSError as error:
            raise DeviceError(
                f"{path}: cannot be written ({error.strerror}); free space or choose another place."
            ) from error
        return path.relative_to(self.folder.parent).as_posix()

    def make_folders(self, count: int) -> None:
        """For `count` pictures."""
        for first in range(0, count, FOLDER):
            self._shelf(first).mkdir(parents=True, exist_ok=True)

    def _shelf(self, number: int) -> Path:
        return self.folder / f"{number // FOLDER:03d}" if self.split else self.folder


Maker = Callable[[Studio, int], list[str]]


def open_studio(emoji: Path, nouns_file: Path, group: str, folder: Path, *, count: int, seed: int) -> Studio:
    """Look at all that can be wrong before anything is drawn, and make the folders for `count` pictures.

    Raises:
        ConfigError: an option or folder is wrong.
        DataError: the vocabulary cannot be read.
        DeviceError: the folders cannot be made.
    """
    if count < 1:
        raise ConfigError(f"--count {count}: give at least 1.")
    nouns = read_nouns(nouns_file)[group]
    if len(nouns) < FEWEST_NOUNS:
        raise DataError(f"{nouns_file}: {group}: has {len(nouns)} nouns; add some, for {FEWEST_NOUNS} are needed.")
    studio = Studio(nouns, emoji_files(emoji, nouns), folder, seed, split=count > FOLDER)
    try:
        studio.make_folders(count)
    except OSError as error:
        raise DeviceError(f"{folder}: cannot be made ({error.strerror}); choose another place.") from error
    return studio


def draw_all(make: Maker, studio: Studio, count: int, processes: int | None) -> Iterator[list[str]]:
    """What `make` gives for scenes 0 to `count` - 1, in that order; a bar on stderr shows how far it is."""
    from rich.console import Console
    from rich.progress import track

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    console = Console(stderr=True)

    def followed(done: Iterable[list[list[str]]]) -> Iterator[list[str]]:
        for chunk in track(
            done, "scenes", total=len(chunks), console=console, transient=True, disable=not console.is_terminal
        ):
            yield from chunk

    workers = min(processes or usable, len(chunks))
    if workers == 1:
        yield from followed([make(studio, number) for number in chunk] for chunk in chunks)
        return
    # Fresh processes, for a fork would copy the locks of whatever threads run here.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from followed(pool.map(functools.partial(_draw_chunk, make, studio), chunks))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _draw_chunk(make: Maker, studio: Studio, numbers: range) -> list[list[str]]:
    return [make(studio, number) for number in numbers]
