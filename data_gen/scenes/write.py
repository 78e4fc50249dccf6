"""Scenes on disk: rows to train on, probes that measure what a model sees, facts to make dialogues of."""

import json
import random
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_gen.container import RowCount
from data_gen.scenes.dialogues import (
    Exchange,
    absent_noun,
    ask_at,
    ask_colour,
    ask_what,
    ask_where,
    converse,
    filled,
    listed,
)
from data_gen.scenes.draw import Studio, draw_all, open_studio
from data_gen.scenes.emoji import COLOURS
from data_gen.scenes.nouns import GROUPS
from data_gen.scenes.scene import PLACES, Scene, Thing, plan_arranged, plan_scene
from tuning.atomic import write_atomically
from tuning.data.card import DatasetCard, card_path, file_sha256, write_card
from tuning.data.conversation import to_jsonl
from tuning.errors import ConfigError
from tuning.paths import display_path

PROBE_FILES = ("objects.yaml", "colours.yaml", "places.yaml")
PROBED = ((1,), (1,), (1,), (1, 1), (1, 1))  # arrangements of probes, each as often as the others
MIDDLE_WORDS = ("middle", "center", "centre")
ABSENT = 3  # nouns that a facts file says are not there


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
    studio = open_studio(emoji, nouns_file, "known", out.with_suffix(""), count=count, seed=seed)
    out.unlink(missing_ok=True)
    card_path(out).unlink(missing_ok=True)
    rows = RowCount()

    def counted() -> Iterator[str]:
        for (row,) in draw_all(_draw_row, studio, count, processes):
            rows.add(row.encode())
            yield row

    write_atomically(out, counted())
    card = DatasetCard(
        made_by=f"twinlens data scenes {shlex.quote(str(out))} --emoji {shlex.quote(str(emoji))} "
        f"--nouns {shlex.quote(display_path(nouns_file))} --count {count} --seed {seed}",
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
    studio = open_studio(emoji, nouns_file, objects, out / "pictures", count=count, seed=seed)
    for name in PROBE_FILES:
        (out / name).unlink(missing_ok=True)
    made = list(draw_all(_draw_probes, studio, count, processes))
    asked: dict[str, int] = {}
    for name, probes in zip(PROBE_FILES, zip(*made, strict=True), strict=True):
        asked[name] = sum(map(bool, probes))
        header = f"# {name.removesuffix('.yaml')} of {count} scenes, {objects} objects, seed {seed}\n"
        write_atomically(out / name, (header, *probes))
    return asked


def write_scene_facts(out: Path, emoji: Path, nouns_file: Path, *, count: int, seed: int = 0) -> None:
    """Write what is to be seen in `count` scenes as FACTS in YAML, the pictures in a folder named like it.

    Raises:
        As `write_scenes`.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{out}: facts are written in YAML; end the name in .yaml.")
    studio = open_studio(emoji, nouns_file, "known", out.with_suffix(""), count=count, seed=seed)
    out.unlink(missing_ok=True)
    write_atomically(out, ("pictures:\n", *(entry for (entry,) in draw_all(_draw_facts, studio, count, 1))))


def probed_words(place: str) -> tuple[tuple[str, ...], list[str]]:
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


def _draw_row(studio: Studio, number: int) -> list[str]:
    rng = random.Random(f"rows/{studio.seed}/{number}")
    scene = plan_scene(rng, studio.nouns, studio.files)
    image = studio.save(rng, scene, number)
    return list(to_jsonl([converse(rng, scene, studio.nouns, image)]))


def _draw_probes(studio: Studio, number: int) -> list[str]:
    """A line for each of `PROBE_FILES`; empty where no object has a clear colour."""
    rng = random.Random(f"probes/{studio.seed}/{number}")
    scene = plan_arranged(rng, studio.nouns, studio.files, rng.choice(PROBED))
    image = studio.save(rng, scene, number)
    thing = scene.things[0]
    others = [each for each in scene.things if each is not thing]
    named = ask_at(rng, thing) if others else ask_what(rng, scene)
    mistaken = {name for each in others for name in each.names} - set(thing.names)
    coloured = next((each for each in scene.things if each.colour), None)
    colour = "" if coloured is None else _colour_probe(ask_colour(rng, coloured), coloured, image)
    return [
        _probe(named, thing.names, sorted(mistaken), image),
        colour,
        _probe(ask_where(rng, thing), *probed_words(thing.places[0]), image),
    ]


def _colour_probe(exchange: Exchange, thing: Thing, image: str) -> str:
    assert thing.colour is not None
    return _probe(exchange, (thing.colour,), [name for name in COLOURS if name != thing.colour], image)


def _probe(exchange: Exchange, expect: Iterable[str], reject: Iterable[str], image: str) -> str:
    values = {"ask": exchange.question, "group": "picture", "expect": list(expect)}
    if rejected := list(reject):
        values["reject"] = rejected
    return "- " + json.dumps(values | {"image": image}) + "\n"


def _draw_facts(studio: Studio, number: int) -> list[str]:
    rng = random.Random(f"facts/{studio.seed}/{number}")
    scene = plan_scene(rng, studio.nouns, studio.files)
    image = studio.save(rng, scene, number)
    absent = dict.fromkeys(absent_noun(rng, scene, studio.nouns).name for _ in range(ABSENT))
    lines = [
        f"  - image: {image}",
        f"    caption: {filled('The picture shows {describe}. The background is {ground}.', scene)}",
        "    objects:",
        *(f"      - {_flow(_seen(thing))}" for thing in scene.things),
        "    facts:",
        f"      - {_flow(_ground_fact(scene))}",
        f"    absent: {_flow(list(absent))}",
    ]
    return ["\n".join(lines) + "\n"]


def _seen(thing: Thing) -> dict[str, str | int]:
    colour = {"color": thing.colour} if thing.colour else {}
    return {"name": thing.noun.name, **colour, "count": thing.count, "place": listed(thing.places)}


def _ground_fact(scene: Scene) -> dict[str, str | list[str]]:
    return {
        "ask": "What color is the background?",
        "answer": f"The background is {scene.ground}.",
        "expect": [scene.ground],
        "also": ["Which color is the background?", "What is the background color?"],
    }


def _flow(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
