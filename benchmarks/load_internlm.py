"""Load an InternLM2 checkpoint in 4 bits, from its own layout and from Llama's layout.

    python benchmarks/load_internlm.py [--shape 7b] [--rounds 3] [--folder FOLDER]

Writes random weights of the shape in both layouts (15 GB each for 7B), then loads them alternately, each time in a new
process. Prints seconds, and the peak of host and device memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from llm.checkpoints.shards import lazy_from_tensor, write_weights
from llm.export.internlm_layout import to_internlm2
from llm.internlm.loading import is_internlm, load_internlm
from tuning.modules.quantize import choose_device, quantization_config
from tuning.settings import Quant

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads
    "7b": (4096, 14336, 32, 32, 8),
    "1_8b": (2048, 8192, 24, 16, 8),
    "tiny": (64, 128, 4, 4, 2),
}
GIB = 2**30


def make_llama(shape: str) -> PreTrainedModel:
    """A Llama in bf16 with random weights, drawn on the GPU if there is one."""
    hidden, intermediate, layers, heads, key_value_heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=92544, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_value_heads, max_position_embeddings=32768,
        rms_norm_eps=1e-5, rope_theta=1000000.0, bos_token_id=1, eos_token_id=2, pad_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.cpu()
    torch.cuda.empty_cache()  # the measured process needs this memory
    return model


def write_checkpoints(folder: Path, shape: str) -> None:
    """The same random weights as `folder/llama` and, in InternLM2's layout, as `folder/internlm2`."""
    model = make_llama(shape)
    model.save_pretrained(folder / "llama", max_shard_size="2GB")
    weights = {name: lazy_from_tensor(tensor) for name, tensor in model.state_dict().items()}
    (folder / "internlm2").mkdir()
    write_weights(to_internlm2(weights, model.config.num_key_value_heads), folder / "internlm2", "2GB")
    config = json.loads((folder / "llama" / "config.json").read_text())
    config |= {"model_type": "internlm2", "bias": False, "rope_theta": 1000000.0, "rope_scaling": None}
    (folder / "internlm2" / "config.json").write_text(json.dumps(config))


def load_once(folder: Path) -> dict[str, float]:
    """Load one checkpoint in this process and measure time and memory."""
    device = choose_device("auto")
    torch.zeros(1, device=device)
    memory = [anonymous_memory()]

    def sample() -> None:
        while True:
            memory.append(anonymous_memory())
            time.sleep(0.005)

    threading.Thread(target=sample, daemon=True).start()
    began = time.perf_counter()
    model = (load_internlm if is_internlm(folder) else AutoModelForCausalLM.from_pretrained)(
        folder,
        dtype=torch.bfloat16,
        quantization_config=quantization_config(Quant(bits=4), torch.bfloat16, ("lm_head",)),
        device_map={"": device},
        attn_implementation="sdpa",
    )
    on_device = device.type == "cuda"
    if on_device:
        torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - began,
        "host": (max(memory) - memory[0]) / GIB,
        "device": torch.cuda.max_memory_allocated() / GIB if on_device else 0.0,
        "loaded": torch.cuda.memory_allocated() / GIB if on_device else 0.0,
        "sum": float(sum(each.float().abs().sum() for each in model.parameters())),
    }


def anonymous_memory() -> int:
    """Bytes of this process in memory, without mapped files."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("RssAnon:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Folder for the checkpoints; by default a temporary folder.")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load_once(options.load)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_checkpoints(Path(folder), options.shape)
        results: dict[str, list[dict[str, float]]] = {"internlm2": [], "llama": []}
        for _ in range(options.rounds):
            for name, runs in results.items():
                command = [sys.executable, __file__, "--load", str(Path(folder) / name)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    print("| layout | seconds (all) | host GiB | device GiB | device GiB after loading |\n|---|---:|---:|---:|---:|")
    for name, runs in results.items():
        times = ", ".join(f"{run['seconds']:.1f}" for run in runs)
        memory = " | ".join(f"{median(run[key] for run in runs):.2f}" for key in ("host", "device", "loaded"))
        print(f"| {name} | {median(run['seconds'] for run in runs):.1f} ({times}) | {memory} |")
    assert len({run["sum"] for runs in results.values() for run in runs}) == 1, "the two layouts have different weights"


if __name__ == "__main__":
    main()
