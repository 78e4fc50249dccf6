"""An InternLM2 checkpoint in the official layout, loaded in 4 bits, beside transformers' own load of the same weights.

    python benchmarks/load_internlm.py [--shape 7b] [--rounds 3] [--folder FOLDER]

Writes random weights of the shape twice, in InternLM2's layout and in Llama's (15 GB each at 7B), then loads them in
turns, each time in a process of its own. Prints seconds, the host's memory and the device's, at their highest.
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

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "7b": (4096, 14336, 32, 32, 8, 92544),
    "1_8b": (2048, 8192, 24, 16, 8, 92544),
    "tiny": (64, 128, 4, 4, 2, 92544),
}
SHARD = 2 * 10**9  # bytes
GIB = 2**30


def write_checkpoints(folder: Path, shape: str) -> None:
    """The same weights as `folder/internlm2` and `folder/llama`, in shards."""
    import torch

    from llm.internlm.loading import split_qkv

    hidden, inner, layers, heads, groups, words = SHAPES[shape]
    width = hidden // heads
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ours, llama = _Shards(folder / "internlm2"), _Shards(folder / "llama")

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, device=device, dtype=torch.bfloat16).mul_(0.02).cpu()

    def both(old: str, new: str, *size: int) -> None:
        tensor = random(*size) if len(size) > 1 else torch.ones(*size, dtype=torch.bfloat16)
        ours.add(old, tensor)
        llama.add(new, tensor)

    both("model.tok_embeddings.weight", "model.embed_tokens.weight", words, hidden)
    for layer in range(layers):
        old, new = f"model.layers.{layer}.", f"model.layers.{layer}."
        fused = random((heads + 2 * groups) * width, hidden)
        ours.add(f"{old}attention.wqkv.weight", fused)
        for name, part in zip("qkv", split_qkv(fused, heads, groups), strict=True):
            llama.add(f"{new}self_attn.{name}_proj.weight", part)
        both(f"{old}attention.wo.weight", f"{new}self_attn.o_proj.weight", hidden, hidden)
        both(f"{old}feed_forward.w1.weight", f"{new}mlp.gate_proj.weight", inner, hidden)
        both(f"{old}feed_forward.w3.weight", f"{new}mlp.up_proj.weight", inner, hidden)
        both(f"{old}feed_forward.w2.weight", f"{new}mlp.down_proj.weight", hidden, inner)
        both(f"{old}attention_norm.weight", f"{new}input_layernorm.weight", hidden)
        both(f"{old}ffn_norm.weight", f"{new}post_attention_layernorm.weight", hidden)
    both("model.norm.weight", "model.norm.weight", hidden)
    both("output.weight", "lm_head.weight", words, hidden)
    same = {
        "vocab_size": words, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip
    ours.close(same | {"model_type": "internlm2", "bias": False, "rope_scaling": None})
    llama.close(same | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})


class _Shards:
    """Tensors gathered into files of at most `SHARD` bytes, with the index that names them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.held, self.index = folder, {}, {}

    def add(self, name: str, tensor) -> None:
        if self.held and sum(each.nbytes for each in self.held.values()) + tensor.nbytes > SHARD:
            self.flush()
        self.held[name] = tensor.contiguous()

    def flush(self) -> None:
        from safetensors.torch import save_file

        file = f"model-{len(set(self.index.values())) + 1:05}.safetensors"
        save_file(self.held, self.folder / file, metadata={"format": "pt"})
        self.index |= dict.fromkeys(self.held, file)
        self.held = {}

    def close(self, config: dict[str, object]) -> None:
        self.flush()
        (self.folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": self.index})
        )
        (self.folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))


def load_once(folder: Path) -> dict[str, float]:
    """Load one of the two in this process, and say what it took."""
    import torch
    from transformers import AutoModelForCausalLM

    from llm.internlm.loading import is_internlm, load_internlm
    from tuning.modules.quantize import choose_device, quantization_config
    from tuning.settings import Quant

    device = choose_device("auto")
    torch.zeros(1, device=device)
    highest = _HighestMemory()
    before = highest.anonymous()
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
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "host": (highest.stop() - before) / GIB,
        "device": torch.cuda.max_memory_allocated() / GIB if on_device else 0.0,
        "held": torch.cuda.memory_allocated() / GIB if on_device else 0.0,
        "sum": float(sum(each.float().abs().sum() for each in model.parameters())),
    }


class _HighestMemory:
    """What this process holds at most besides mapped files, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.highest, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    @staticmethod
    def anonymous() -> int:
        text = Path("/proc/self/status").read_text()
        return 1024 * int(text.partition("RssAnon:")[2].split()[0])

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.highest = max(self.highest, self.anonymous())

    def stop(self) -> int:
        self.done.set()
        self.thread.join()
        return self.highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="Where the checkpoints are written; a temporary one.")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load_once(options.load)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        write_checkpoints(Path(place), options.shape)
        found: dict[str, list[dict[str, float]]] = {"internlm2": [], "llama": []}
        for _ in range(options.rounds):
            for name, runs in found.items():
                command = [sys.executable, __file__, "--load", str(Path(place) / name)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    print("| layout | seconds (all) | host GiB | device GiB | device GiB at its end |\n|---|---:|---:|---:|---:|")
    for name, runs in found.items():
        times = ", ".join(f"{run['seconds']:.1f}" for run in runs)
        rest = (f"{median(run[key] for run in runs):.2f}" for key in ("host", "device", "held"))
        print(f"| {name} | {median(run['seconds'] for run in runs):.1f} ({times}) | " + " | ".join(rest) + " |")
    assert len({run["sum"] for runs in found.values() for run in runs}) == 1, "the two hold different weights"


if __name__ == "__main__":
    main()
