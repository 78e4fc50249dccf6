"""Measure which objects, colors and positions the untuned embedded model recognizes in new drawn scenes.

    python benchmarks/embedded_vision.py --emoji FOLDER [--scenes 300] [--start projector.safetensors]

FOLDER is that of `twinlens data scenes`. Prints a Markdown table, and sample answers to each kind of question.
"""

import argparse
import tempfile
from pathlib import Path

from data_gen.scenes.write_dataset import write_scene_probes
from llm.evaluation import make_answer_function
from tuning.evaluation.probes import is_hit, read_probes
from tuning.paths import shipped_file
from twinlens.chat_targets import embedded_vlm_task, open_vlm

PROBE_FILES = {"names the object": "objects.yaml", "its color": "colours.yaml", "its position": "places.yaml"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--start", default="embedded")
    parser.add_argument("--samples", type=int, default=20)
    options = parser.parse_args()
    target = open_vlm(embedded_vlm_task(start=options.start), None)
    ask = make_answer_function(target.model, target.template, target.compute_dtype, 32, embed=target.embed)
    shares: dict[str, list[str]] = {label: [] for label in PROBE_FILES}
    samples: list[str] = []
    for objects in ("known", "unseen"):
        with tempfile.TemporaryDirectory() as folder:
            write_scene_probes(
                Path(folder), options.emoji, shipped_file("data/scene-nouns.yaml"), count=options.scenes,
                seed=options.seed, objects=objects,
            )  # fmt: skip
            for label, file in PROBE_FILES.items():
                probes = read_probes(Path(folder) / file)
                answers = ask(probes)
                hits = [is_hit(answer, probe) for answer, probe in zip(answers, probes, strict=True)]
                shares[label].append(f"{sum(hits) / len(hits):.0%} of {len(hits)}")
                if objects == "known":
                    for n in range(-(-options.samples // len(PROBE_FILES))):
                        row = (probes[n].ask, probes[n].expect[0], answers[n], "hit" if hits[n] else "miss")
                        samples.append(f"| {' | '.join(row)} |")
    print("| | trained objects | untrained objects |\n|---|---:|---:|")
    for label, counted in shares.items():
        print(f"| {label} | {' | '.join(counted)} |")
    print("\n| question | expected | answer | |\n|---|---|---|---|", *samples[: options.samples], sep="\n")


if __name__ == "__main__":
    main()
