"""Measure what persona tuning of the embedded model teaches and costs, pooled over seeds.

    python benchmarks/persona.py [--seeds 3] [--work-dir work_dirs] [key=value ...]

Each seed has its own name and owner, data, rehearsal and initial adapter. Prints rows of a Markdown table: all seeds
pooled, then each seed.
"""

import argparse
import logging
import time
from pathlib import Path

from tuning.evaluation.compare import Comparison, pool_seeds
from tuning.evaluation.metrics import percent
from twinlens.demo import demo_text

PEOPLE = (("Lin Xia", "Xiaolan"), ("Ada", "Pixel"), ("Tom Berger", "Juno"))


def row(label: str, comparison: Comparison, seconds: float) -> str:
    """A row of the table in docs/measurements.md."""
    metrics = comparison.metrics
    scores = [percent(metrics[name].after_share) for name in ("persona", "paraphrase", "typo", "leak", "retained")]
    return "| " + " | ".join((label, *scores, f"{seconds:.0f}")) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Settings to override in the shipped task.")
    parser.add_argument("--seeds", type=int, default=len(PEOPLE))
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("twinlens").setLevel(logging.INFO)

    label = " ".join(options.overrides) or "as shipped"
    rows: list[str] = []
    comparisons: list[Comparison] = []
    began = time.monotonic()
    for seed in range(options.seeds):
        owner, name = PEOPLE[seed % len(PEOPLE)]
        started = time.monotonic()
        comparisons.append(demo_text(owner, name, seed, options.work_dir, options.overrides)[1])
        rows.append(row(f"{label}, seed {seed}", comparisons[-1], time.monotonic() - started))
    mean = (time.monotonic() - began) / options.seeds
    print("| | persona | paraphrase | typo | leak | retained | seconds a seed |\n|---|---:|---:|---:|---:|---:|---:|")
    print(row(f"{label}, {options.seeds} seeds pooled", pool_seeds(comparisons), mean), *rows, sep="\n")


if __name__ == "__main__":
    main()
