"""Parallel rendering of scenes to JPEG files: same seed, same bytes, for any number of processes."""

import functools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from data_gen.checks import check_positive
from data_gen.scenes.nouns import Noun, emoji_files, read_nouns
from data_gen.scenes.scene import Scene, draw_scene
from tuning.errors import DataError, DeviceError

CHUNK_SIZE = 50  # scenes per task of a worker process
JPEG_QUALITY = 90
PICTURES_PER_FOLDER = 1000
MIN_NOUNS = 8  # a scene shows up to three; the others are for questions about absent objects

Rendered = TypeVar("Rendered")


@dataclass(frozen=True, slots=True)
class SceneRenderer:
    """The inputs of scene rendering and the output folder.

    Args:
        files: the emoji file of each hexcode of `nouns`.
        folder: of the pictures; the paths that `save` returns start with its name.
        split: write pictures into numbered subfolders of `PICTURES_PER_FOLDER` each.
    """

    nouns: tuple[Noun, ...]
    files: dict[str, Path]
    folder: Path
    seed: int
    split: bool

    def save(self, rng: random.Random, scene: Scene, number: int) -> str:
        """Draw a scene and write it as JPEG; returns its path relative to the parent of `folder`.

        Raises:
            DeviceError: the file cannot be written.
        """
        path = self.subfolder(number) / f"{number:06d}.jpg"
        try:
            draw_scene(rng, scene, self.files).save(path, quality=JPEG_QUALITY)
        except OSError as error:
            raise DeviceError(
                f"{path}: cannot be written ({error.strerror}); free space or choose another folder."
            ) from error
        return path.relative_to(self.folder.parent).as_posix()

    def subfolder(self, number: int) -> Path:
        """The folder of picture `number`."""
        return self.folder / f"{number // PICTURES_PER_FOLDER:03d}" if self.split else self.folder


def make_renderer(emoji: Path, nouns_file: Path, group: str, folder: Path, *, count: int, seed: int) -> SceneRenderer:
    """Check all inputs before the first scene is drawn, and make the folders for `count` pictures.

    Raises:
        ConfigError: an option or folder is wrong.
        DataError: the vocabulary cannot be read.
        DeviceError: the folders cannot be made.
    """
    check_positive("--count", count)
    nouns = read_nouns(nouns_file)[group]
    if len(nouns) < MIN_NOUNS:
        raise DataError(f"{nouns_file}: {group}: has {len(nouns)} nouns and needs at least {MIN_NOUNS}; add some.")
    renderer = SceneRenderer(nouns, emoji_files(emoji, nouns), folder, seed, split=count > PICTURES_PER_FOLDER)
    try:
        for first in range(0, count, PICTURES_PER_FOLDER):
            renderer.subfolder(first).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"{folder}: cannot be made ({error.strerror}); choose another folder.") from error
    return renderer


def render_all(
    render: Callable[[SceneRenderer, int], Rendered], renderer: SceneRenderer, count: int, processes: int | None
) -> Iterator[Rendered]:
    """The results of `render` for scenes 0 to `count` - 1, in order, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(processes or usable, -(-count // CHUNK_SIZE))
    render_one = functools.partial(render, renderer)
    console = Console(stderr=True)

    def tracked(results: Iterable[Rendered]) -> Iterable[Rendered]:
        return track(results, "scenes", count, console=console, transient=True, disable=not console.is_terminal)

    if workers == 1:
        yield from tracked(map(render_one, range(count)))
        return
    # Spawned processes: a fork would copy the locks of the running threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from tracked(pool.map(render_one, range(count), chunksize=CHUNK_SIZE))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
