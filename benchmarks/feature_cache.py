"""Compare training with cached tower features and with the tower run at every step.

    python benchmarks/feature_cache.py                       # the embedded model, on any computer
    python benchmarks/feature_cache.py --shapes llava-1_8b   # CLIP ViT-L/14-336 and a 1.8B language model, on a GPU

With `llava-1_8b` both networks have real shapes and random weights: time and memory are real, answers are not.
Runs with and without the cache alternate, each in a new process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from load_internlm import GIB, make_llama
from PIL import Image
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor, CLIPVisionConfig

from llm.checkpoints.embedded import embedded_folder

QUESTIONS = ("What is in the picture?", "What is the equipment for?", "Who is it for?", "Why is it used?", "Where?")
ANSWER = "It is a device that looks at the front and the back of the eye, much enlarged, while the patient sits still."


def make_data(folder: Path, pictures: int) -> Path:
    """Dialogues of five rounds about pictures of noise, 576 x 300 pixels as in the tutorial."""
    rng = np.random.default_rng(0)
    turns: list[dict[str, str]] = []
    for question in ("<image>\n" + QUESTIONS[0], *QUESTIONS[1:]):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}]
    file = folder / "rows.jsonl"
    with file.open("w") as stream:
        for number in range(pictures):
            Image.fromarray(rng.integers(0, 256, (300, 576, 3), np.uint8)).save(folder / f"{number}.jpg")
            stream.write(json.dumps({"messages": turns, "images": [f"{number}.jpg"]}) + "\n")
    return file


def make_models(folder: Path) -> tuple[str, str]:
    """InternLM2-1.8B's shape in Llama's layout, and CLIP ViT-L/14-336, both with random weights.

    The tokenizer is the embedded model's.
    """
    language, tower = folder / "language", folder / "tower"
    make_llama("1_8b").save_pretrained(language)
    AutoTokenizer.from_pretrained(embedded_folder()).save_pretrained(language)
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    AutoModel.from_config(config, dtype="bfloat16").save_pretrained(tower)
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(tower)
    return str(language), str(tower)


def measure(folder: Path, name: str, overrides: list[str]) -> dict[str, float]:
    """Train in a new process; seconds per step, seconds in total, and peak memory in GiB."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "twinlens", "train", str(folder / "task.yaml"), *overrides, "--work-dir", folder / name],
        check=False, capture_output=True, text=True, env=os.environ | {"TWINLENS_CACHE": str(folder / f"cache-{name}")},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    seconds = time.monotonic() - began
    newest = max((folder / name).glob("*/*/steps.jsonl"))
    rows = [json.loads(line) for line in newest.read_text().splitlines()]
    return {
        "s/step": median(row["seconds"] for row in rows[2:]),
        "s in all": seconds,
        "peak GiB": rows[-1]["peak_memory"] / GIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=("embedded", "llava-1_8b"), default="embedded")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tower = ("embedded", "embedded") if options.shapes == "embedded" else make_models(folder)
        (folder / "task.yaml").write_text(
            f"model: {model}\ntower: {tower}\nstage: tune\nlora: {{rank: 64, alpha: 16}}\n"
            f"data: {{files: [{make_data(folder, options.pictures)}], max_length: 1472, pack: false, repeat: 200}}\n"
            f"optim: {{steps: {options.steps}, micro_batch: {options.micro_batch}, accumulate: 1}}\n"
        )
        measured: dict[str, list[dict[str, float]]] = {"cached": [], "live": []}
        for _ in range(options.rounds):
            measured["cached"].append(measure(folder, "cached", []))
            measured["live"].append(measure(folder, "live", ["pictures.cache_gib=0"]))
    print(f"{options.shapes}, {options.pictures} pictures, micro-batch {options.micro_batch}")
    for key in ("s/step", "s in all", "peak GiB"):
        cached, live = (min(each[key] for each in runs) for runs in measured.values())
        print(f"{key:>9}  cached {cached:8.3f}  live {live:8.3f}  live/cached {live / cached:5.2f}")


if __name__ == "__main__":
    main()
