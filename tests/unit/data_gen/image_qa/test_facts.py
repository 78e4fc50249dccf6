import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from data_gen.image_qa.facts import Fact, Thing, read_facts
from tuning.errors import DataError

WHOLE = """pictures:
- image: a.png
  caption: A robot  on a
    bench.
  objects:
  - {name: robot, color: blue, count: 1, place: in the middle}
  - {name: mug}
  text: [LAB 7]
  facts:
  - {ask: What is it called?, answer: Tilly 🤖., source: the log, expect: [Tilly], also: [Its name?]}
  absent: [dog, bicycle]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "a.png")
    return tmp_path


def written(folder: Path, text: str, name: str = "facts.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(DataError) as raised:
        read_facts(path)
    assert raised.value.exit_code == 2
    return str(raised.value).splitlines()


def test_all_fields_are_read(folder):
    (picture,) = read_facts(written(folder, WHOLE))
    assert picture.path == folder / "a.png" and picture.where.endswith("facts.yaml, line 2")
    assert picture.caption == "A robot on a bench."
    assert picture.objects == (Thing("robot", "blue", 1, "in the middle"), Thing("mug"))
    assert picture.facts == (Fact("What is it called?", "Tilly 🤖.", "the log", ("Tilly",), ("Its name?",)),)
    assert (picture.text, picture.absent) == (("LAB 7",), ("dog", "bicycle"))


def test_json_and_yaml_give_the_same_facts(folder):
    from ruamel.yaml import YAML

    values = YAML(typ="safe").load(WHOLE)
    expected = read_facts(written(folder, WHOLE))[0]
    for indent in (None, "\t"):
        (picture,) = read_facts(written(folder, json.dumps(values, indent=indent), "facts.json"))
        assert (picture.objects, picture.facts, picture.absent) == (expected.objects, expected.facts, expected.absent)


def test_csv_rows_are_grouped_by_picture(folder):
    Image.new("RGB", (8, 8)).save(folder / "b.png")
    text = (
        "\ufeffimage;caption;name;color;count;place;text;ask;answer;source;absent\r\n"
        "a.png;Two, on a bench.;robot;blue;1;;;;;;dog\r\n"
        ';;mug;;3;on the left;LAB 7;"Whose\r\nis it?";Ada\'s.;the log;\r\n'
        "\r\n"
        "b.png;A bench.;;;;;;;;;\r\n"
        "a.png;Two, on a bench.;robot;blue;1;;EXIT;Why?;Because.;;\r\n"
    )
    first, second = read_facts(written(folder, text, "facts.csv"))
    assert (first.caption, second.caption) == ("Two, on a bench.", "A bench.")
    assert first.objects == (Thing("robot", "blue", 1), Thing("mug", None, 3, "on the left"))
    assert first.facts == (Fact("Whose is it?", "Ada's.", "the log"), Fact("Why?", "Because."))
    assert (first.text, first.absent) == (("LAB 7", "EXIT"), ("dog",))


@pytest.mark.parametrize(
    ("entry", "line", "words"),
    [
        ("{caption: A bench.}", 2, "image: is missing"),
        ("{image: gone.png, caption: A bench.}", 2, "no such picture"),
        ("{image: ../a.png, caption: A bench.}", 2, "leads out of"),
        ("{image: a.png}", 2, "has no facts; add a caption"),
        ("{image: a.png, caption: ''}", 2, "caption: must be text and not empty"),
        ("{image: a.png, caption: [A bench.]}", 2, "caption: must be text"),
        ("{image: a.png, caption: See <image> here.}", 2, "contains <image>"),
        ("{image: a.png, caption: 'This is {name}.'}", 2, "contains {name}"),
        ("{image: a.png, caption: x, colour: red}", 2, "colour: no such key; the keys are image"),
        ("{image: a.png, objects: [{name: mug, colour: red}]}", 2, "objects.colour: no such key; write color"),
        ("{image: a.png, caption: x, caption: y}", 2, 'found duplicate key "caption"'),
        ("{image: a.png,\n   objects: mug}", 3, "objects: must be a list"),
        ("{image: a.png, objects: [mug]}", 2, "objects: must be a mapping; write {name: ..."),
        ("{image: a.png, objects: [{color: red}]}", 2, "objects.name: is missing"),
        (
            "{image: a.png, objects: [{name: mug, count: two}]}",
            2,
            "objects.count: must be a whole number from 1 to",
        ),
        ("{image: a.png, objects: [{name: mug, count: 0}]}", 2, "write an absent object under `absent`"),
        ("{image: a.png, objects: [{name: mug},\n  {name: the Mugs}]}", 3, "is at line 2 too"),
        ("{image: a.png, facts: [{ask: Why?}]}", 2, "facts.answer: is missing"),
        ("{image: a.png, facts: [{ask: Why?, answer: So.},\n  {ask: why?, answer: No.}]}", 3, "asked at line 2 too"),
        ("{image: a.png, facts: [{ask: Who?, answer: Ada., expect: [Eda]}]}", 2, "the answer contains none of Eda"),
        ("{image: a.png, objects: [{name: mug}], absent: [Mug]}", 2, "Mug is among the objects"),
        ("{image: a.png, caption: x, absent: [dog, a dog]}", 2, "absent: a dog appears twice"),
        ("{image: a.png, caption: x, text: LAB 7}", 2, "text: must be a list; write it in brackets"),
        ("a.png", 2, "must be a mapping; write {image: ..."),
    ],
)
def test_each_fault_is_reported_with_its_line_and_key(folder, entry, line, words):
    path = written(folder, f"pictures:\n- {entry}\n")
    assert any(f"{path}, line {line}" in fault and words in fault for fault in faults(path)), faults(path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("facts.yaml", "", "is empty"),
        ("facts.yaml", "pictures: []\n", "line 1: pictures: has no pictures"),
        ("facts.yaml", "- image: a.png\n", "line 1: pictures: has no pictures"),
        ("facts.yaml", "images:\n- {}\n", "line 1: images: no such key"),
        ("facts.yaml", "pictures:\n- {image: a.png\n- x", "line 3: not valid YAML"),
        ("facts.yaml", "pictures: " + "[" * 700, "nested too deeply"),
        ("facts.json", '{"pictures": ' + "[" * 100_000, "nested too deeply"),
        ("facts.json", '{"pictures": [\n{"image": }]}', "line 2: not valid JSON"),
        ("facts.txt", "pictures:", "unknown suffix"),
        ("facts.csv", "image,colour\na.png,red\n", "line 1: colour: no such column"),
        ("facts.csv", "image,caption\n,A bench.\n", "line 2: image: is missing"),
        ("facts.csv", "image,caption\na.png,A bench, a mug.\n", "line 2: has 3 cells for 2 columns"),
        ("facts.csv", "image,caption\na.png,one\na.png,two\n", "line 3: caption: appears twice"),
        ("facts.csv", "image,name,count\na.png,mug,1\n,pen,few\n", "line 3: objects.count: must be a whole number"),
    ],
)
def test_invalid_files_are_refused(folder, name, text, words):
    assert words in faults(written(folder, text, name))[0]


def broken_pictures() -> dict[str, bytes]:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return {"text.jpg": b"not a picture", "bomb.png": bomb, "empty.png": b""}


def test_all_faults_are_reported_together(folder):
    for name, content in broken_pictures().items():
        (folder / name).write_bytes(content)
    Image.effect_noise((64, 64), 50).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:900])
    names = ["text.jpg", "bomb.png", "empty.png", "cut.jpg", "gone.jpg", "../a.png"]
    entries = "".join(f"- {{image: {name}, caption: x, absent: dog}}\n" for name in names)
    path = written(folder, f"pictures:\n{entries}")
    reported = faults(path)
    for line, name in enumerate(names, 2):
        assert any(f"{path}, line {line}: " in fault and name in fault for fault in reported), name
        assert f"{path}, line {line}: absent: must be a list; write it in brackets, such as [dog]." in reported
    assert len(reported) == 2 * len(names)


def test_all_picture_formats_are_read(folder):
    picture = Image.new("RGB", (8, 8), "teal")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    picture.convert("P").save(folder / "palette.png", transparency=0)
    names = ["cmyk.jpg", "moving.gif", "palette.png"]
    text = "pictures:\n" + "".join(f"- {{image: {name}, caption: x}}\n" for name in names)
    assert [picture.image for picture in read_facts(written(folder, text))] == names
