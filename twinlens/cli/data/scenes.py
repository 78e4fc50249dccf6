"""`twinlens data scenes`: drawn pictures with known content, to align a projector on or to measure one."""

import shlex
from enum import StrEnum
from pathlib import Path

import typer

from tuning.errors import ConfigError
from twinlens.cli.output import JSON, print_result

NOUNS = "data/scene-nouns.yaml"


class Objects(StrEnum):
    """Which nouns of the vocabulary."""

    known = "known"
    unseen = "unseen"


def scenes(
    out: Path = typer.Argument(
        metavar="OUT", help="The .jsonl to write, its pictures in a folder beside it; with --probes, a folder."
    ),
    emoji: Path = typer.Option(
        ...,
        metavar="FOLDER",
        help="Emoji pictures: where `npm pack @lobehub/fluent-emoji-3d` (MIT) was unpacked, or any folder of "
        "HEXCODE.webp or .png.",
    ),
    count: int = typer.Option(20_000, help="How many scenes."),
    seed: int = typer.Option(0, help="The same seed gives the same bytes, whatever --processes is."),
    nouns: Path | None = typer.Option(None, metavar="FILE", help=f"Vocabulary; configs/{NOUNS} when left out."),
    probes: bool = typer.Option(
        False, "--probes", help="Write probes instead of rows: objects.yaml, colours.yaml and places.yaml."
    ),
    facts: bool = typer.Option(False, "--facts", help="Write FACTS for data image-qa instead of rows: a .yaml."),
    objects: Objects = typer.Option(Objects.known, help="With --probes: the trained nouns, or those never trained."),
    processes: int | None = typer.Option(None, min=1, help="How many draw at once; all cores when left out."),
    as_json: bool = JSON,
) -> None:
    """Draw scenes of one to three objects and write what can be asked of them."""
    from data_gen.scenes.write import write_scene_facts, write_scene_probes, write_scenes
    from tuning.data.card import card_path, card_to_dict
    from tuning.paths import shipped_file

    vocabulary = nouns or shipped_file(NOUNS)
    if probes and facts:
        raise ConfigError("--probes and --facts: each is written instead of rows; give one of them.")
    if probes:
        asked = write_scene_probes(
            out, emoji, vocabulary, count=count, seed=seed, objects=objects.value, processes=processes
        )
        print_result(
            {"out": out, "probes": asked},
            [f"{out / name}: {number} probes on {count} scenes" for name, number in asked.items()],
            f"twinlens compare RUN --probes {shlex.quote(str(out / 'objects.yaml'))}",
            as_json,
        )
        return
    if objects is not Objects.known:
        raise ConfigError("--objects unseen: nouns kept for probes are never trained; add --probes.")
    if facts:
        write_scene_facts(out, emoji, vocabulary, count=count, seed=seed)
        following = shlex.join(["twinlens", "data", "image-qa", str(out), str(out.with_suffix(".jsonl"))])
        print_result(
            {"out": out, "pictures": count}, [f"{out}: {count} pictures and what is to be seen"], following, as_json
        )
        return
    card = write_scenes(out, emoji, vocabulary, count=count, seed=seed, processes=processes)
    print_result(
        {"out": out, "card": card_path(out)} | card_to_dict(card),
        [f"{out}: {card.rows:,} rows, {card.distinct:,} of them distinct", f"{out.with_suffix('')}/: their pictures"],
        f"twinlens train configs/image/embedded-align.yaml {shlex.quote(f'data.files=[{out}]')}",
        as_json,
    )
