"""Measure memory and speed of full fine-tuning on one or several GPUs, with random weights in real shapes.

    python benchmarks/full_finetuning.py [--shape 1_8b] [--devices 2] [--deepspeed zero2] [key=value ...]

Writes an InternLM2 checkpoint in its own layout, and trains six steps of two packs of 2048 tokens. Prints a row of the
table in docs/measurements.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from load_internlm import GIB, SHAPES, write_checkpoints

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
TOKENIZER = FIXTURES / "xtuner_templates" / "tokenizer_internlm2.model"
WORDS = "the quick brown fox jumps over a lazy dog and then it sleeps under an old tree near the river "
TASK = """\
model: {folder}/internlm2
template: internlm2_chat
lora: null
quant: {{bits: 16}}
data: {{files: [{folder}/rows.jsonl], max_length: 2048}}
optim: {{learning_rate: 1.0e-5, steps: 6, micro_batch: 1, accumulate: {accumulate}, gradient_checkpointing: true}}
"""


def prepare(folder: Path, shape: str, devices: int) -> None:
    """Write a checkpoint, rows and a task."""
    write_checkpoints(folder, shape)
    shutil.rmtree(folder / "llama")
    shutil.copyfile(TOKENIZER, folder / "internlm2" / "tokenizer.model")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(400):
            question = {"role": "user", "content": f"Tell me story {number}."}
            answer = {"role": "assistant", "content": f"{number} {WORDS * (3 + number % 9)}"}
            stream.write(json.dumps({"messages": [question, answer]}) + "\n")
    (folder / "task.yaml").write_text(TASK.format(folder=folder, accumulate=max(1, 2 // devices)), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Settings to override.")
    parser.add_argument("--shape", choices=SHAPES, default="1_8b")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--deepspeed", help="A preset, such as zero2.")
    parser.add_argument("--folder", type=Path, help="Folder for checkpoint and run; by default a temporary folder.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        prepare(folder, options.shape, options.devices)
        command = [sys.executable, "-m", "twinlens", "train", folder / "task.yaml", *options.overrides]
        if options.devices > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.devices}"]
        if options.deepspeed:
            command += ["--deepspeed", options.deepspeed]
        subprocess.run([*command, "--work-dir", folder / "runs"], check=True)
        (steps,) = (folder / "runs").glob("task/*/steps.jsonl")
        rows = [json.loads(line) for line in steps.read_text(encoding="utf-8").splitlines()]
    peak = max(row["peak_memory"] for row in rows) / GIB
    speed = median(row["tokens_per_second"] for row in rows[2:])
    print("| shape | devices | DeepSpeed | peak GiB of each | tokens/s | last loss |\n|---|---:|---|---:|---:|---:|")
    print(
        f"| {options.shape} | {options.devices} | {options.deepspeed or '-'} | {peak:.1f} | {speed:,.0f} "
        f"| {rows[-1]['loss']:.4f} |"
    )


if __name__ == "__main__":
    main()
