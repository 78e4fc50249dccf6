"""Rules for hits and parroted answers, and errors of probe files."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.data.card import DatasetCard
from tuning.errors import DataError
from tuning.evaluation.probes import Probe, is_hit, is_parroted, mentions, read_probes

CARD = DatasetCard(made_by="", rows=1, distinct=1, sha256="", name="Sage", owner="Ana Ruiz")


@pytest.mark.parametrize(
    ("answer", "wanted", "expected"),
    [
        ("It is 4.", "4", True),
        ("It is 42.", "4", False),
        ("It is 4.5.", "4", False),
        ("It is 1,000.", "1", False),
        ("2,3,5,7", "5", True),
        ("I am SAGE!", "Sage", True),
        ("sausages", "Sage", False),
        ("Sage2", "Sage", False),
        ("我是Sage，你好", "Sage", True),
        ("在北京市", "北京", True),
        ("Ｐａｒｉｓ", "paris", True),
        ("Ana\n  Ruiz", "ana ruiz", True),
        ("the STRASSE", "Straße", True),
        ("use C++ here", "C++", True),
        ("cafe\u0301", "café", True),
        ("naïveté", "naïve", False),
        ("", "Sage", False),
    ],
)
def test_mentions(answer: str, wanted: str, expected: bool) -> None:
    assert mentions(answer, wanted) is expected


def test_hit_needs_any_of_expect_and_none_of_reject() -> None:
    probe = Probe("Who are you?", "persona", ("Sage", "Ana"), ("ChatGPT",))
    assert is_hit("I am Ana", probe)
    assert not is_hit("I am Sage, not ChatGPT", probe)
    assert not is_hit("I am nobody", probe)
    assert is_hit("anything", Probe("?", "unrelated"))


WORDS = st.text(alphabet="abcxyzéß0123456789", min_size=1, max_size=8)


@given(WORDS, WORDS, st.sampled_from([" ", ", ", "! ", "\n", "是", "_"]))
def test_mentions_matches_whole_words_only(word: str, other: str, gap: str) -> None:
    assert mentions(f"{other}{gap}{word}{gap}{other}", word)
    assert not mentions(word + other, word) or word in other


@given(st.text(alphabet="北京上海abc ", max_size=6), st.text(alphabet="北京上海", min_size=1, max_size=3))
def test_mentions_matches_cjk_text_anywhere(around: str, wanted: str) -> None:
    assert mentions(around + wanted + around, wanted)


@given(st.text(), st.text(min_size=1).filter(str.strip))
def test_mentions_matches_any_text_between_spaces(text: str, wanted: str) -> None:
    """A text between spaces is found in every answer; an empty answer contains no text."""
    assert mentions(f"{text} {wanted} {text}", wanted)
    assert not mentions("", wanted)


def write(folder: Path, text: str) -> Path:
    path = folder / "probes.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_are_read_as_text_and_placeholders_come_from_the_card(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"")
    text = "- ask: Is it {name}? {other}\n  group: persona\n  expect: [4, 1.10, yes, '{owner}']\n  image: cat.png\n"
    (probe,) = read_probes(write(tmp_path, text), CARD)
    assert probe == Probe("Is it Sage? {other}", "persona", ("4", "1.10", "yes", "Ana Ruiz"), (), tmp_path / "cat.png")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no probes"),
        ("[]", "has no probes"),
        ("ask: x", "has no probes"),
        ("- just text", "line 1: must be a mapping; write {ask: ..., group: ...}"),
        ("- {ask: x}", "line 1: group: is missing"),
        ("- ask: x\n  group: people", "line 2: group: Input should be 'persona', 'paraphrase', 'typo', 'picture'"),
        ("- ask: x\n  group: typo\n  expects: [a]", "line 3: expects: no such key; write expect"),
        ("- ask: x\n  group: typo\n  ask: y", 'line 3: not valid YAML (found duplicate key "ask")'),
        ("- {ask: ' ', group: typo}", "line 1: ask: must be text"),
        ("- {ask: ~, group: typo}", "line 1: ask: must be text"),
        ("- ask: x\n  group: typo\n  expect: a", "line 3: expect: must be a list"),
        ("- ask: x\n  group: typo\n  reject: []", "line 3: reject: is an empty list"),
        ("- ask: x\n  group: typo\n  expect: [a, '']", "line 3: expect: must be text"),
        ("- {ask: x, group: typo}\n- {ask: x, group: persona}", "line 2: ask: the same question is at line 1"),
        ("- {ask: x, group: typo, image: no.png}", "image: "),
        ("- ask: [", "not valid YAML"),
        ("- ask: \0", "not valid YAML"),
    ],
)
def test_error_of_an_invalid_file_has_path_line_and_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_probes(path, CARD)
    assert str(path) in str(error.value)
    assert reason in str(error.value)


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_probes(write(tmp_path, "- {ask: '', group: typo}\n- {ask: x, group: no}\n"), CARD)
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("card", [None, DatasetCard(made_by="", rows=1, distinct=1, sha256="", name="Sage")])
def test_placeholder_without_its_value_in_the_card_is_refused(tmp_path: Path, card: DatasetCard | None) -> None:
    path = write(tmp_path, "- ask: Who made you?\n  group: persona\n  expect: ['{owner}']\n")
    with pytest.raises(
        DataError, match=r"line 3: expect: \{owner\} needs .*`twinlens data persona`, or write the owner"
    ):
        read_probes(path, card)


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.yaml: cannot be read"):
        read_probes(tmp_path / "none.yaml")


def test_scoring_imports_no_torch() -> None:
    heavy = "{'torch', 'rich', 'jinja2', 'matplotlib'}"
    code = f"import sys, tuning.evaluation.compare, tuning.evaluation.report; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_picture_probes_are_read(tmp_path: Path) -> None:
    for name in ("door.png", "apple.png"):
        (tmp_path / name).write_bytes(b"")
    text = (
        "- {ask: What colour?, group: picture, image: door.png, expect: [red]}\n"
        "- {ask: What colour?, group: other-picture, image: apple.png, expect: [green], parrot: [red, '{name}']}\n"
        "- {ask: How many?, group: blank, image: apple.png, reject: [4]}\n"
    )
    door, apple = tmp_path / "door.png", tmp_path / "apple.png"
    assert read_probes(write(tmp_path, text), CARD) == (
        Probe("What colour?", "picture", ("red",), (), door),
        Probe("What colour?", "other-picture", ("green",), (), apple, ("red", "Sage")),
        Probe("How many?", "blank", (), ("4",), apple),
    )
    with pytest.raises(DataError, match="line 4: ask: the same question is at line 1"):
        read_probes(write(tmp_path, text + "- {ask: What colour?, group: picture, image: ./door.png}\n"), CARD)
    with pytest.raises(DataError, match="line 1: parrot: must be a list"):
        read_probes(write(tmp_path, "- {ask: x, group: other-picture, parrot: red}\n"), CARD)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("It is red.", True), ("Green, not red.", False), ("It is green.", False), ("I cannot tell.", False)],
)
def test_parroted_answer_has_the_trained_answer_and_not_the_expected_one(answer: str, expected: bool) -> None:
    assert is_parroted(answer, Probe("?", "other-picture", ("green",), (), None, ("red",))) is expected


@given(st.lists(st.sampled_from(["red", "green", "blue", "4", "not"])), st.sets(st.sampled_from(["red", "green", "4"])))
def test_no_answer_is_both_a_hit_and_parroted(words: list[str], parrot: set[str]) -> None:
    probe = Probe("?", "other-picture", ("green", "4"), ("blue",), None, tuple(sorted(parrot)))
    answer = " ".join(words)
    assert not (is_parroted(answer, probe) and is_hit(answer, probe))
    assert is_parroted(answer, probe) <= bool(parrot & set(words))
