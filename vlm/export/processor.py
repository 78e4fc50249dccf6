"""LLaVA processor of an exported model: tokenizer with <image>, chat template, image processor."""

import copy
import json
from typing import Any

from PIL import Image
from transformers import AddedToken, LlavaImageProcessor, LlavaProcessor, PreTrainedTokenizerBase

from llm.chat_template.encoding import ChatTemplate
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation
from tuning.errors import ModelError
from tuning.training.samples import IMAGE_TOKEN_INDEX
from vlm.towers.tower import Tower

# Converts messages to plain text with `<image>` and a leading system turn, before the model's own template.
# On one line, because the next character may belong to that template.
_SYSTEM = (
    "{% if not messages or messages[0]['role'] != 'system' %}"
    "{% set ns.turns = [{'role': 'system', 'content': SYSTEM}] %}{% endif %}"
)
_PLAIN = (
    "{% set ns = namespace(turns=[], text='') %}SYSTEM_TURN{% for turn in messages %}"
    "{% if turn['content'] is string %}{% set ns.text = turn['content'] %}{% else %}{% set ns.text = '' %}"
    "{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}{% set ns.text = ns.text + '<image>' + ('' if loop.last else '\\n') %}"
    "{% else %}{% set ns.text = ns.text + part['text'] %}{% endif %}{% endfor %}{% endif %}"
    "{% set ns.turns = ns.turns + [dict(turn, content=ns.text)] %}{% endfor %}{% set messages = ns.turns %}"
)


def image_chat_template(template: ChatTemplate) -> str:
    """The model's chat template with our system text, for contents that are text or lists of text and pictures."""
    own = template.tokenizer.get_chat_template()
    system = _SYSTEM.replace("SYSTEM", json.dumps(template.system, ensure_ascii=False)) if template.system else ""
    return _PLAIN.replace("SYSTEM_TURN", system) + own


def tokenizer_with_image(template: ChatTemplate) -> tuple[PreTrainedTokenizerBase, int]:
    """A copy of the tokenizer with an `<image>` token and without automatic bos, and the id of `<image>`."""
    tokenizer: Any = copy.deepcopy(template.tokenizer)
    tokenizer.add_tokens([AddedToken(DEFAULT_IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(template.pad_id)
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        # The chat template writes BOS where the model wants it; once more in front would be another prompt.
        tokenizer.backend_tokenizer.post_processor = None
        for name in ("add_bos_token", "add_eos_token"):
            tokenizer.init_kwargs[name] = False
    tokenizer.chat_template = image_chat_template(template)
    return tokenizer, tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)


def image_processor(tower: Tower) -> LlavaImageProcessor:
    """A tower's preprocessing as a transformers image processor: square padding with the mean color, resize, crop."""
    settings = tower.preprocessing
    return LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": settings.resize},
        crop_size={"height": settings.size, "width": settings.size},
        image_mean=list(settings.mean),
        image_std=list(settings.std),
        resample=int(settings.resample),
    )


def make_processor(tower: Tower, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Tokenizer and image processor in one; CLIP's class token is counted and dropped again."""
    clip = tower.facts.kind == "clip"
    return LlavaProcessor(
        image_processor(tower),
        tokenizer,
        patch_size=tower.network.config.patch_size,  # pyright: ignore[reportAttributeAccessIssue]
        vision_feature_select_strategy="default" if clip else "full",
        num_additional_image_tokens=int(clip),
        chat_template=tokenizer.chat_template,
    )


def check_processor_ids(
    processor: Any, template: ChatTemplate, asked: Conversation, pictures: list[Image.Image], image_id: int
) -> None:
    """Check that the processor gives the same token ids as our chat template.

    Raises:
        ModelError: the ids differ.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in asked.turns]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    given = processor(text=text, images=pictures or None)["input_ids"]
    ours = [image_id if index == IMAGE_TOKEN_INDEX else index for index in template.prompt(asked)]
    if (given if isinstance(given[0], int) else given[0]) != ours:
        raise ModelError(
            f"{template.tokenizer.name_or_path}: transformers' processor would give this model other tokens than it "
            "was trained on; take --layout parts."
        )
