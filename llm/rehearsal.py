"""What the base model says to unrelated prompts before training, mixed in so that it goes on saying it.

Answers are kept per model and prompt, so that a second run does not ask again.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from llm.generation import Answer, generate_answers
from llm.loading import LoadedModel
from llm.prompts import read_prompts
from tuning.atomic import write_atomically
from tuning.data.conversation import Conversation, single_turn
from tuning.paths import cache_folder
from tuning.progress import ProgressBar
from tuning.run_dir import read_jsonl
from tuning.settings import Rehearsal

log = logging.getLogger("twinlens")


def answer_rehearsal_prompts(
    loaded: LoadedModel, settings: Rehearsal, wanted: int | None = None, seed: int = 0
) -> list[Conversation]:
    """Prompts with the base model's own answers; answers that did not end by themselves are left out.

    Args:
        wanted: how many prompts the run can use; fewer than there are means a draw by `seed`.
    """
    prompts = read_prompts(settings.prompts)
    if wanted is not None and wanted < len(prompts):
        drawn = np.random.default_rng(seed).permutation(len(prompts))[:wanted]
        prompts = [prompts[index] for index in sorted(drawn.tolist())]
    store = cache_folder() / "rehearsal" / f"{_key(loaded, settings)}.jsonl"
    known = {row["prompt"]: Answer(row["answer"], row["finished"]) for row in read_jsonl(store)}
    missing = [prompt for prompt in prompts if prompt not in known]
    if missing:
        with ProgressBar("rehearsal answers", len(missing)) as counter:
            answers = generate_answers(
                loaded.model, loaded.template, [single_turn(prompt) for prompt in missing], settings.max_new_tokens,
                compute_dtype=loaded.compute_dtype, on_progress=counter.advance,
            )  # fmt: skip
        known.update(zip(missing, answers, strict=True))
        lines = ({"prompt": prompt, "answer": said.text, "finished": said.finished} for prompt, said in known.items())
        write_atomically(store, (json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    usable = [prompt for prompt in prompts if known[prompt].finished and known[prompt].text]
    log.info(
        "rehearsal: %d prompts answered by the base, %d of them now; %d left out, not ended within %d tokens",
        len(prompts),
        len(missing),
        len(prompts) - len(usable),
        settings.max_new_tokens,
    )
    return [single_turn(prompt, known[prompt].text) for prompt in usable]


def _key(loaded: LoadedModel, settings: Rehearsal) -> str:
    """What an answer depends on besides its prompt."""
    digest = hashlib.sha256()
    for path in sorted(loaded.folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".model"):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix in (".safetensors", ".bin"):
            digest.update(f"{path.name} {path.stat().st_size}".encode() + _ends(path))
    said = (
        loaded.template.system,
        loaded.quant_report.bits,
        str(loaded.compute_dtype),
        loaded.device.type,
        settings.max_new_tokens,
    )
    digest.update(repr(said).encode())
    return digest.hexdigest()[:24]


def _ends(path: Path, size: int = 1 << 16) -> bytes:
    """The first and last bytes of a weights file: enough to tell two checkpoints apart without reading gigabytes."""
    with path.open("rb") as stream:
        head = stream.read(size)
        stream.seek(max(0, path.stat().st_size - size))
        return head + stream.read(size)
