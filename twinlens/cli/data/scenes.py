"""`twinlens data scenes`: draw pictures with known content, for projector alignment and probes."""

from pathlib import Path
from typing import Literal

import typer

from tuning.errors import ConfigError
from twinlens.cli.output import JSON, command, print_dataset, print_result

NOUNS = "data/scene-nouns.yaml"


def scenes(
    out: Path = typer.Argument(
        metavar="OUT", help="The .jsonl to write, next to a folder of its pictures; with --probes, a folder."
    ),
    emoji: Path = typer.Option(
        ...,
        metavar="FOLDER",
        help="Emoji pictures: the unpacked `npm pack @lobehub/fluent-emoji-3d` (MIT), or any folder of HEXCODE.webp or "
        ".png.",
    ),
    count: int = typer.Option(20_000, help="Number of scenes."),
    seed: int = typer.Option(0, help="Seed; the same seed gives the same bytes for any number of --processes."),
    nouns: Path | None = typer.Option(None, metavar="FILE", help=f"Vocabulary; by default configs/{NOUNS}."),
    probes: bool = typer.Option(
        False, "--probes", help="Write probes instead of rows: objects.yaml, colours.yaml and places.yaml."
    ),
    facts: bool = typer.Option(False, "--facts", help="Write a .yaml of facts for `data image-qa` instead of rows."),
    objects: Literal["known", "unseen"] = typer.Option("known", help="With --probes: trained or untrained nouns."),
    processes: int | None = typer.Option(None, min=1, help="Number of processes; by default one per core."),
    as_json: bool = JSON,
) -> None:
    """Draw scenes of one to three objects, and write questions about them with answers."""
    from data_gen.scenes.write_dataset import write_scene_facts, write_scene_probes, write_scenes
    from tuning.paths import shipped_file

    vocabulary = nouns or shipped_file(NOUNS)
    if probes and facts:
        raise ConfigError("--probes and --facts: both are written instead of rows; give one of them.")
    if probes:
        written = write_scene_probes(
            out, emoji, vocabulary, count=count, seed=seed, objects=objects, processes=processes
        )
        lines = [f"{out / name}: {number} probes on {count} scenes" for name, number in written.items()]
        following = command("compare", "RUN", probes=out / "objects.yaml")
        return print_result({"out": out, "probes": written}, lines, following, as_json)
    if objects != "known":
        raise ConfigError("--objects unseen: these nouns are for probes only; add --probes.")
    if facts:
        write_scene_facts(out, emoji, vocabulary, count=count, seed=seed)
        following = command("data", "image-qa", out, out.with_suffix(".jsonl"))
        return print_result({"out": out, "pictures": count}, [f"{out}: facts of {count} pictures"], following, as_json)
    card = write_scenes(out, emoji, vocabulary, count=count, seed=seed, processes=processes)
    lines = [f"{out}: {card.rows:,} rows ({card.distinct:,} distinct)", f"{out.with_suffix('')}/: the pictures"]
    following = command("train", "configs/image/embedded-align.yaml", f"data.files=[{out}]")
    return print_dataset(out, card, lines, following, as_json)
