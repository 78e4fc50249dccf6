"""Scores, leak and retention are counted as they are defined."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from rich.console import Console

from tuning.data.card import DatasetCard
from tuning.evaluation.compare import Comparison, compare, comparison_to_dict, pool_seeds, score_table, to_markdown
from tuning.evaluation.metrics import ProbeResult, percent
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


def values(comparison: Comparison) -> dict:
    """The content of `comparison.json`."""
    return json.loads(json.dumps(comparison_to_dict(comparison)))


def test_what_is_counted() -> None:
    found = values(made())
    assert found["scores"] == {
        "persona": {"before": 0, "after": 1, "n": 1},
        "unrelated": {"before": 2 / 3, "after": 2 / 3, "n": 3},
    }
    assert found["leak"] == pytest.approx(2 / 3)
    assert found["leak_before"] == 0
    assert found["retained"] == 0.5
    assert [row["leaked_after"] for row in found["rows"]] == [None, True, True, False]


def test_what_cannot_be_counted_is_none() -> None:
    nothing_known = compare(PROBES, ("",) * 4, AFTER, CARD)
    assert values(nothing_known)["retained"] is None
    no_markers = values(compare(PROBES, BEFORE, AFTER, None))
    assert no_markers["leak"] is None
    assert no_markers["leak_before"] is None
    assert compare([], [], [], CARD).metrics == values(compare([], [], [], CARD))["scores"] == {}


def test_a_marker_inside_another_word_is_no_leak() -> None:
    probe = Probe("A food?", "unrelated")
    assert compare([probe], [""], ["Sausages."], CARD).metrics["leak"].after == 0


def test_answers_must_be_as_many_as_probes() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(PROBES, BEFORE, AFTER[:-1], CARD)


def test_pooling_counts_every_row_the_same() -> None:
    pooled = pool_seeds([made(0), made(1, BEFORE)])
    assert pooled.seeds == (0, 1)
    assert pooled.probe_files == ("a.yaml",)
    assert values(pooled)["scores"]["persona"] == {"before": 0, "after": 0.5, "n": 2}
    assert pooled.metrics["leak"].after_share == pytest.approx(2 / 6)
    assert pooled.metrics["retained"].after_share == pytest.approx(3 / 4)


def test_the_file_has_the_rows_as_they_are() -> None:
    comparison = made()
    found = values(comparison)
    assert list(found) == [
        *("rows", "scores", "leak", "leak_before", "parrot", "parrot_before", "retained", "seeds", "probe_files"),
    ]
    assert (found["seeds"], found["probe_files"]) == ([0], ["a.yaml"])
    assert TypeAdapter(tuple[ProbeResult, ...]).validate_python(found["rows"]) == comparison.rows


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
    assert (values(comparison)["parrot"], values(comparison)["parrot_before"]) == (0.5, 0.5)
    assert [row.leaked_after for row in comparison.rows[:5]] == [None] * 5
    assert comparison.metrics["retained"] == made().metrics["retained"]
    assert values(made())["parrot"] is values(made())["parrot_before"] is None


ANSWERS = st.lists(st.tuples(st.sampled_from(["red", "green", "red and green", ""]), st.booleans()), min_size=1)


@given(ANSWERS)
def test_parrot_is_the_share_of_taught_answers_that_miss(answers: list[tuple[str, bool]]) -> None:
    said = [answer for answer, _ in answers]
    comparison = compare([other(("red",) if told else ()) for _, told in answers], [""] * len(said), said, None)
    counted = [answer for answer, told in answers if told]
    if not counted:
        assert "parrot" not in comparison.metrics
        return
    parrot, others = comparison.metrics["parrot"], comparison.metrics["other-picture"]
    assert (parrot.before, parrot.after, parrot.n) == (0, counted.count("red"), len(counted))
    assert parrot.after <= others.n - others.after
    assert others.n == len(said)
    assert values(comparison)["parrot"] == parrot.after_share
    assert pool_seeds([comparison, comparison]).metrics["parrot"].after_share == pytest.approx(parrot.after_share)


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
