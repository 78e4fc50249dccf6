"""Dataset cards: written, read back, and refused if broken."""

import hashlib
import os
from pathlib import Path

import pytest

from tuning.data.card import DatasetCard, card_path, file_sha256, read_card, write_card
from tuning.errors import DataError


def test_a_card_reads_back(tmp_path: Path) -> None:
    dataset = tmp_path / "rows.jsonl"
    assert read_card(dataset) is None
    card = DatasetCard("made", 2, 1, "hash", name="Pixel", languages=("en",), sources=(("facts.yaml", "hash"),))
    assert write_card(dataset, card) == card_path(dataset)
    assert read_card(dataset) == card


def test_a_broken_card_is_refused_with_the_key(tmp_path: Path) -> None:
    dataset = tmp_path / "rows.jsonl"
    card_path(dataset).write_text('{"made_by": "x", "rows": "many", "distinct": 1, "sha256": ""}')
    with pytest.raises(DataError, match=r"rows\.jsonl\.card\.json: not a dataset card \(rows: "):
        read_card(dataset)


def test_the_hash_depends_only_on_the_content(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    one, same, other = (tmp_path / name for name in ("1.png", "2.jpg", "3.png"))
    one.write_bytes(content)
    same.write_bytes(content)
    other.write_bytes(content[1:])
    assert file_sha256(one) == file_sha256(same) == hashlib.sha256(content).hexdigest() != file_sha256(other)
