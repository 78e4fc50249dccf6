import json
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen.repeat import repeat_dataset
from tuning.data.card import DatasetCard, file_sha256, write_card
from tuning.errors import ConfigError, DataError

PICTURES = [
    {"id": "1", "image": "oph.jpg", "conversations": [{"from": "human", "value": f"<image>\n问 {n}"}], "x": 1.50}
    for n in range(6)
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=6,
)


def dumped(rows):
    stream = StringIO()
    json.dump(rows, stream, ensure_ascii=False, indent=4)
    return stream.getvalue().encode()


def test_repeated_array_equals_the_output_of_json_dump(tmp_path):
    source, out = tmp_path / "unique.json", tmp_path / "repeated.json"
    source.write_text(json.dumps(PICTURES))
    card = repeat_dataset(source, out, 200)
    assert out.read_bytes() == dumped(PICTURES * 200)
    assert (card.rows, card.distinct, card.sha256) == (1200, 6, file_sha256(out))
    assert card.sources == (("unique.json", file_sha256(source)),)


@given(rows=st.lists(VALUES, min_size=1, max_size=4), number=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_any_repeated_array_equals_the_output_of_json_dump(tmp_path_factory, rows, number):
    folder = tmp_path_factory.mktemp("array")
    (folder / "in.json").write_text(json.dumps(rows))
    repeat_dataset(folder / "in.json", folder / "out.json", number)
    assert (folder / "out.json").read_bytes() == dumped(rows * number)


def test_jsonl_lines_are_copied_unchanged(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"a":  1.0}\r\n\r\n{"a": "\\u5c16"}')
    card = repeat_dataset(source, out, 3)
    assert out.read_bytes() == b'{"a":  1.0}\r\n\r\n{"a": "\\u5c16"}\n' * 3
    assert (card.rows, card.distinct) == (6, 2)


def test_json_array_is_detected_by_content_not_by_suffix(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n" + json.dumps(PICTURES, indent=1))
    repeat_dataset(tmp_path / "in.jsonl", tmp_path / "out.jsonl", 2)
    assert json.loads((tmp_path / "out.jsonl").read_text()) == PICTURES * 2


def test_card_is_copied_with_new_counts(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"a": 1}\n')
    write_card(source, DatasetCard("x", 1, 1, "0", seed=3, name="Pip", markers=("Pip",)))
    card = repeat_dataset(source, tmp_path / "out.jsonl", 2)
    assert (card.name, card.markers, card.seed, card.rows) == ("Pip", ("Pip",), 3, 2)
    assert card.made_by.startswith("twinlens data repeat ")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no rows"),
        (b"\n \n", "no rows"),
        (b"[]", "no rows"),
        (b'{"a": 1}\n{"a": \n', "in.json, line 2: broken JSON"),
        (b'[{"a": 1},\n{"a" 1}]', "in.json, line 2: broken JSON"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "in.json, line 2: byte 8 is not UTF-8"),
        (b'[1,\n"\xff"]', "in.json, line 2: byte 2 is not UTF-8"),
        (b'["\\ud800"]', "surrogate"),
        (b"[" * 100000, "nested too deeply"),
    ],
)
def test_invalid_input_is_refused_and_no_file_is_written(tmp_path, content, word):
    (tmp_path / "in.json").write_bytes(content)
    with pytest.raises(DataError, match=word):
        repeat_dataset(tmp_path / "in.json", tmp_path / "out.json", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def test_missing_input_and_zero_copies_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        repeat_dataset(tmp_path / "none.json", tmp_path / "out.json", 2)
    (tmp_path / "in.json").write_text("[1]")
    with pytest.raises(ConfigError, match="-n 0"):
        repeat_dataset(tmp_path / "in.json", tmp_path / "out.json", 0)


def test_input_file_is_never_overwritten(tmp_path):
    source = tmp_path / "in.jsonl.card.json"
    source.write_text("[1]")
    (tmp_path / "link.json").symlink_to(source)
    (tmp_path / "hard.json").hardlink_to(source)
    for out in (source, tmp_path / "link.json", tmp_path / "hard.json", tmp_path / "in.jsonl"):
        with pytest.raises(ConfigError, match="never overwritten"):
            repeat_dataset(source, out, 2)
    assert source.read_text() == "[1]"
