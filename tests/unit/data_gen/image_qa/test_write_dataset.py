import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_gen.image_qa import grammar
from data_gen.image_qa.dialogues import make_dialogues
from data_gen.image_qa.facts import Fact, Picture, Thing
from data_gen.image_qa.teacher.client import Teacher
from data_gen.image_qa.teacher.generate import TeacherResult
from data_gen.image_qa.topics import read_bank, topics_of
from data_gen.image_qa.write_dataset import probes_path, write_image_qa
from tuning.data.card import file_sha256, read_card
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation, Turn
from tuning.data.formats import read_rows
from tuning.errors import ConfigError, DataError
from tuning.evaluation.probes import is_hit, mentions_any, read_probes

FACTS = """pictures:
- image: a.png
  caption: A small blue robot stands on a workbench between three red mugs and a lamp.
  objects:
  - {name: robot, color: blue, count: 1, place: in the middle}
  - {name: mug, color: red, count: 3, place: on the left}
  - {name: lamp, color: yellow, place: right}
  text: [LAB 7]
  facts:
  - ask: What is the robot called?
    answer: The robot is called Tilly.
    source: workshop log
    also: [Which name does the robot have?]
  - {ask: What is in the picture?, answer: Everything that Ada needs.}
  absent: [dog, bicycle]
"""
OTHERS = """pictures:
- image: b.png
  caption: A park.
  objects: [{name: dog, color: white}, {name: lamp, color: black, place: at the top}, {name: mug, color: red}]
  text: [KEEP OFF]
  absent: [robot]
- {image: a.png, caption: The picture that is trained on.}
"""
BOTH = pytest.mark.parametrize("language", ["en", "zh"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "green").save(tmp_path / "b.png")
    (tmp_path / "facts.yaml").write_text(FACTS, encoding="utf-8")
    (tmp_path / "others.yaml").write_text(OTHERS, encoding="utf-8")
    return tmp_path


def make(folder: Path, out: str, **options) -> Path:
    write_image_qa(folder / "facts.yaml", folder / out, others=folder / "others.yaml", **options)
    return folder / out


def questions(conversation: Conversation) -> list[str]:
    return [turn.content.removeprefix(f"{DEFAULT_IMAGE_TOKEN}\n") for turn in conversation.turns if turn.role == "user"]


words = st.text(st.sampled_from("abcdefgh ijKLé?'{}机器人"), min_size=1, max_size=12).filter(lambda text: text.strip())
names = st.sampled_from(
    "robot mug scissors grass box Tilly cup of tea|sheep|lady|机器人|杯子".replace("|", " ").split(" ")
)
things = st.builds(
    Thing,
    name=names,
    color=st.none() | st.sampled_from(["blue", "dark red", "蓝色", "orange and grey"]),
    count=st.none() | st.integers(1, 30),
    place=st.none() | st.sampled_from(["left", "on the table", "在左边", "it"]),
)
facts = st.builds(
    Fact,
    ask=words,
    answer=words,
    source=st.none() | words,
    expect=st.just(()),
    also=st.lists(words, max_size=2).map(tuple),
)
pictures = st.builds(
    Picture,
    image=st.just("a.png"),
    path=st.just(Path("a.png")),
    where=st.just("facts.yaml, line 2"),
    caption=st.none() | words,
    objects=st.lists(things, max_size=4, unique_by=lambda thing: thing.name).map(tuple),
    text=st.lists(words, max_size=2).map(tuple),
    facts=st.lists(facts, max_size=3).map(tuple),
    absent=st.lists(st.sampled_from(["dog", "boats", "狗"]), max_size=2, unique=True).map(tuple),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(pictures, st.sampled_from(["en", "zh"]), st.integers(1, 8), st.integers(1, 6), st.integers(0, 3))
def test_any_facts_give_complete_dialogues_or_are_refused(picture, language, number, rounds, seed):
    asked = [grammar.bare(ask).casefold() for fact in picture.facts for ask in (fact.ask, *fact.also)]
    assume(picture.caption or picture.objects or picture.facts)
    assume(len({" ".join(ask.split()) for ask in asked}) == len(asked))  # read_facts refuses these
    topics = topics_of(picture, language, ["house", "dog", "robot"])
    try:
        made = make_dialogues(topics, number, rounds, random.Random(seed), picture.where)
    except DataError as error:
        assert str(error).startswith("facts.yaml, line 2: ") and "--rounds" in str(error)
        return
    assert len(made) == number
    used = {(topic.kind, topic.subject) for dialogue in made for topic in dialogue.topics}
    for dialogue in made:
        spoken = [question.casefold() for question, _ in dialogue.pairs]
        assert len(spoken) == len(set(spoken)) == rounds
        assert all(question.strip() and answer.strip() for question, answer in dialogue.pairs)
    for topic in topics:
        if topic.needed and topic.kind not in ("absent", "color", "where", "count"):
            assert (topic.kind, topic.subject) in used
        if topic.kind in ("color", "where", "count"):
            assert used & {(topic.kind, topic.subject), ("about", topic.subject)}


@BOTH
def test_phrases_of_training_and_probes_are_disjoint(language):
    bank = read_bank(language)
    keys = ("questions", "plural", "follow_ups")
    trained = {text for phrases in bank.values() for key in keys for text in phrases.get(key, ())}
    held_out = {text for phrases in bank.values() for text in phrases.get("held_out", ())}
    assert not trained & held_out
    for kind, phrases in bank.items():
        assert set(phrases) <= {*keys, "held_out", "answers", "expect", "reject"}
        assert phrases["answers"] and ("questions" in phrases or kind in ("seen", "why", "unknown"))
        assert len(set(phrases.get("held_out", ()))) >= 2 or kind in ("seen", "unknown")


@pytest.mark.parametrize("language", ["en", "zh", "both"])
def test_probes_contain_no_training_question(folder, language):
    out = make(folder, "out.jsonl", repeat=1, language=language)
    asked = {question.casefold() for row in read_rows(out) for question in questions(row.conversation)}
    probes = read_probes(probes_path(out))
    assert not asked & {probe.ask.casefold() for probe in probes}
    assert {probe.group for probe in probes} == {"picture", "other-picture", "blank"}


def test_repeated_rows_have_distinct_ids(folder):
    out = make(folder, "out.json", repeat=3)
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert len(rows) == 18 and len({row["id"] for row in rows}) == 18
    assert {row["image"] for row in rows} == {"a.png"}
    conversations = [row.conversation for row in read_rows(out)]
    assert conversations[:6] == conversations[6:12] == conversations[12:] and len(set(conversations)) == 6
    for conversation in conversations[:6]:
        assert (
            sum(turn.content.count(DEFAULT_IMAGE_TOKEN) for turn in conversation.turns) == len(conversation.images) == 1
        )
        assert conversation.turns[0].content.startswith(f"{DEFAULT_IMAGE_TOKEN}\n") and len(conversation.turns) == 10
    lines = make(folder, "out.jsonl", repeat=3)
    assert [row.conversation for row in read_rows(lines)] == conversations


def test_dialogues_have_distinct_first_answers_and_contain_all_facts(folder):
    rows = [row.conversation for row in read_rows(make(folder, "out.jsonl", repeat=1))]
    assert len({row.turns[1].content for row in rows}) == 6
    answered = "\n".join(turn.content for row in rows for turn in row.turns if turn.role == "assistant")
    for fact in ("between three red mugs", "Tilly", "Ada", "LAB 7", "yellow", "on the right", "three", "no dog"):
        assert fact in answered
    assert "workshop log" in answered
    everything = [turn.content for row in rows for turn in row.turns]
    assert any(" it?" in text or " they?" in text for text in everything)  # refers back
    answers = [everything[i + 1] for i, text in enumerate(everything) if text.endswith("What is in the picture?")]
    assert set(answers) <= {"Everything that Ada needs."}  # a question of FACTS has only the answer of FACTS


def test_same_seed_gives_the_same_bytes(folder):
    def digests(**options) -> tuple[str, str]:
        out = make(folder, "out.json", **options)
        return file_sha256(out), file_sha256(probes_path(out))

    first = digests(seed=1)
    assert digests(seed=1) == first and digests(seed=2)[0] != first[0]


def test_card_has_command_and_sources(folder):
    out = make(folder, "out.json", repeat=2, seed=5)
    card = read_card(out)
    assert card and (card.rows, card.distinct, card.seed, card.sha256) == (12, 6, 5, file_sha256(out))
    assert dict(card.sources) == {name: file_sha256(folder / name) for name in ("facts.yaml", "a.png")}
    assert "image-qa" in card.made_by and "--others" in card.made_by


def test_probes_distinguish_correct_answers_from_parroted_ones(folder):
    probes = read_probes(probes_path(make(folder, "out.json")))
    trained = {turn.content for row in read_rows(folder / "out.json") for turn in row.conversation.turns}
    groups = {
        group: [probe for probe in probes if probe.group == group] for group in ("picture", "other-picture", "blank")
    }
    assert 20 <= len(groups["picture"]) <= 30 and len(groups["blank"]) == 12 and groups["other-picture"]
    for probe in groups["picture"]:
        assert probe.expect and any(is_hit(answer, probe) for answer in trained)
    for probe in groups["other-picture"]:
        assert probe.image and probe.image.resolve() == folder / "b.png"  # never the trained picture
        assert not set(probe.parrot) & set(probe.expect)
        assert probe.expect or probe.reject == probe.parrot != ()
    others = {probe.ask: probe for probe in groups["other-picture"]}
    lamps = [probe for ask, probe in others.items() if "lamp" in ask and "black" in probe.expect]
    assert lamps and all("yellow" in probe.parrot for probe in lamps)
    assert not any("red" in probe.parrot for probe in others.values())  # the other picture also contains red
    assert any(probe.expect == ("KEEP OFF",) and probe.parrot == ("LAB 7",) for probe in others.values())
    for probe in groups["blank"]:
        assert probe.reject and not probe.expect and probe.image and probe.image.name.startswith("blank.")


def test_probes_of_many_pictures_have_many_kinds(folder):
    entries = []
    for index in range(40):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
        objects = "[{name: cat, color: black, place: left}, {name: box, count: 2}]"
        entries.append(f"- {{image: {index}.png, caption: A cat., objects: {objects}}}\n")
    (folder / "facts.yaml").write_text("pictures:\n" + "".join(entries))
    probes = [
        probe for probe in read_probes(probes_path(make(folder, "out.json", repeat=1))) if probe.group == "picture"
    ]
    assert len(probes) == len({probe.image for probe in probes}) == 30
    assert len({probe.expect for probe in probes}) >= 5


def test_pictures_are_copied_upright_only_if_needed(folder):
    corner = Image.new("RGB", (40, 20), "white")
    corner.paste("red", (0, 0, 10, 10))
    exif = corner.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    corner.save(folder / "a.png", exif=exif)
    out = make(folder, "out.json", repeat=1)
    (stored,) = {image for row in read_rows(out) for image in row.conversation.images}
    assert stored == "out.pictures/a.png"
    with Image.open(folder / stored) as picture:
        assert picture.size == (20, 40) and not picture.getexif()
        assert picture.convert("RGB").getpixel((19, 0)) == (255, 0, 0)
    below = make(folder, "far/out.json", repeat=1)
    assert next(read_rows(below)).conversation.images == ("out.pictures/a.png",)
    assert all(probe.image and probe.image.exists() for probe in read_probes(probes_path(below)))


def test_teacher_dialogues_are_added(folder):
    turns = (
        Turn("user", f"{DEFAULT_IMAGE_TOKEN}\nWhere should I look for the lamp?"),
        Turn("assistant", "On the right."),
    )
    taught = TeacherResult(Teacher("http://localhost/v1", "eyes"), 1, [Conversation(turns, ("a.png",))])
    out = make(folder, "out.json", repeat=2, ask_teacher=lambda *_: taught)
    card = read_card(out)
    assert (card.teacher, card.taught, card.distinct) == ("eyes", 1, 7)
    assert card.made_by.endswith(" --teacher http://localhost/v1 --model eyes")
    rows = [row.conversation for row in read_rows(out)]
    assert len(rows) == 14 and rows[6].turns == turns and rows[6] == rows[13]
    assert turns[0].content.removeprefix(f"{DEFAULT_IMAGE_TOKEN}\n") not in {
        p.ask for p in read_probes(probes_path(out))
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dialogues": 1, "rounds": 3}, "raise --dialogues or --rounds"),
        ({"rounds": 100}, "give --rounds"),
        ({"rounds": 0}, "rounds 0"),
        ({"repeat": 0}, "repeat 0"),
        ({"language": "de"}, "language 'de'"),
        ({"row_format": "alpaca"}, "format 'alpaca'"),
    ],
)
def test_invalid_options_are_refused_and_no_file_is_written(folder, options, words):
    with pytest.raises((ConfigError, DataError), match=words):
        make(folder, "out.json", **options)
    assert not (folder / "out.json").exists() and not (folder / "out.pictures").exists()


def test_facts_file_is_never_overwritten(folder):
    (folder / "facts.json").write_text('{"pictures": [{"image": "a.png", "caption": "x"}]}')
    with pytest.raises(ConfigError, match="never overwritten"):
        write_image_qa(folder / "facts.json", folder / "facts.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cup of tea", "cups of tea"),
        ("box", "boxes"),
        ("lady", "ladies"),
        ("toy", "toys"),
        ("person", "people"),
        ("sheep", "sheep"),
        ("glass", "glasses"),
        ("bus", "buses"),
        ("scissors", "scissors"),
    ],
)
def test_plural_forms_are_correct_and_stable(name, expected):
    assert grammar.plural(name) == expected == grammar.plural(expected)


@pytest.mark.parametrize(
    ("thing", "full", "the"),
    [
        (Thing("robot", "orange"), "an orange robot", "the robot"),
        (Thing("mug", "red", 3), "three red mugs", "the mugs"),
        (Thing("grass", "green"), "some green grass", "the grass"),
        (Thing("a hour glass", None, 1), "an hour glass", "the hour glass"),
        (Thing("Tilly", "blue"), "Tilly", "Tilly"),
        (Thing("the Eiffel Tower"), "the Eiffel Tower", "the Eiffel Tower"),
        (Thing("trees"), "some trees", "the trees"),
        (Thing("brick", None, 25), "25 bricks", "the bricks"),
    ],
)
def test_noun_phrases_have_correct_articles_and_numbers(thing, full, the):
    fields = grammar.fields(thing, "en")
    assert (fields["full"], fields["the"]) == (full, the)


@pytest.mark.parametrize(
    ("ask", "answer", "expected"),
    [
        ("Who built the robot?", "Ada Brook built it in 2019.", ("Ada", "Brook", "2019")),
        ("Who built it?", "Ada built it.", ("Ada",)),
        ("What does it do?", "It sorts screws by size.", ("sorts", "screws", "size")),
        ("How many legs has it?", "It has four legs.", ("four",)),
        ("Is it old?", "Yes, it is.", ("Yes",)),
        ("机器人叫什么名字？", "机器人叫蒂莉。", ("蒂莉",)),
        ("谁造了它？", "它是2019年造的。", ("2019", "2019年")),
    ],
)
def test_fact_words_are_the_answer_words_that_the_question_does_not_contain(ask, answer, expected):
    assert grammar.fact_words(Fact(ask, answer)) == expected
    assert mentions_any(answer, expected)
