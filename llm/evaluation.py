"""Evaluation: answers to probes and validation loss during training; answers compared before and after."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm.chat_template.encoding import ChatTemplate
from llm.generation import EmbedFunction, generate_answers
from tuning.data.card import DatasetCard, card_from_dict
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation, Turn, single_turn
from tuning.evaluation.compare import Comparison, compare
from tuning.evaluation.probes import Probe, is_hit, read_probes
from tuning.evaluation.report import write_report
from tuning.paths import display_path, resolve_path
from tuning.run_dir import RunDir
from tuning.training.samples import EncodedSample, collate


def probe_conversation(probe: Probe) -> Conversation:
    """The question of a probe; a picture precedes the text, as in LLaVA's training data."""
    if probe.image is None:
        return single_turn(probe.ask)
    return Conversation((Turn("user", f"{DEFAULT_IMAGE_TOKEN}\n{probe.ask}"),), (probe.image,))


def make_answer_function(
    model: nn.Module,
    template: ChatTemplate,
    compute_dtype: torch.dtype,
    max_new_tokens: int,
    *,
    embed: EmbedFunction | None = None,
    shown: bool = False,
    batch_size: int = 64,
) -> Callable[[Sequence[Probe]], list[str]]:
    """A function that returns greedy answers to probes; arguments as for `generate_answers`."""

    def answers(probes: Sequence[Probe]) -> list[str]:
        asked = [probe_conversation(probe) for probe in probes]
        found = generate_answers(model, template, asked, max_new_tokens, batch_size, compute_dtype, embed, shown=shown)
        return [answer.text for answer in found]

    return answers


def first_of_each_group(probes: Sequence[Probe], number: int) -> list[Probe]:
    """The first probes of each group, groups in their order of appearance."""
    groups: dict[str, list[Probe]] = {}
    for probe in probes:
        groups.setdefault(probe.group, []).append(probe)
    return [probe for group in groups.values() for probe in group[:number]]


def sample_rows(step: int, probes: Sequence[Probe], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for samples.jsonl."""
    return [
        {"step": step, "group": probe.group, "ask": probe.ask, "answer": answer, "hit": is_hit(answer, probe)}
        | ({"image": str(probe.image)} if probe.image else {})
        for probe, answer in zip(probes, answers, strict=True)
    ]


def mean_loss(module: nn.Module, samples: Sequence[EncodedSample], pad_id: int, device: torch.device) -> float | None:
    """Mean loss over the labelled tokens of held-out rows, in nats; None without held-out rows."""
    if not samples:
        return None
    losses = [module(collate([[sample]], pad_id).to(device)) for sample in samples]
    return float(sum(loss for loss, _ in losses)) / int(sum(labels for _, labels in losses))


def read_probe_files(files: Sequence[Path], card: DatasetCard | None) -> list[Probe]:
    """The probes of several files.

    Raises:
        DataError: a probe file is wrong.
    """
    return [probe for file in files for probe in read_probes(resolve_path(file), card)]


def load_probes(run_dir: RunDir, probe_files: Sequence[Path]) -> tuple[list[Probe], list[Path], DatasetCard | None]:
    """Probes for a run, their files, and the card of the run's dataset.

    Raises:
        DataError: a probe file is wrong.
    """
    card = None
    if run_dir.data.exists():  # a run folder that was converted from an XTuner checkpoint has none
        facts = json.loads(run_dir.data.read_text(encoding="utf-8"))
        card = card_from_dict(facts["card"]) if facts.get("card") else None
    return read_probe_files(probe_files, card), [resolve_path(file) for file in probe_files], card


def compare_answers(
    run_dir: RunDir,
    seed: int,
    probes: Sequence[Probe],
    files: Sequence[Path],
    card: DatasetCard | None,
    before: Sequence[str],
    after: Sequence[str],
) -> Comparison:
    """Compare two sets of answers and write the report into the run folder."""
    names = [display_path(file) for file in files]
    comparison = compare(probes, before, after, card, seeds=[seed], probe_files=names)
    write_report(run_dir, comparison)
    return comparison
