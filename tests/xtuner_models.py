"""Tokenizers and tiny models in the official layouts of InternLM, with the real sentencepiece files."""

import json
import shutil
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures" / "xtuner_templates"
CHAT_NAMES = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
CHATML = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tokenizer(folder: Path, family: str) -> Path:
    """The tokenizer files of `internlm_v1`, `internlm2_base` or `internlm2_chat`."""
    folder.mkdir(parents=True, exist_ok=True)
    first = family == "internlm_v1"
    shutil.copy(FIXTURES / f"tokenizer_internlm{'' if first else '2'}.model", folder / "tokenizer.model")
    tokenizer_config: dict[str, object] = {"tokenizer_class": "InternLMTokenizer" if first else "InternLM2Tokenizer"}
    if family == "internlm2_chat":
        named = dict(enumerate(("<unk>", "<s>", "</s>"))) | dict(enumerate(CHAT_NAMES, 92538))
        tokenizer_config["added_tokens_decoder"] = {
            str(index): {"content": name, "special": True} for index, name in named.items()
        }
        tokenizer_config["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def write_internlm(folder: Path, family: str, hidden: int = 64, layers: int = 2) -> Path:
    """A tiny chat model with random weights in the official layout of its family, with the real tokenizer."""
    import torch
    from safetensors.torch import save_file

    write_tokenizer(folder, family)
    first = family == "internlm_v1"
    words, inner, heads, groups = (103168 if first else 92544), 2 * hidden, 4, (4 if first else 2)
    width = hidden // heads
    draw = torch.Generator().manual_seed(0)
    weights = {}

    def add(name: str, *size: int) -> None:
        drawn = torch.randn(*size, generator=draw) * 0.1 if len(size) > 1 or "bias" in name else torch.ones(*size)
        weights[name] = drawn.to(torch.bfloat16)

    add("model.embed_tokens.weight" if first else "model.tok_embeddings.weight", words, hidden)
    add("lm_head.weight" if first else "output.weight", words, hidden)
    add("model.norm.weight", hidden)
    for layer in range(layers):
        start = f"model.layers.{layer}."
        if first:
            for name in "qkvo":
                add(f"{start}self_attn.{name}_proj.weight", hidden, hidden)
                add(f"{start}self_attn.{name}_proj.bias", hidden)
        else:
            add(f"{start}attention.wqkv.weight", (heads + 2 * groups) * width, hidden)
            add(f"{start}attention.wo.weight", hidden, hidden)
        mlp = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj") if first else [f"feed_forward.w{n}" for n in (1, 3, 2)]
        for name, size in zip(mlp, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True):
            add(f"{start}{name}.weight", *size)
        norms = ("input_layernorm", "post_attention_layernorm") if first else ("attention_norm", "ffn_norm")
        for name in norms:
            add(f"{start}{name}.weight", hidden)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "internlm" if first else "internlm2",
        "architectures": ["InternLMForCausalLM" if first else "InternLM2ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_internlm.Model"},
        "vocab_size": words, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "bias": first,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    config |= {} if first else {"num_key_value_heads": groups, "rope_theta": 1000000}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
