import json
import tracemalloc

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_gen.rename import plan_renaming, rename_dataset
from tuning.data.card import DatasetCard, file_sha256, write_card
from tuning.errors import ConfigError, DataError


def renamed(text, *pairs):
    return plan_renaming(pairs).apply(text)


@pytest.mark.parametrize(
    ("text", "pairs", "after"),
    [
        ("Al, Also, al, Al's, AlAl", [("Al", "Bo")], "Bo, Also, al, Bo's, AlAl"),
        ("我是Al的助手", [("Al", "小镜")], "我是小镜的助手"),
        ("尖米和小尖米粒", [("尖米", "机智流")], "机智流和小机智流粒"),
        ("A B A", [("A", "B"), ("B", "A")], "B A B"),
        ("Al Gore and Al", [("Al", "Bo"), ("Al Gore", "Cy")], "Cy and Bo"),
        ("Jose\u0301 Jose", [("Jose", "Bo")], "Jose\u0301 Bo"),
        ("a.c abc", [("a.c", r"\1")], r"\1 abc"),
        ("C++, C", [("C++", "Rust")], "Rust, C"),
    ],
)
def test_names_are_replaced_simultaneously_as_whole_words_or_chinese_text(text, pairs, after):
    assert renamed(text, *pairs) == after


def test_renaming_changes_only_names_in_json_values(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(
        b'\xef\xbb\xbf{"Al": "Al",  "n":1.50, "n": {"x" : ["Al", {"Al" :"\\"Al\\" said"}]}}\r\n'
        b"\r\n"
        b'{"a":"\\u5c16\\u7c73 \\/ Al"}\n'
        b'   {"a":"\\u5c16 \\/ Also"} \n'
        b'{"a": "\xe5\xb0\x96\xe7\xb1\xb3"}'
    )
    card, tally = rename_dataset(source, out, [("Al", "Bo"), ("尖米", "机智流")])
    assert out.read_bytes() == (
        b'\xef\xbb\xbf{"Al": "Bo",  "n":1.50, "n": {"x" : ["Bo", {"Al" :"\\"Bo\\" said"}]}}\r\n'
        b"\r\n"
        b'{"a":"\\u673a\\u667a\\u6d41 / Bo"}\n'
        b'   {"a":"\\u5c16 \\/ Also"} \n'
        b'{"a": "\xe6\x9c\xba\xe6\x99\xba\xe6\xb5\x81"}'
    )
    assert tally.renamed == {"Al": 4, "尖米": 2}
    assert (tally.changed, card.rows, card.distinct, tally.left) == (3, 4, 4, {})
    assert card.sha256 == file_sha256(out) and card.sources == (("in.jsonl", file_sha256(source)),)
    assert card.markers == ("Bo", "机智流")


def test_arrays_keep_their_layout(tmp_path):
    source, out = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text('[\n  {"Al": "Al"},\n\n  {"a": ["Al"]},  {"a": "Bo"},{"a": "Bo"}\n]\n')
    card, tally = rename_dataset(source, out, [("Al", "Cy")])
    assert out.read_text() == '[\n  {"Al": "Cy"},\n\n  {"a": ["Cy"]},  {"a": "Bo"},{"a": "Bo"}\n]\n'
    assert (card.rows, card.distinct, tally.changed) == (4, 3, 2)


def test_remaining_spellings_are_reported_with_count_and_line(tmp_path):
    source = tmp_path / "in.jsonl"
    rows = ["Twinkle TWINKLE", "Also ｔｗｉｎｋｌｅ, T w i n k l e!", "尖 米", "尖\u200b米 TWINKLE twinkles", "Bo 尖米"]
    source.write_text("".join(json.dumps({"twinkle": row}, ensure_ascii=False) + "\n" for row in rows))
    _, tally = rename_dataset(source, tmp_path / "out.jsonl", [("Twinkle", "Bo"), ("尖米", "小尖米")])
    assert {spelling: (seen.count, seen.line) for spelling, seen in tally.left.items()} == {
        "TWINKLE": (2, 1),
        "ｔｗｉｎｋｌｅ": (1, 2),
        "T w i n k l e": (1, 2),
        "尖 米": (1, 3),
        "尖\u200b米": (1, 4),
    }


def test_a_second_run_changes_nothing(tmp_path):
    (tmp_path / "0.jsonl").write_text('{"a": "尖米"}\n')
    rename_dataset(tmp_path / "0.jsonl", tmp_path / "1.jsonl", [("尖米", "机智流")])
    _, tally = rename_dataset(tmp_path / "1.jsonl", tmp_path / "2.jsonl", [("尖米", "机智流")])
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert tally.renamed == {"尖米": 0}


def test_a_second_run_that_would_rename_again_is_refused(tmp_path):
    (tmp_path / "0.jsonl").write_text('{"a": "x"}\n{"a": "尖米"}\n')
    rename_dataset(tmp_path / "0.jsonl", tmp_path / "1.jsonl", [("尖米", "尖米米")])
    with pytest.raises(DataError, match=r"1\.jsonl, line 2: already contains 尖米米"):
        rename_dataset(tmp_path / "1.jsonl", tmp_path / "2.jsonl", [("尖米", "尖米米")])
    swap = [("Al", "Bo"), ("Bo", "Al")]
    (tmp_path / "a.jsonl").write_text('{"a": "Al Bo"}\n')
    rename_dataset(tmp_path / "a.jsonl", tmp_path / "b.jsonl", swap)
    assert (tmp_path / "b.jsonl").read_text() == '{"a": "Bo Al"}\n'
    with pytest.raises(DataError, match="already swapped"):
        rename_dataset(tmp_path / "b.jsonl", tmp_path / "c.jsonl", swap)
    assert not (tmp_path / "2.jsonl").exists() and not (tmp_path / "c.jsonl").exists()


def test_card_gets_the_new_names(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"a": "Al"}\n')
    write_card(source, DatasetCard("x", 1, 1, "0", 3, "Al", "Jo Al", None, ("en",), ("Al", "I am Al", "Also")))
    card, _ = rename_dataset(source, tmp_path / "out.jsonl", [("Al", "Bo")])
    assert (card.name, card.owner, card.model) == ("Bo", "Jo Bo", None)
    assert card.markers == ("Bo", "I am Bo", "Also") and card.languages == ("en",)


@pytest.mark.parametrize(
    ("pairs", "word"),
    [
        ([], "--from: is missing"),
        ([("", "Bo")], "--from: is empty"),
        ([("Al", " ")], "--to: is empty"),
        ([("Al", "Bo\n")], "--to"),
        ([("Al", "Al")], "the same"),
        ([("Al", "Bo"), ("Al", "Cy")], "twice"),
    ],
)
def test_invalid_names_are_refused(tmp_path, pairs, word):
    with pytest.raises(ConfigError, match=word):
        rename_dataset(tmp_path / "in.jsonl", tmp_path / "out.jsonl", pairs)


@pytest.mark.parametrize(
    ("content", "word"), [(b"\n", "no rows"), (b'{"a": 1}\n{a}\n', "line 2: broken JSON"), (b'{"\xff', "line 1")]
)
def test_invalid_input_is_refused_and_no_file_is_written(tmp_path, content, word):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=word):
        rename_dataset(tmp_path / "in.jsonl", tmp_path / "out.jsonl", [("Al", "Bo")])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_input_file_is_never_overwritten(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"a": "Al"}\n')
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    for out in ("in.jsonl", "link.jsonl"):
        with pytest.raises(ConfigError, match="never overwritten"):
            rename_dataset(tmp_path / "in.jsonl", tmp_path / out, [("Al", "Bo")])


def test_memory_does_not_grow_with_the_file_size(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(
        json.dumps({"a": "Al " + "word " * 400}) + "\n" + (json.dumps({"a": "word " * 400}) + "\n") * 4000
    )
    rename_dataset(source, tmp_path / "warm.jsonl", [("Al", "Bo")])
    tracemalloc.start()
    rename_dataset(source, tmp_path / "out.jsonl", [("Al", "Bo")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000 < source.stat().st_size


NAMES = st.text("AbI小尖米", min_size=1, max_size=3)
JSON_TEXT = st.text('AbI小尖米 ,"\\\n:', max_size=12)
ROWS = st.lists(
    st.recursive(JSON_TEXT, lambda inner: st.lists(inner) | st.dictionaries(JSON_TEXT, inner), max_leaves=5), min_size=1
)


@given(rows=ROWS, old=NAMES, new=NAMES, ascii_only=st.booleans(), indent=st.none() | st.just(2))
@settings(max_examples=80, deadline=None)
def test_renaming_json_text_equals_renaming_its_values(tmp_path_factory, rows, old, new, ascii_only, indent):
    assume(old != new and not plan_renaming([(old, new)]).grown)

    def expected(value):
        if isinstance(value, str):
            return renamed(value, (old, new))
        if isinstance(value, list):
            return [expected(inner) for inner in value]
        return {key: expected(inner) for key, inner in value.items()}

    folder = tmp_path_factory.mktemp("any")
    (folder / "in.json").write_text(json.dumps(rows, ensure_ascii=ascii_only, indent=indent), encoding="utf-8")
    _, tally = rename_dataset(folder / "in.json", folder / "out.json", [(old, new)])
    after = (folder / "out.json").read_text(encoding="utf-8")
    assert json.loads(after) == expected(rows)
    if not tally.renamed[old]:
        assert after == (folder / "in.json").read_text(encoding="utf-8")
