"""LLaVA processor of an exported model: tokenizer with `<image>`, chat template, image processor."""

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

# A prefix of the model's own chat template: it adds the system turn, and joins lists of text and pictures into one text
# with `<image>`. It is one line, because a line break would become part of the prompt.
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


def tokenizer_with_image(template: ChatTemplate) -> tuple[PreTrainedTokenizerBase, int]:
    """A copy of the tokenizer for transformers' LLaVA, and the id of `<image>`.

    The copy adds no bos by itself. Its chat template has our system text, and accepts contents that are lists of text
    and pictures.
    """
    tokenizer: Any = copy.deepcopy(template.tokenizer)
    tokenizer.add_tokens([AddedToken(DEFAULT_IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(template.pad_id)
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        # The chat template writes bos itself; a second one would change the prompt.
        tokenizer.backend_tokenizer.post_processor = None
        for name in ("add_bos_token", "add_eos_token"):
            tokenizer.init_kwargs[name] = False
    system = _SYSTEM.replace("SYSTEM", json.dumps(template.system, ensure_ascii=False)) if template.system else ""
    tokenizer.chat_template = _PLAIN.replace("SYSTEM_TURN", system) + template.tokenizer.get_chat_template()
    return tokenizer, tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)


def image_processor(tower: Tower) -> LlavaImageProcessor:
    """A tower's preprocessing as transformers' image processor of LLaVA."""
    settings = tower.preprocess
    return LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": settings.resize},
        crop_size={"height": settings.size, "width": settings.size},
        image_mean=list(settings.mean),
        image_std=list(settings.std),
        resample=int(settings.resample),
    )


def make_processor(tower: Tower, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """The tokenizer and the image processor; of CLIP, the class token is counted and then dropped."""
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
    processor: Any, template: ChatTemplate, prompt: Conversation, pictures: list[Image.Image], image_id: int
) -> None:
    """Check that the processor gives the same token ids as our chat template.

    Raises:
        ModelError: the ids differ.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    theirs = processor(text=[text], images=pictures or None)["input_ids"][0]
    if theirs != [image_id if token == IMAGE_TOKEN_INDEX else token for token in template.prompt(prompt)]:
        raise ModelError(
            f"{template.tokenizer.name_or_path}: transformers' processor gives other token ids than the training used; "
            "use --layout parts."
        )
