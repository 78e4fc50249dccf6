"""`twinlens data scenes`: draw pictures with known content, for projector alignment and probes."""

from pathlib import Path
from typing import Literal

import typer

from tuning.errors import ConfigError
from twinlens.cli.output import JSON, command, print_dataset, print_result

NOUNS = "data/scene-nouns.yaml"


def scenes(
    out: Path = typer.Argument(
        metavar="OUT",
        help="The .jsonl file to write, or with --facts the .yaml file; the pictures are written to the folder OUT "
        "without its suffix. With --probes a folder, with the pictures in OUT/pictures.",
    ),
    emoji: Path = typer.Option(
        ...,
        metavar="FOLDER",
        help="Folder of emoji images, .webp or .png, named by their Unicode code points, such as 1f415.webp or "
        "1f408-200d-2b1b.webp. The npm package @lobehub/fluent-emoji-3d (MIT license) has them: download it with `npm "
        "pack` and unpack it.",
    ),
    count: int = typer.Option(20_000, help="Number of scenes, each with one picture."),
    seed: int = typer.Option(0, help="Random seed; the same seed gives the same bytes for any --processes."),
    nouns: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="YAML file with the names of the objects and their emoji images, in the groups known and unseen. By "
        f"default the shipped configs/{NOUNS}, whose comments explain the format.",
    ),
    probes: bool = typer.Option(
        False,
        "--probes",
        help="Write test questions (probes) instead of training rows: objects.yaml, colours.yaml and places.yaml ask "
        "for the name, the color and the position of an object.",
    ),
    facts: bool = typer.Option(
        False, "--facts", help="Write a FACTS file (.yaml) for `data image-qa` instead of training rows."
    ),
    objects: Literal["known", "unseen"] = typer.Option(
        "known",
        help="Group of --nouns that the scenes use. Training rows use known; unseen, only with --probes, has objects "
        "that are in no training row.",
    ),
    processes: int | None = typer.Option(
        None, min=1, help="Number of processes; by default one per CPU core. No effect with --facts."
    ),
    as_json: bool = JSON,
) -> None:
    """Compose pictures (scenes) of one to three objects from emoji images, and write questions with answers.

    They are training data or test questions for the projector of a vision-language model.
    """
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
