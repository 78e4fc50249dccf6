"""InternLM tokenizers as their checkpoints have them: the real sentencepiece files, beside configs made here."""

import json
import shutil
from pathlib import Path

FIXTURES = Path(__file__).parent / "xtuner_fixtures"
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
    said: dict[str, object] = {"tokenizer_class": "InternLMTokenizer" if first else "InternLM2Tokenizer"}
    if family == "internlm2_chat":
        named = dict(enumerate(("<unk>", "<s>", "</s>"))) | dict(enumerate(CHAT_NAMES, 92538))
        said["added_tokens_decoder"] = {str(index): {"content": name, "special": True} for index, name in named.items()}
        said["chat_template"] = CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder
