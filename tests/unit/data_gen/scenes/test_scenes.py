"""Rows and probes of scenes agree with the picture in places, colors and counts."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from data_gen.scenes.dialogues import NUMBERS, make_dialogue
from data_gen.scenes.emoji import COLORS, GRAY, MIN_COLOR_SHARE, color_name, colorize, load_sprite
from data_gen.scenes.nouns import Noun, emoji_files, read_nouns
from data_gen.scenes.render import make_renderer
from data_gen.scenes.scene import (
    BACKGROUNDS,
    MIN_SIDE,
    PLACES,
    SIMILAR_COLORS,
    SIZE,
    draw_scene,
    plan_objects,
    plan_scene,
)
from data_gen.scenes.write_dataset import PROBE_FILES, place_words, write_scene_facts, write_scene_probes, write_scenes
from tuning.data.card import file_sha256, read_card
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN
from tuning.data.pictures import open_picture
from tuning.errors import ConfigError, DataError
from tuning.evaluation.probes import Probe, is_hit, mentions, read_probes
from tuning.paths import shipped_file

KNOWN = ("apple", "ball", "cat", "dog", "egg", "fox", "goat", "hat", "key", "mouse", "unicorn", "tree")
UNSEEN = ("iron", "jar", "kite", "lamp", "nest", "owl", "pen", "queen")
FILLS = ((220, 20, 30), (30, 90, 220), (20, 160, 60), (250, 215, 30), (150, 150, 150), (128, 40, 170))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary and a sprite for each noun; every third sprite has two colors, so no color dominates."""
    root = tmp_path_factory.mktemp("material")
    (root / "emoji").mkdir()
    lines = []
    for group, names in (("known", KNOWN), ("unseen", UNSEEN)):
        lines.append(f"{group}:")
        for number, name in enumerate(names):
            hexcode = f"{group[0]}{number:03d}"
            picture = Image.new("RGBA", (120, 100))
            pen = ImageDraw.Draw(picture)
            pen.ellipse((10, 10, 110, 90), FILLS[number % len(FILLS)])
            if number % 3 == 0:
                pen.rectangle((40, 20, 80, 90), FILLS[(number + 1) % len(FILLS)])
            picture.save(root / "emoji" / f"{hexcode}.webp", lossless=True)
            plural = ", plural: mice" if name == "mouse" else ""
            lines.append(f"  {name}: {{pictures: [{hexcode} {name}let], also: [{name}ish]{plural}}}")
    (root / "nouns.yaml").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def material(folder: Path) -> tuple[tuple[Noun, ...], dict[str, Path]]:
    nouns = read_nouns(folder / "nouns.yaml")["known"]
    return nouns, emoji_files(folder / "emoji", nouns)


def turns_of(row: dict) -> list[tuple[str, str]]:
    texts = [message["content"].replace(f"{DEFAULT_IMAGE_TOKEN}\n", "") for message in row["messages"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


# Files


def test_same_seed_gives_the_same_bytes_for_any_number_of_processes(folder: Path, tmp_path: Path) -> None:
    made = {}
    for name, processes in (("alone", 1), ("two", 2)):
        out = tmp_path / name / "scenes.jsonl"
        card = write_scenes(out, folder / "emoji", folder / "nouns.yaml", count=120, seed=3, processes=processes)
        assert card == read_card(out)
        assert (card.rows, card.sha256) == (120, file_sha256(out))
        pictures = sorted(out.with_suffix("").rglob("*.jpg"))
        made[name] = [card.sha256, *map(file_sha256, pictures)]
        assert len(pictures) == 120
    assert made["alone"] == made["two"]
    other = write_scenes(tmp_path / "o.jsonl", folder / "emoji", folder / "nouns.yaml", count=120, seed=4, processes=1)
    assert other.sha256 != made["alone"][0]


def test_rows_are_complete_and_never_mention_unseen_nouns(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scenes.jsonl"
    write_scenes(out, folder / "emoji", folder / "nouns.yaml", count=150, processes=1)
    text = out.read_text()
    assert not [name for name in UNSEEN if mentions(text, name) or mentions(text, f"{name}s")]
    firsts = set()
    for row in map(json.loads, text.splitlines()):
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and 3 <= len(roles) // 2 <= 6
        assert row["messages"][0]["content"].startswith(f"{DEFAULT_IMAGE_TOKEN}\n")
        assert sum(message["content"].count(DEFAULT_IMAGE_TOKEN) for message in row["messages"]) == 1
        assert open_picture(tmp_path / row["images"][0], "row").size == (SIZE, SIZE)
        answers = [answer for _, answer in turns_of(row)]
        assert len(set(answers)) == len(answers) and all(re.fullmatch(r"[A-Z][^{}]*\.", each) for each in answers)
        firsts.add(turns_of(row)[0][0].split()[0])
    assert firsts >= {"What", "Where", "How", "Is", "Which", "Describe"}


def test_interrupted_run_leaves_no_dataset_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "scenes.jsonl"
    write_scenes(out, folder / "emoji", folder / "nouns.yaml", count=2, processes=1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data_gen.scenes.render.draw_scene", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(out, folder / "emoji", folder / "nouns.yaml", count=2, seed=9, processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
    write_scenes(out, folder / "emoji", folder / "nouns.yaml", count=2, seed=9, processes=1)
    assert len(out.read_text().splitlines()) == 2


def test_pictures_are_distributed_over_subfolders(folder: Path, tmp_path: Path) -> None:
    renderer = make_renderer(folder / "emoji", folder / "nouns.yaml", "known", tmp_path / "s", count=1001, seed=0)
    scene = plan_scene(random.Random(0), renderer.nouns, renderer.files)
    assert renderer.save(random.Random(0), scene, 1000) == "s/001/001000.jpg"
    assert (tmp_path / "s/001/001000.jpg").exists()


@pytest.mark.parametrize("objects", ["known", "unseen"])
def test_probes_expect_nouns_and_colors_of_the_scene(folder: Path, tmp_path: Path, objects: str) -> None:
    asked = write_scene_probes(
        tmp_path, folder / "emoji", folder / "nouns.yaml", count=60, objects=objects, processes=1
    )
    files = {name: read_probes(tmp_path / name) for name in PROBE_FILES}
    assert asked == {name: len(probes) for name, probes in files.items()}
    assert asked["objects.yaml"] == asked["places.yaml"] == 60 > asked["colours.yaml"] > 30
    named = {name for probe in files["objects.yaml"] for name in probe.expect}
    assert named & set(KNOWN if objects == "known" else UNSEEN)
    assert not named & set(UNSEEN if objects == "known" else KNOWN)
    for probe in files["colours.yaml"]:
        assert len(probe.expect) == 1 and {*probe.expect, *probe.reject} == set(COLORS)


def test_place_probe_is_hit_only_by_its_place() -> None:
    for place in PLACES:
        expect, reject = place_words(place)
        probe = Probe("Where is it?", "picture", tuple(expect), tuple(reject))
        assert [other for other in PLACES if is_hit(f"The dog is {other}.", probe)] == [place]


def test_rows_and_probes_have_no_common_scene(folder: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "s.jsonl", folder / "emoji", folder / "nouns.yaml", count=40, processes=1)
    write_scene_probes(tmp_path / "p", folder / "emoji", folder / "nouns.yaml", count=40, processes=1)
    rows, probes = ({file_sha256(file) for file in (tmp_path / name).rglob("*.jpg")} for name in ("s", "p"))
    assert len(rows) == len(probes) == 40 and not rows & probes


def test_scene_facts_are_valid_input_of_image_qa(folder: Path, tmp_path: Path) -> None:
    from data_gen.image_qa.facts import read_facts

    write_scene_facts(tmp_path / "f.yaml", folder / "emoji", folder / "nouns.yaml", count=12)
    pictures = read_facts(tmp_path / "f.yaml")
    assert len(pictures) == 12
    for picture in pictures:
        assert picture.caption and picture.facts and not {thing.name for thing in picture.objects} & set(picture.absent)
        for thing in picture.objects:
            assert (thing.color or "") in picture.caption and (thing.place or "") in picture.caption


# Answers and layout


@given(key=st.integers(0, 10**9))
def test_answers_agree_with_the_layout(material: tuple[tuple[Noun, ...], dict[str, Path]], key: int) -> None:
    nouns, files = material
    rng = random.Random(key)
    scene = plan_scene(rng, nouns, files)
    by_name = {name: thing for thing in scene.objects for name in (thing.noun.name, thing.noun.plural)}
    conversation = make_dialogue(rng, scene, nouns, "a.jpg")
    texts = [turn.content for turn in conversation.turns]
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        if found := re.fullmatch(r"(?:The|Yes, the|No, the) (\w+) (?:is|are) (\w+)\.", answer):
            wanted = scene.background if found[1] == "background" else by_name[found[1]].color
            assert found[2] == wanted
            if answer.startswith(("Yes", "No")):
                assert answer.startswith("Yes") == (question.split()[-1] == f"{found[2]}?")
        elif found := re.fullmatch(r"(?:The|Yes, the|No, the) (\w+) (is|are) ((?:in|on|at) .*)\.", answer):
            thing = by_name[found[1]]
            assert re.split(r", | and ", found[3]) == list(thing.places) and (found[2] == "is") == (thing.count == 1)
        elif found := re.fullmatch(r"There (?:is|are) (no|one|two|three) (\w+)\.", answer):
            thing = by_name.get(found[2])
            total = scene.total if found[2].startswith("object") else thing.count if thing else 0
            assert NUMBERS.index(found[1]) == total
        elif found := re.fullmatch(rf"There is an? (\w+) ({'|'.join(PLACES)})\.", answer):
            assert found[2] in by_name[found[1]].places
        elif found := re.fullmatch(r"Yes, there (?:is|are) (an?|two|three) (\w+)( .*)?\.", answer):
            thing = by_name[found[2]]
            assert thing.count == (NUMBERS.index(found[1]) if found[1] in NUMBERS else 1)
            assert (found[3] or f" {thing.places[0]}") == f" {thing.places[0]}"
        elif found := re.fullmatch(r"There is nothing (.*)\.", answer):
            assert found[1] not in {place for thing in scene.objects for place in thing.places}
        elif answer.startswith("No, there is no"):
            assert answer.split()[4].strip(".") not in by_name
        else:  # a list of all objects
            assert all(re.search(rf"\b({thing.noun.name}|{thing.noun.plural})\b", answer) for thing in scene.objects)


@given(key=st.integers(0, 10**9))
def test_objects_have_distinct_places_and_visible_colors(
    material: tuple[tuple[Noun, ...], dict[str, Path]], key: int
) -> None:
    nouns, files = material
    scene = plan_scene(random.Random(key), nouns, files)
    assert 1 <= scene.total <= 3
    places = [place for thing in scene.objects for place in thing.places]
    assert len(set(places)) == len(places) and len({thing.noun.name for thing in scene.objects}) == len(scene.objects)
    for thing in scene.objects:
        assert thing.color != scene.background
        assert thing.color is None or frozenset((thing.color, scene.background)) not in SIMILAR_COLORS
        assert thing.painted or thing.color == load_sprite(files[thing.hexcode]).color


@given(key=st.integers(0, 10**6), counts=st.sampled_from([(1,), (2,), (3,), (1, 1), (2, 1), (1, 1, 1)]))
def test_drawn_objects_lie_in_their_planned_places(
    material: tuple[tuple[Noun, ...], dict[str, Path]], key: int, counts: tuple[int, ...]
) -> None:
    """Compares the center of each pasted sprite with the cell of its place."""
    nouns, files = material
    scene = plan_objects(random.Random(key), nouns, files, counts)
    seen: list[tuple[tuple[int, int], Image.Image]] = []

    def record_paste(self: Image.Image, cut: Image.Image, corner: tuple[int, int], mask: Image.Image) -> None:
        seen.append((corner, cut))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "paste", record_paste)
        draw_scene(random.Random(key), scene, files)
    places = [place for thing in scene.objects for place in thing.places]
    assert len(seen) == len(places) == scene.total
    for place, ((x, y), cut) in zip(places, seen, strict=True):
        column, row = PLACES[place]
        assert max(cut.size) >= MIN_SIDE
        assert 0 <= x <= SIZE - cut.width and 0 <= y <= SIZE - cut.height
        assert (x + cut.width / 2) * 3 // SIZE == column and (y + cut.height / 2) * 3 // SIZE == row


# Colors


@pytest.mark.parametrize("name", [*COLORS, "gray"])
def test_background_colors_have_their_names(name: str) -> None:
    assert color_name(*BACKGROUNDS[name]) == name


def test_ambiguous_colors_have_no_name() -> None:
    for between in ((0, 200, 200), (235, 190, 150), (200, 240, 40)):
        assert color_name(*between) is None


@pytest.mark.parametrize("name", COLORS)
@pytest.mark.parametrize("own", [("white", "gray"), ("navy", "black"), ("orange", "red")])
def test_painted_sprite_has_the_target_color(tmp_path: Path, name: str, own: tuple[str, str]) -> None:
    shaded = ImageOps.colorize(Image.radial_gradient("L"), *own)
    shaded.putalpha(Image.radial_gradient("L").point([255] * 170 + [0] * 86))
    shaded.save(tmp_path / "own.png")
    painted = colorize(load_sprite(tmp_path / "own.png").picture, name)
    painted.save(tmp_path / "painted.png")
    assert painted.getchannel("A").tobytes() == load_sprite(tmp_path / "own.png").picture.getchannel("A").tobytes()
    assert load_sprite(tmp_path / "painted.png").color == name


def test_sprite_has_a_color_only_above_the_minimum_share(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (100, 100), (*COLORS["red"], 255))
    for share, color in ((MIN_COLOR_SHARE - 0.1, None), (MIN_COLOR_SHARE + 0.1, "red")):
        picture.paste((*COLORS["blue"], 255), (0, round(share * 100), 100, 100))
        file = tmp_path / f"{share}.png"
        picture.save(file)
        assert load_sprite(file).color == color
        picture.paste((*COLORS["red"], 255), (0, 0, 100, 100))
    Image.new("RGBA", (100, 100), (*GRAY, 255)).save(tmp_path / "gray.png")
    assert load_sprite(tmp_path / "gray.png").color is None


# Shipped files and refused input


def test_shipped_vocabulary_has_disjoint_known_and_unseen_nouns() -> None:
    nouns = read_nouns(shipped_file("data/scene-nouns.yaml"))
    assert 150 <= len(nouns["known"]) <= 220 and len(nouns["unseen"]) == 30
    known = {word for noun in nouns["known"] for word in (noun.name, *noun.also)}
    overlap = {noun.name for noun in nouns["unseen"]} & known
    assert not overlap, "an unseen noun is also a name of a known noun"
    assert not {noun.name for noun in nouns["known"]} & {*BACKGROUNDS, "object", "background"}


def test_shipped_pictures_are_readable_and_below_one_megabyte() -> None:
    from data_gen.image_qa.facts import read_facts

    counts = {name: len(read_facts(shipped_file(f"pictures/{name}.yaml"))) for name in ("workshop", "others", "probes")}
    assert counts == {"workshop": 1, "others": 24, "probes": 10}
    assert sum(file.stat().st_size for file in shipped_file("pictures").rglob("*.*")) < 1_000_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("known: [dog]", "known: must be a mapping"),
        ("known: {dog: 1f415}", "line 1: known.dog: must be a mapping; write {pictures: "),
        ("known: {dog: {pictures: []}}", "line 1: known.dog.pictures: is an empty list"),
        (
            "known: {dog: {pictures: [a], color: red}}",
            "line 1: known.dog.color: no such key; the keys are pict",
        ),
        ("known: {dog: {pictures: [a]}, cat: {pictures: [a]}}", "a is both dog and cat"),
        ("known: {dog: {pictures: [a]}}\nunseen: {dog: {pictures: [b]}}", "dog is both known and unseen"),
        ("nouns: {}", "line 1: nouns: no such key; write known"),
        ("known: {dog", "not valid YAML"),
        ("known: {dog: {pictures: [a]}}", "has 1 nouns"),
    ],
)
def test_invalid_vocabularies_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "n.yaml").write_text(text)
    with pytest.raises(DataError, match=reason):
        write_scenes(tmp_path / "s.jsonl", tmp_path, tmp_path / "n.yaml", count=1)


def test_invalid_options_are_refused(folder: Path, tmp_path: Path) -> None:
    nouns, emoji, out = folder / "nouns.yaml", folder / "emoji", tmp_path / "s.jsonl"
    with pytest.raises(ConfigError, match=r"end OUT in \.jsonl"):
        write_scenes(tmp_path / "s.json", emoji, nouns, count=1)
    with pytest.raises(ConfigError, match="--count 0"):
        write_scenes(out, emoji, nouns, count=0)
    with pytest.raises(ConfigError, match="no such folder"):
        write_scenes(out, tmp_path / "none", nouns, count=1)
    with pytest.raises(ConfigError, match="12 pictures are missing, the first is k000"):
        write_scenes(out, tmp_path, nouns, count=1)
    with pytest.raises(ConfigError, match=r"end OUT in \.yaml"):
        write_scene_facts(out, emoji, nouns, count=1)
    for hexcode, reason in (("k000", "cannot be read as a picture"), ("k001", "shows nothing")):
        broken = tmp_path / hexcode
        broken.mkdir()
        file = broken / "e.webp"
        Image.new("RGBA", (4, 4)).save(file) if "nothing" in reason else file.write_text("no")
        with pytest.raises(DataError, match=reason):
            load_sprite(file)
