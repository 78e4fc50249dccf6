"""Definitions of scores, leak, retention and parrot."""

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


def make_comparison(seed: int = 0, after: tuple[str, ...] = AFTER) -> Comparison:
    return compare(PROBES, BEFORE, after, CARD, seeds=[seed], probe_files=["a.yaml"])


def values(comparison: Comparison) -> dict:
    """The content of `comparison.json`."""
    return json.loads(json.dumps(comparison_to_dict(comparison)))


def test_scores_leak_and_retention_are_counted() -> None:
    found = values(make_comparison())
    assert found["scores"] == {
        "persona": {"before": 0, "after": 1, "n": 1},
        "unrelated": {"before": 2 / 3, "after": 2 / 3, "n": 3},
    }
    assert found["leak"] == pytest.approx(2 / 3)
    assert found["leak_before"] == 0
    assert found["retained"] == 0.5
    assert [row["leaked_after"] for row in found["rows"]] == [None, True, True, False]


def test_undefined_metrics_are_none() -> None:
    nothing_known = compare(PROBES, ("",) * 4, AFTER, CARD)
    assert values(nothing_known)["retained"] is None
    no_markers = values(compare(PROBES, BEFORE, AFTER, None))
    assert no_markers["leak"] is None
    assert no_markers["leak_before"] is None
    assert compare([], [], [], CARD).metrics == values(compare([], [], [], CARD))["scores"] == {}


def test_a_marker_inside_another_word_is_no_leak() -> None:
    probe = Probe("A food?", "unrelated")
    assert compare([probe], [""], ["Sausages."], CARD).metrics["leak"].after == 0


def test_number_of_answers_must_equal_number_of_probes() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(PROBES, BEFORE, AFTER[:-1], CARD)


def test_pooled_metrics_weight_every_row_equally() -> None:
    pooled = pool_seeds([make_comparison(0), make_comparison(1, BEFORE)])
    assert pooled.seeds == (0, 1)
    assert pooled.probe_files == ("a.yaml",)
    assert values(pooled)["scores"]["persona"] == {"before": 0, "after": 0.5, "n": 2}
    assert pooled.metrics["leak"].after_share == pytest.approx(2 / 6)
    assert pooled.metrics["retained"].after_share == pytest.approx(3 / 4)


def test_comparison_dict_contains_the_rows_unchanged() -> None:
    comparison = make_comparison()
    found = values(comparison)
    assert list(found) == [
        *("rows", "scores", "leak", "leak_before", "parrot", "parrot_before", "retained", "seeds", "probe_files"),
    ]
    assert (found["seeds"], found["probe_files"]) == ([0], ["a.yaml"])
    assert TypeAdapter(tuple[ProbeResult, ...]).validate_python(found["rows"]) == comparison.rows


def test_percent_is_0_or_100_only_if_exact() -> None:
    assert [percent(share) for share in (None, 0, 0.001, 0.5, 0.999, 1)] == ["–", "0%", "1%", "50%", "99%", "100%"]


def test_markdown_escapes_table_characters() -> None:
    text = to_markdown(compare([Probe("a|b", "unrelated")], ["x\ny"], ["<b> | *z*"], CARD))
    line = next(line for line in text.splitlines() if "a\\|b" in line)
    assert line == r"| unrelated | a\|b | x y | hit | \<b\> \| \*z\* | hit |"


def test_the_terminal_table_has_every_score() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(score_table(make_comparison()))
    assert all(word in out.getvalue() for word in ("persona", "unrelated", "leak", "67%", "retained", "50%"))


def other_picture_probe(parrot: tuple[str, ...] = ("red",), expect: tuple[str, ...] = ("green",)) -> Probe:
    return Probe("What colour?", "other-picture", expect, (), Path("pictures/apple.png"), parrot)


def test_parrot_counts_only_other_picture_probes_with_parrot_words() -> None:
    probes = [
        other_picture_probe(),
        other_picture_probe(),
        other_picture_probe(()),
        Probe("?", "picture", ("blue",), parrot=("red",)),
        *PROBES,
    ]
    after = ["red", "green and red", "red", "red", *AFTER]
    comparison = compare(probes, ["green", "red", "", "red", *BEFORE], after, CARD)
    assert [row.parroted_before for row in comparison.rows] == [False, True] + [None] * 6
    assert [row.parroted_after for row in comparison.rows] == [True, False] + [None] * 6
    assert (values(comparison)["parrot"], values(comparison)["parrot_before"]) == (0.5, 0.5)
    assert [row.leaked_after for row in comparison.rows[:5]] == [None] * 5
    assert comparison.metrics["retained"] == make_comparison().metrics["retained"]
    assert values(make_comparison())["parrot"] is values(make_comparison())["parrot_before"] is None


ANSWERS = st.lists(st.tuples(st.sampled_from(["red", "green", "red and green", ""]), st.booleans()), min_size=1)


@given(ANSWERS)
def test_parrot_is_the_share_of_trained_answers_that_miss(answers: list[tuple[str, bool]]) -> None:
    after = [answer for answer, _ in answers]
    comparison = compare(
        [other_picture_probe(("red",) if has_parrot else ()) for _, has_parrot in answers],
        [""] * len(after),
        after,
        None,
    )
    counted = [answer for answer, has_parrot in answers if has_parrot]
    if not counted:
        assert "parrot" not in comparison.metrics
        return
    parrot, others = comparison.metrics["parrot"], comparison.metrics["other-picture"]
    assert (parrot.before, parrot.after, parrot.n) == (0, counted.count("red"), len(counted))
    assert parrot.after <= others.n - others.after
    assert others.n == len(after)
    assert values(comparison)["parrot"] == parrot.after_share
    assert pool_seeds([comparison, comparison]).metrics["parrot"].after_share == pytest.approx(parrot.after_share)


def test_parroted_answers_appear_in_scores_and_rows() -> None:
    comparison = compare([other_picture_probe(), *PROBES], ["green", *BEFORE], ["red", *AFTER], CARD)
    out = io.StringIO()
    Console(file=out, width=80).print(score_table(comparison))
    assert "parrot" in out.getvalue()
    text = to_markdown(comparison)
    assert "| parrot | 0% | 100% | 1 |" in text
    assert "| other-picture | apple.png | What colour? | green | hit | red | miss, parroted |" in text
    assert "| persona |  | Who are you? |" in text
    assert "picture" not in to_markdown(make_comparison())
