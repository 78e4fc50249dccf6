"""Scenes on disk: rows to train on with their pictures, or probes that measure what a model sees; drawn in parallel."""

import functools
import json
import os
import random
import shlex
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from data_gen.container import RowCount
from data_gen.emoji import COLOURS
from data_gen.nouns import GROUPS, Noun, emoji_files, read_nouns
from data_gen.scene_talk import Exchange, ask_at, ask_colour, ask_what, ask_where, converse
from data_gen.scenes import PLACES, Scene, Thing, draw_scene, plan_arranged, plan_scene
from tuning.card import DatasetCard, card_path, file_sha256, write_card
from tuning.conversation import to_jsonl
from tuning.errors import ConfigError, DeviceError
from tuning.files import shown, write_atomically

CHUNK = 50  # scenes a process draws at a time
QUALITY = 90
PROBE_FILES = ("objects.yaml", "colours.yaml", "places.yaml")
MIDDLE_WORDS = ("middle", "center", "centre")

Maker = Callable[[int], list[str]]


def write_scenes(
    out: Path, emoji: Path, nouns_file: Path, *, count: int, seed: int = 0, processes: int | None = None
) -> DatasetCard:
    """Write `count` rows (messages JSONL) and, in a folder named like it, their pictures; then the card.

    An older dataset of that name is taken away first, so that an interrupted run leaves none that only seems whole.

    Args:
        emoji: the folder of the emoji pictures; `nouns_file`, the vocabulary.
        processes: how many draw at once, all cores when left out; the bytes written are the same.

    Raises:
        ConfigError: an option or folder is wrong.
        DataError: the vocabulary or a picture cannot be read.
        DeviceError: the disk cannot take the files.
    """
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out}: rows are written one a line; end the name in .jsonl.")
    maker = _prepared(_make_row, count, seed, emoji, nouns_file, "known", out.with_suffix(""))
    out.unlink(missing_ok=True)
    card_path(out).unlink(missing_ok=True)
    rows = RowCount()

    def counted() -> Iterator[str]:
        for (row,) in _made(maker, count, processes):
            rows.add(row.encode())
            yield row

    write_atomically(out, counted())
    card = DatasetCard(
        made_by=f"twinlens data scenes {shlex.quote(str(out))} --emoji {shlex.quote(str(emoji))} "
        f"--nouns {shlex.quote(shown(nouns_file))} --count {count} --seed {seed}",
        rows=rows.rows,
        distinct=rows.distinct,
        sha256=file_sha256(out),
        seed=seed,
        languages=("en",),
        sources=((nouns_file.name, file_sha256(nouns_file)),),
    )
    write_card(out, card)
    return card


def write_scene_probes(
    out: Path,
    emoji: Path,
    nouns_file: Path,
    *,
    count: int,
    seed: int = 0,
    objects: str = "known",
    processes: int | None = None,
) -> dict[str, int]:
    """Write probes on `count` new scenes of one or two objects into the folder `out`; gives the probes in each file.

    objects.yaml asks what there is, colours.yaml what colour it has, places.yaml where it is, about the same pictures.
    No scene is one of `write_scenes`, whatever the seeds. `objects` is known or unseen.

    Raises:
        As `write_scenes`.
    """
    if objects not in GROUPS:
        raise ConfigError(f"--objects {objects}: is neither of {' and '.join(GROUPS)}; give one of them.")
    maker = _prepared(_make_probes, count, seed, emoji, nouns_file, objects, out / "pictures")
    for name in PROBE_FILES:
        (out / name).unlink(missing_ok=True)
    made = list(_made(maker, count, processes))
    asked: dict[str, int] = {}
    for name, probes in zip(PROBE_FILES, zip(*made, strict=True), strict=True):
        asked[name] = sum(map(bool, probes))
        header = f"# {name.removesuffix('.yaml')} of {count} scenes, {objects} objects, seed {seed}\n"
        write_atomically(out / name, (header, *probes))
    return asked


def _prepared(
    make: Callable[..., list[str]], count: int, seed: int, emoji: Path, nouns_file: Path, group: str, pictures: Path
) -> Maker:
    """`make` with all it needs but the scene's number, once everything that can be wrong has been looked at."""
    if count < 1:
        raise ConfigError(f"--count {count}: give at least 1.")
    nouns = read_nouns(nouns_file)[group]
    if len(nouns) < 4:
        raise ConfigError(f"{nouns_file}: has {len(nouns)} {group} nouns, and scenes need 4 to choose from; add some.")
    files = emoji_files(emoji, nouns)
    try:
        for first in range(0, count, 1000):
            (pictures / f"{first // 1000:03d}").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"{pictures}: cannot be made ({error.strerror}); choose another place.") from error
    return functools.partial(make, nouns=nouns, files=files, pictures=pictures, seed=seed)


def _made(make: Maker, count: int, processes: int | None) -> Iterator[list[str]]:
    """What `make` gives for 0 to count - 1, in that order."""
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
        yield from followed([make(number) for number in chunk] for chunk in chunks)
        return
    # Fresh processes, for a fork would copy the locks of whatever threads run here.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from followed(pool.map(functools.partial(_make_chunk, make), chunks))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _make_chunk(make: Maker, numbers: range) -> list[list[str]]:
    return [make(number) for number in numbers]


def _make_row(number: int, *, nouns: tuple[Noun, ...], files: dict[str, Path], pictures: Path, seed: int) -> list[str]:
    rng = random.Random(f"rows/{seed}/{number}")
    scene = plan_scene(rng, nouns, files)
    image = _save(rng, scene, files, pictures, number)
    return list(to_jsonl([converse(rng, scene, nouns, f"{pictures.name}/{image}")]))


def _make_probes(
    number: int, *, nouns: tuple[Noun, ...], files: dict[str, Path], pictures: Path, seed: int
) -> list[str]:
    """A line for each of `PROBE_FILES`; empty where no object has a clear colour."""
    rng = random.Random(f"probes/{seed}/{number}")
    scene = plan_arranged(rng, nouns, files, rng.choice(((1,), (1,), (1,), (1, 1), (1, 1))))
    image = f"{pictures.name}/{_save(rng, scene, files, pictures, number)}"
    thing = scene.things[0]
    others = [each for each in scene.things if each is not thing]
    named = ask_at(rng, thing) if others else ask_what(rng, scene)
    mistaken = {name for each in others for name in each.names} - set(thing.names)
    coloured = next((each for each in scene.things if each.colour), None)
    colour = "" if coloured is None else _colour_probe(ask_colour(rng, coloured), coloured, image)
    return [
        _probe(named, thing.names, sorted(mistaken), image),
        colour,
        _probe(ask_where(rng, thing), *place_words(thing.places[0]), image),
    ]


def _colour_probe(exchange: Exchange, thing: Thing, image: str) -> str:
    assert thing.colour is not None
    return _probe(exchange, (thing.colour,), [name for name in COLOURS if name != thing.colour], image)


def place_words(place: str) -> tuple[tuple[str, ...], list[str]]:
    """What an answer about that place has one of, and what it has none of."""
    column, row = PLACES[place]
    sides = [word for word in (("left", "", "right")[column], ("top", "", "bottom")[row]) if word]
    wrong = [word for word in ("left", "right", "top", "bottom") if word not in sides]
    if not sides:
        return MIDDLE_WORDS, wrong
    right = (" ".join(reversed(sides)),)
    return (*right, *(word.replace("top", "upper").replace("bottom", "lower") for word in right if len(sides) == 2)), [
        *wrong,
        *MIDDLE_WORDS,
    ]


def _probe(exchange: Exchange, expect: Iterable[str], reject: Iterable[str], image: str) -> str:
    values = {"ask": exchange.question, "group": "picture", "expect": list(expect)}
    if rejected := list(reject):
        values["reject"] = rejected
    return "- " + json.dumps(values | {"image": image}) + "\n"


def _save(rng: random.Random, scene: Scene, files: dict[str, Path], pictures: Path, number: int) -> str:
    """Draw a scene and write it as JPEG; gives its name below `pictures`."""
    name = f"{number // 1000:03d}/{number:06d}.jpg"
    try:
        draw_scene(rng, scene, files).save(pictures / name, quality=QUALITY)
    except OSError as error:
        raise DeviceError(
            f"{pictures / name}: cannot be written ({error.strerror}); free space or choose another place."
        ) from error
    return name
