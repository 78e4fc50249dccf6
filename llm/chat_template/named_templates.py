"""Named chat templates: XTuner 0.2.0's for architectures that transformers contains, and InternLM 1's.

A task selects one with `template`, an XTuner config with `prompt_template`. A conversation is written in this order:
the bos token, at the beginning and after each eos token; the system text; the question; the answer with its suffix; the
eos token, unless the suffix replaces it; the separator.

Sources: xtuner/utils/templates.py of 0.2.0; InternLM 1's modeling_internlm.py, `build_inputs`.
"""

from dataclasses import dataclass

from tuning.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """The text around each turn.

    Args:
        system: the text with `{system}`; `question` with `{input}`.
        suffix: follows an answer and is trained on.
        suffix_ends: whether the suffix replaces the eos token.
        separator: follows a finished answer and is not trained on.
    """

    system: str
    question: str
    suffix: str = ""
    suffix_ends: bool = False
    separator: str = "\n"

    def jinja(self) -> str:
        """The same as a Jinja chat template of transformers, to save with the tokenizer."""
        system, question = (
            " + ".join((_quoted(before), "message['content']", _quoted(behind)))
            for before, _, behind in (self.system.partition("{system}"), self.question.partition("{input}"))
        )
        ends = "" if self.suffix_ends else " + eos_token"
        again = "" if self.suffix_ends else "{% set ns.begins = true %}"
        begin = "{% if ns.begins and bos_token %}{{ bos_token }}{% endif %}{% set ns.begins = false %}"
        return (
            "{% set ns = namespace(begins=true) %}{% for message in messages %}"
            "{% if message['role'] == 'assistant' %}"
            "{{ message['content'] + " + _quoted(self.suffix) + ends + " + " + _quoted(self.separator) + " }}" + again
            + "{% else %}" + begin
            + "{% if message['role'] == 'user' %}{{ " + question + " }}"
            + "{% elif message['content'] %}{{ " + system + " }}{% endif %}{% endif %}{% endfor %}"
        )  # fmt: skip


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


_CHATML = NamedTemplate(
    "<|im_start|>system\n{system}<|im_end|>\n",
    "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    suffix="<|im_end|>",
    suffix_ends=True,
)
_INST = NamedTemplate("[INST] {system} [/INST]\n", "[INST] {input} [/INST]")
_CURIOUS = NamedTemplate(
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. {system}\n ",
    "USER: {input} ASSISTANT:",
)
_DEEPSEEK_CODER = NamedTemplate(
    "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by DeepSeekCompany, and you "
    "only answer questions related to computer science. For politically sensitive questions, security and privacy "
    "issues, and other non-computer science questions, you will refuse to answer. {system}\n",
    "### Instruction:\n{input}\n### Response:\n",
)
_LINES = "<|System|>:{system}\n"
_EARLY = "<|User|>:{input}<eoh>\n<|Bot|>:"
NAMED_TEMPLATES: dict[str, NamedTemplate] = {
    "default": NamedTemplate(_LINES, "<|User|>:{input}\n<|Bot|>:"),
    "internlm_chat": NamedTemplate(_LINES, _EARLY, suffix="<eoa>", suffix_ends=True),
    "internlm_chat_0_1_9": NamedTemplate(_LINES, _EARLY, separator=""),
    "internlm": NamedTemplate(_LINES, "<|User|>:{input}\n<|Bot|>:", suffix="<eoa>", suffix_ends=True),
    "internlm2_chat": _CHATML,
    "qwen_chat": _CHATML,
    "minicpm3": _CHATML,
    "zephyr": NamedTemplate("<|system|>\n{system}\n", "<|user|>\n{input}\n<|assistant|>\n"),
    "llama2_chat": NamedTemplate(
        "[INST] <<SYS>>\n You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
        "while being safe. Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, "
        "or illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n{system}"
        "\n<</SYS>>\n [/INST] ",
        "[INST] {input} [/INST]",
    ),
    "code_llama_chat": NamedTemplate("{system}\n", "[INST] {input} [/INST]", separator=""),
    "wizardlm": _CURIOUS,
    "vicuna": _CURIOUS,
    "wizardcoder": NamedTemplate(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "{system}\n ",
        "### Instruction:\n{input}\n\n### Response:",
        separator="\n\n",
    ),
    "deepseek_coder": _DEEPSEEK_CODER,
    "deepseekcoder": _DEEPSEEK_CODER,
    "deepseek_v2": NamedTemplate(
        "{system}\n\n",
        "User: {input}\n\nAssistant: ",
        suffix="<｜end▁of▁sentence｜>",
        suffix_ends=True,
        separator="",
    ),
    "mistral": _INST,
    "mixtral": _INST,
    "gemma": NamedTemplate(
        "<start_of_turn>system\n{system}<end_of_turn>\n",
        "<start_of_turn>user\n{input}<end_of_turn>\n<start_of_turn>model\n",
        suffix="<end_of_turn>",
    ),
    "cohere_chat": NamedTemplate(
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{system}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{input}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        suffix="<|END_OF_TURN_TOKEN|>",
        suffix_ends=True,
        separator="",
    ),
    "llama3_chat": NamedTemplate(
        "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        suffix="<|eot_id|>",
        suffix_ends=True,
        separator="",
    ),
    "phi3_chat": NamedTemplate(
        "<|system|>\n{system}<|end|>\n",
        "<|user|>\n{input}<|end|>\n<|assistant|>\n",
        suffix="<|end|>",
        suffix_ends=True,
    ),
}


def named_template(name: str) -> NamedTemplate:
    """The template of a name.

    Raises:
        ConfigError: no template has this name.
    """
    if name not in NAMED_TEMPLATES:
        raise ConfigError(f"template: {name}: no template has this name; use one of {', '.join(NAMED_TEMPLATES)}.")
    return NAMED_TEMPLATES[name]
