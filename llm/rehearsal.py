"""Rehearsal rows: unrelated prompts with the base model's own answers, generated before training.

Answers are cached by model and prompt, so that a second run does not generate them again.
"""

import hashlib
import json
import logging
import math
from pathlib import Path

import numpy as np
from accelerate import PartialState

from llm.data_files import read_prompts
from llm.generation import Answer, generate_answers
from llm.loading import LoadedModel
from tuning.atomic import write_atomically
from tuning.data.conversation import Conversation, single_turn
from tuning.data.formats import SourceRow
from tuning.errors import ConfigError
from tuning.paths import cache_folder
from tuning.run_dir import read_jsonl
from tuning.settings import Optim, Rehearsal

log = logging.getLogger("twinlens")


def rehearsal_rows(loaded: LoadedModel, settings: Rehearsal, optim: Optim, pack: bool, seed: int) -> list[SourceRow]:
    """The rehearsal prompts with the base model's answers. The main process generates them; the others read its cache.

    Raises:
        ConfigError: no answer ends within the token limit.
    """
    if not settings.prompts or not settings.ratio:
        return []
    state = PartialState()
    limit = rehearsal_prompt_limit(settings, optim, pack, state.num_processes)
    with state.main_process_first():
        answered = answer_rehearsal_prompts(loaded, settings, limit, seed)
    if not answered:
        raise ConfigError(
            f"rehearsal.max_new_tokens: no answer of the base model ends within {settings.max_new_tokens} tokens; "
            "raise it, or remove rehearsal.prompts."
        )
    return [SourceRow(f"rehearsal {row.question[:40]!r}", row) for row in answered]


def rehearsal_prompt_limit(settings: Rehearsal, optim: Optim, pack: bool, processes: int) -> int | None:
    """The largest number of prompts to answer: `max_prompts`, or fewer if the run is short. None without a limit."""
    if optim.steps is None or pack:
        return settings.max_prompts
    rows = optim.steps * optim.accumulate * optim.micro_batch * processes
    usable = math.ceil(rows * settings.ratio / (1 + settings.ratio))
    return min(usable, settings.max_prompts or usable)


def answer_rehearsal_prompts(
    loaded: LoadedModel, settings: Rehearsal, limit: int | None = None, seed: int = 0
) -> list[Conversation]:
    """Prompts with the base model's own answers. Answers without a stop token are left out.

    Args:
        limit: the largest number of prompts. If there are more, a random subset is drawn with `seed`.
    """
    prompts = read_prompts(settings.prompts)
    if limit is not None and limit < len(prompts):
        drawn = np.random.default_rng(seed).permutation(len(prompts))[:limit]
        prompts = [prompts[index] for index in sorted(drawn.tolist())]
    cache = cache_folder() / "rehearsal" / f"{_cache_key(loaded, settings)}.jsonl"
    answers = {row["prompt"]: Answer(row["answer"], row["finished"]) for row in read_jsonl(cache)}
    missing = [prompt for prompt in prompts if prompt not in answers]
    if missing:
        generated = generate_answers(
            loaded.model, loaded.template, [single_turn(prompt) for prompt in missing], settings.max_new_tokens,
            compute_dtype=loaded.compute_dtype, label="rehearsal answers", shown=True,
        )  # fmt: skip
        answers.update(zip(missing, generated, strict=True))
        rows = ({"prompt": prompt, "answer": each.text, "finished": each.finished} for prompt, each in answers.items())
        write_atomically(cache, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    usable = [prompt for prompt in prompts if answers[prompt].finished and answers[prompt].text]
    log.info(
        "rehearsal: the base model answered %d prompts, %d of them now; %d left out, without an end within %d tokens",
        len(prompts), len(missing), len(prompts) - len(usable), settings.max_new_tokens,
    )  # fmt: skip
    return [single_turn(prompt, answers[prompt].text) for prompt in usable]


def _cache_key(loaded: LoadedModel, settings: Rehearsal) -> str:
    """Hash of everything that determines an answer, except the prompt."""
    digest = hashlib.sha256()
    for path in sorted(loaded.folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".model"):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix in (".safetensors", ".bin"):
            digest.update(f"{path.name} {path.stat().st_size}".encode() + _head_and_tail(path))
    dtype, device = str(loaded.compute_dtype), loaded.device.type
    digest.update(
        repr((loaded.template.system, loaded.quant_report.bits, dtype, device, settings.max_new_tokens)).encode()
    )
    return digest.hexdigest()[:24]


def _head_and_tail(path: Path, size: int = 1 << 16) -> bytes:
    """The first and last bytes of a weights file. They differ between checkpoints, and gigabytes need not be read."""
    with path.open("rb") as stream:
        head = stream.read(size)
        stream.seek(max(0, path.stat().st_size - size))
        return head + stream.read(size)
