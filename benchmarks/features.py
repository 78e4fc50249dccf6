"""What keeping a frozen tower's features saves: the same steps with them and with the tower at every step.

    python benchmarks/features.py                       # the embedded default, on any computer
    python benchmarks/features.py --shapes llava-1_8b   # CLIP ViT-L/14-336 and a 1.8B language model, on a GPU

The second makes both networks of random weights in their real shapes, which says all there is to say about time and
memory and nothing about answers. Runs of both kinds take turns, in processes of their own.
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
from PIL import Image

QUESTIONS = ("What is in the picture?", "What is the equipment for?", "Who is it for?", "Why is it used?", "Where?")
ANSWER = "It is a device that looks at the front and the back of the eye, much enlarged, while the patient sits still."


def make_data(folder: Path, pictures: int) -> Path:
    """Dialogues of five rounds on pictures of noise, 576 x 300 pixels as the tutorial's is."""
    rng = np.random.default_rng(0)
    rows: list[str] = []
    for number in range(pictures):
        Image.fromarray(rng.integers(0, 256, (300, 576, 3), np.uint8)).save(folder / f"{number}.jpg")
        turns = [
            {"role": role, "content": text}
            for ask in QUESTIONS
            for role, text in (("user", ask), ("assistant", ANSWER))
        ]
        turns[0] = {"role": "user", "content": f"<image>\n{QUESTIONS[0]}"}
        rows.append(json.dumps({"messages": turns, "images": [f"{number}.jpg"]}))
    file = folder / "rows.jsonl"
    file.write_text("\n".join(rows) + "\n")
    return file


def make_models(folder: Path) -> tuple[str, str]:
    """InternLM2-1.8B's shape in Llama layout and CLIP ViT-L/14-336, random; the embedded tokenizer stands in."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from llm.checkpoints.embedded import embedded_folder

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        language = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=92544, hidden_size=2048, intermediate_size=8192, num_hidden_layers=24,
                num_attention_heads=16, num_key_value_heads=8, max_position_embeddings=32768, rms_norm_eps=1e-5,
            )
        )  # fmt: skip
        tower = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
                patch_size=14, projection_dim=768,
            )
        )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    language.save_pretrained(folder / "language")
    AutoTokenizer.from_pretrained(embedded_folder()).save_pretrained(folder / "language")
    tower.save_pretrained(folder / "tower")
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(
        folder / "tower"
    )
    return str(folder / "language"), str(folder / "tower")


def measure(folder: Path, task: Path, name: str, options: list[str]) -> dict[str, float]:
    """Train in a process of its own; seconds a step, seconds in all, and the peak of memory in GiB."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "twinlens", "train", str(task), *options, "--work-dir", str(folder / name)],
        check=False, capture_output=True, text=True, env=os.environ | {"TWINLENS_CACHE": str(folder / f"cache-{name}")},
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    seconds = time.monotonic() - began
    (steps,) = (folder / name).glob("*/*/steps.jsonl")
    rows = [json.loads(line) for line in steps.read_text().splitlines()]
    steps.rename(steps.with_suffix(".seen"))
    return {
        "s/step": median(row["seconds"] for row in rows[2:]),
        "s in all": seconds,
        "peak GiB": rows[-1]["peak_memory"] / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=("embedded", "llava-1_8b"), default="embedded")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tower = ("embedded", "embedded") if arguments.shapes == "embedded" else make_models(folder)
        task = folder / "task.yaml"
        task.write_text(
            f"model: {model}\ntower: {tower}\nstage: tune\nlora: {{rank: 64, alpha: 16}}\n"
            f"data: {{files: [{make_data(folder, arguments.pictures)}], max_length: 1472, pack: false, repeat: 200}}\n"
            f"optim: {{steps: {arguments.steps}, micro_batch: {arguments.micro_batch}, accumulate: 1}}\n"
        )
        kinds = {"kept": [], "live": ["pictures.cache_gib=0"]}
        measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(arguments.rounds):
            for kind, options in kinds.items():
                measured[kind].append(measure(folder, task, kind, options))
    print(f"{arguments.shapes}, {arguments.pictures} pictures, micro-batch {arguments.micro_batch}")
    for key in ("s/step", "s in all", "peak GiB"):
        kept, live = (min(each[key] for each in measured[kind]) for kind in ("kept", "live"))
        print(f"{key:>9}  kept {kept:8.3f}  live {live:8.3f}  live/kept {live / kept:5.2f}")


if __name__ == "__main__":
    main()
