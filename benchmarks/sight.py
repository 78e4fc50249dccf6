"""What the embedded model sees before any tuning: kinds, colours and places on scenes that it was not trained on.

    python benchmarks/sight.py --emoji FOLDER [--scenes 300] [--start projector.safetensors]

FOLDER as `twinlens data scenes` takes it. Prints a Markdown table, and sample answers of every kind of question.
"""

import argparse
import tempfile
from pathlib import Path

from data_gen.scenes.write_dataset import write_scene_probes
from llm.evaluation import make_answer_function
from tuning.evaluation.probes import is_hit, read_probes
from tuning.paths import shipped_file
from twinlens.chat_targets import embedded_vlm_task, open_vlm

ASKED = {"names the object": "objects.yaml", "its colour": "colours.yaml", "its place": "places.yaml"}


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
    print("| | objects of training | objects never seen |\n|---|---:|---:|")
    shares: dict[str, list[str]] = {what: [] for what in ASKED}
    samples: list[str] = []
    for objects in ("known", "unseen"):
        with tempfile.TemporaryDirectory() as folder:
            write_scene_probes(
                Path(folder), options.emoji, shipped_file("data/scene-nouns.yaml"), count=options.scenes,
                seed=options.seed, objects=objects,
            )  # fmt: skip
            for what, name in ASKED.items():
                probes = read_probes(Path(folder) / name)
                answers = ask(probes)
                hits = [is_hit(answer, probe) for answer, probe in zip(answers, probes, strict=True)]
                shares[what].append(f"{sum(hits) / len(hits):.0%} of {len(hits)}")
                if objects == "known":
                    few = range(-(-options.samples // len(ASKED)))
                    rows = [(probes[n].ask, probes[n].expect[0], answers[n], "hit" if hits[n] else "miss") for n in few]
                    samples += [f"| {' | '.join(row)} |" for row in rows]
    print("\n".join(f"| {what} | {' | '.join(counted)} |" for what, counted in shares.items()))
    print("\n| question | expected | answer | |\n|---|---|---|---|")
    print("\n".join(samples[: options.samples]))


if __name__ == "__main__":
    main()
