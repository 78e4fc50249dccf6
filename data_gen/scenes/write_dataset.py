"""Write scene datasets: training rows, probes, or a facts file for `data image-qa`."""

import json
import random
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_gen.checks import check_choice, check_suffix
from data_gen.container import RowCount
from data_gen.scenes import dialogues
from data_gen.scenes.emoji import COLORS
from data_gen.scenes.nouns import GROUPS
from data_gen.scenes.render import SceneRenderer, make_renderer, render_all
from data_gen.scenes.scene import PLACES, plan_objects, plan_scene
from tuning.atomic import write_atomically
from tuning.data.card import DatasetCard, card_path, file_sha256, write_card
from tuning.data.conversation import to_jsonl
from tuning.paths import display_path

PROBE_FILES = ("objects.yaml", "colours.yaml", "places.yaml")
PROBE_COUNTS = ((1,), (1,), (1,), (1, 1), (1, 1))  # objects of each kind in a probe scene, equally likely
MIDDLE_WORDS = ("middle", "center", "centre")
ABSENT_NOUNS = 3  # per picture of a facts file


def write_scenes(
    out: Path, emoji: Path, nouns_file: Path, *, count: int, seed: int = 0, processes: int | None = None
) -> DatasetCard:
    """Write `count` rows (messages JSONL), their pictures in a folder of the same name, and the card.

    An existing dataset of that name is deleted first, so that an interrupted run does not look complete.

    Args:
        emoji: the folder of the emoji pictures.
        nouns_file: the vocabulary.
        processes: number of worker processes, default all cores; the bytes written are the same.

    Raises:
        ConfigError: an option or folder is wrong.
        DataError: the vocabulary or a picture cannot be read.
        DeviceError: the files cannot be written.
    """
    check_suffix(out, ".jsonl")
    renderer = make_renderer(emoji, nouns_file, "known", out.with_suffix(""), count=count, seed=seed)
    out.unlink(missing_ok=True)
    card_path(out).unlink(missing_ok=True)
    rows = RowCount()

    def counted_rows() -> Iterator[str]:
        for row in render_all(_render_row, renderer, count, processes):
            rows.add(row.encode())
            yield row

    write_atomically(out, counted_rows())
    options = ["--emoji", str(emoji), "--nouns", display_path(nouns_file), "--count", str(count), "--seed", str(seed)]
    card = DatasetCard(
        made_by=shlex.join(["twinlens", "data", "scenes", str(out), *options]),
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
    """Write probes on `count` scenes of one or two objects into the folder `out`; returns the probe count of each file.

    objects.yaml asks for the object, colours.yaml for its color, places.yaml for its place, about the same pictures.
    The scenes differ from those of `write_scenes` for every seed. `objects` is known or unseen.

    Raises:
        As `write_scenes`.
    """
    check_choice("--objects", objects, GROUPS)
    renderer = make_renderer(emoji, nouns_file, objects, out / "pictures", count=count, seed=seed)
    for name in PROBE_FILES:
        (out / name).unlink(missing_ok=True)
    rendered = list(render_all(_render_probes, renderer, count, processes))
    counts: dict[str, int] = {}
    for name, probes in zip(PROBE_FILES, zip(*rendered, strict=True), strict=True):
        counts[name] = sum(map(bool, probes))
        header = f"# {name.removesuffix('.yaml')} of {count} scenes, {objects} objects, seed {seed}\n"
        write_atomically(out / name, (header, *probes))
    return counts


def write_scene_facts(out: Path, emoji: Path, nouns_file: Path, *, count: int, seed: int = 0) -> None:
    """Write a YAML facts file on `count` scenes, the pictures in a folder of the same name.

    Raises:
        As `write_scenes`.
    """
    check_suffix(out, ".yaml", ".yml")
    renderer = make_renderer(emoji, nouns_file, "known", out.with_suffix(""), count=count, seed=seed)
    out.unlink(missing_ok=True)
    write_atomically(out, ("pictures:\n", *render_all(_render_facts, renderer, count, 1)))


def place_words(place: str) -> tuple[tuple[str, ...], list[str]]:
    """The `expect` and `reject` words of a probe about that place."""
    column, row = PLACES[place]
    sides = [word for word in (("top", "", "bottom")[row], ("left", "", "right")[column]) if word]
    wrong = [word for word in ("left", "right", "top", "bottom") if word not in sides]
    if not sides:
        return MIDDLE_WORDS, wrong
    name = " ".join(sides)
    expect = (name,) if len(sides) == 1 else (name, name.replace("top", "upper").replace("bottom", "lower"))
    return expect, [*wrong, *MIDDLE_WORDS]


def _render_row(renderer: SceneRenderer, number: int) -> str:
    rng = random.Random(f"rows/{renderer.seed}/{number}")
    scene = plan_scene(rng, renderer.nouns, renderer.files)
    image = renderer.save(rng, scene, number)
    return "".join(to_jsonl([dialogues.make_dialogue(rng, scene, renderer.nouns, image)]))


def _render_probes(renderer: SceneRenderer, number: int) -> list[str]:
    """One line for each of `PROBE_FILES`; empty if no object has a named color."""
    rng = random.Random(f"probes/{renderer.seed}/{number}")
    scene = plan_objects(rng, renderer.nouns, renderer.files, rng.choice(PROBE_COUNTS))
    image = renderer.save(rng, scene, number)

    def probe(pair: dialogues.QuestionAnswer, expect: Sequence[str], reject: Sequence[str]) -> str:
        values = {"ask": pair.question, "group": "picture", "expect": expect}
        values |= {"reject": reject} if reject else {}
        return f"- {json.dumps(values | {'image': image})}\n"

    thing, *others = scene.objects
    name_question = dialogues.ask_at(rng, thing) if others else dialogues.ask_what(rng, scene)
    wrong_names = {name for other in others for name in other.names} - set(thing.names)
    color_probe = ""
    if colored := next((other for other in scene.objects if other.color), None):
        wrong_colors = [name for name in COLORS if name != colored.color]
        color_probe = probe(dialogues.ask_color(rng, colored), [colored.color or ""], wrong_colors)
    return [
        probe(name_question, thing.names, sorted(wrong_names)),
        color_probe,
        probe(dialogues.ask_where(rng, thing), *place_words(thing.places[0])),
    ]


def _render_facts(renderer: SceneRenderer, number: int) -> str:
    rng = random.Random(f"facts/{renderer.seed}/{number}")
    scene = plan_scene(rng, renderer.nouns, renderer.files)
    image = renderer.save(rng, scene, number)
    absent = dict.fromkeys(dialogues.absent_noun(rng, scene, renderer.nouns).name for _ in range(ABSENT_NOUNS))
    text = f"  - image: {image}\n    caption: {dialogues.describe(scene)}\n    objects:\n"
    for thing in scene.objects:
        color = {"color": thing.color} if thing.color else {}
        places = dialogues.join_words(thing.places)
        values = {"name": thing.noun.name, **color, "count": thing.count, "place": places}
        text += f"      - {json.dumps(values, ensure_ascii=False)}\n"
    fact = {
        "ask": "What color is the background?",
        "answer": f"The background is {scene.background}.",
        "expect": [scene.background],
        "also": ["Which color is the background?", "What is the background color?"],
    }
    return text + (
        f"    facts:\n      - {json.dumps(fact)}\n    absent: {json.dumps(list(absent), ensure_ascii=False)}\n"
    )
