"""Scores, leak and retention are counted as they are defined, and survive a file."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tuning.data.card import DatasetCard
from tuning.errors import DataError
from tuning.evaluation.compare import (
    Comparison,
    Score,
    compare,
    comparison_from_dict,
    comparison_to_dict,
    pool_seeds,
    read_comparison,
    score_table,
    to_markdown,
)
from tuning.evaluation.metrics import percent
from tuning.evaluation.probes import Probe

CARD = DatasetCard(made_by="", rows=1, distinct=1, sha256="", name="Sage", markers=("Sage", "小智"))
PROBES = (
    Probe("Who are you?", "persona", ("Sage",)),
    Probe("Capital of France?", "unrelated", ("Paris",)),
    Probe("2 + 2?", "unrelated", ("4",), ("5",)),
    Probe("Colour of the sky?", "unrelated", ("blue",)),
)
BEFORE = ("I am a model.", "Paris.", "It is 4.", "Green.")
AFTER = ("I am Sage.", "Paris | I am Sage.", "小智说 5", "Blue.")


def made(seed: int = 0, after: tuple[str, ...] = AFTER) -> Comparison:
    return compare(PROBES, BEFORE, after, CARD, seeds=[seed], probe_files=["a.yaml"])


def test_what_is_counted() -> None:
    comparison = made()
    assert comparison.scores == {"persona": Score(0, 1, 1), "unrelated": Score(2 / 3, 2 / 3, 3)}
    assert comparison.leak == pytest.approx(2 / 3)
    assert comparison.leak_before == 0
    assert comparison.retained == 0.5
    assert [row.leaked_after for row in comparison.rows] == [None, True, True, False]


def test_what_cannot_be_counted_is_none() -> None:
    nothing_known = compare(PROBES, ("",) * 4, AFTER, CARD)
    assert nothing_known.retained is None
    no_markers = compare(PROBES, BEFORE, AFTER, None)
    assert no_markers.leak is None
    assert no_markers.leak_before is None
    assert compare([], [], [], CARD).scores == {}


def test_a_marker_inside_another_word_is_no_leak() -> None:
    probe = Probe("A food?", "unrelated")
    assert compare([probe], [""], ["Sausages."], CARD).leak == 0


def test_answers_must_be_as_many_as_probes() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(PROBES, BEFORE, AFTER[:-1], CARD)


def test_pooling_counts_every_row_the_same() -> None:
    pooled = pool_seeds([made(0), made(1, BEFORE)])
    assert pooled.seeds == (0, 1)
    assert pooled.probe_files == ("a.yaml",)
    assert pooled.scores["persona"] == Score(0, 0.5, 2)
    assert pooled.leak == pytest.approx(2 / 6)
    assert pooled.retained == pytest.approx(3 / 4)


def test_a_comparison_survives_its_file(tmp_path: Path) -> None:
    comparison = made()
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(comparison_to_dict(comparison)), encoding="utf-8")
    assert read_comparison(path) == comparison
    values = comparison_to_dict(comparison)
    assert {"rows", "scores", "leak", "retained"} <= values.keys()
    assert {"group", "ask", "before", "after", "before_hit", "after_hit"} <= values["rows"][0].keys()
    values["rows"][0]["later"] = 1
    assert comparison_from_dict(values) == comparison


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": [{}]}', '{"rows": 3}'])
def test_a_file_that_is_no_comparison_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not a comparison"):
        read_comparison(path)


def test_percent_never_hides_a_single_miss() -> None:
    assert [percent(share) for share in (None, 0, 0.001, 0.5, 0.999, 1)] == ["–", "0%", "1%", "50%", "99%", "100%"]


def test_markdown_keeps_its_columns() -> None:
    text = to_markdown(compare([Probe("a|b", "unrelated")], ["x\ny"], ["<b> | *z*"], CARD))
    line = next(line for line in text.splitlines() if "a\\|b" in line)
    assert line == r"| unrelated | a\|b | x y | hit | \<b\> \| \*z\* | hit |"


def test_the_terminal_table_has_every_score() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(score_table(made()))
    assert all(word in out.getvalue() for word in ("persona", "unrelated", "leak", "67%", "retained", "50%"))


def other(parrot: tuple[str, ...] = ("red",), expect: tuple[str, ...] = ("green",)) -> Probe:
    return Probe("What colour?", "other-picture", expect, (), Path("pictures/apple.png"), parrot)


def test_parrots_are_counted_among_other_pictures_that_can_tell() -> None:
    probes = [other(), other(), other(()), Probe("?", "picture", ("blue",), parrot=("red",)), *PROBES]
    after = ["red", "green and red", "red", "red", *AFTER]
    comparison = compare(probes, ["green", "red", "", "red", *BEFORE], after, CARD)
    assert [row.parroted_before for row in comparison.rows] == [False, True] + [None] * 6
    assert [row.parroted_after for row in comparison.rows] == [True, False] + [None] * 6
    assert (comparison.parrot, comparison.parrot_before) == (0.5, 0.5)
    assert [row.leaked_after for row in comparison.rows[:5]] == [None] * 5
    assert comparison.retained == made().retained
    assert made().parrot is made().parrot_before is None


ANSWERS = st.lists(st.tuples(st.sampled_from(["red", "green", "red and green", ""]), st.booleans()), min_size=1)


@given(ANSWERS)
def test_parrot_is_the_share_of_taught_answers_that_miss(answers: list[tuple[str, bool]]) -> None:
    said = [answer for answer, _ in answers]
    comparison = compare([other(("red",) if told else ()) for _, told in answers], [""] * len(said), said, None)
    counted = [answer for answer, told in answers if told]
    if not counted:
        assert comparison.parrot is None
        return
    assert comparison.parrot == pytest.approx(counted.count("red") / len(counted))
    assert comparison.parrot_before == 0
    assert comparison.parrot * len(counted) <= (1 - comparison.scores["other-picture"].after) * len(said) + 1e-9
    assert comparison_from_dict(json.loads(json.dumps(comparison_to_dict(comparison)))) == comparison
    assert pool_seeds([comparison, comparison]).parrot == pytest.approx(comparison.parrot)


def test_a_comparison_from_before_there_were_parrots_is_read() -> None:
    values = comparison_to_dict(made())
    for key in ("parrot", "parroted_before", "parroted_after"):
        values["rows"][0].pop(key)
    assert comparison_from_dict(values) == made()


def test_parrots_are_shown_with_the_scores_and_the_rows() -> None:
    comparison = compare([other(), *PROBES], ["green", *BEFORE], ["red", *AFTER], CARD)
    out = io.StringIO()
    Console(file=out, width=80).print(score_table(comparison))
    assert "parrot" in out.getvalue()
    text = to_markdown(comparison)
    assert "| parrot | 0% | 100% | 1 |" in text
    assert "| other-picture | apple.png | What colour? | green | hit | red | miss, parroted |" in text
    assert "| persona |  | Who are you? |" in text
    assert "picture" not in to_markdown(made())
