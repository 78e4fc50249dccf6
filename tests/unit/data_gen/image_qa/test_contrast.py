"""Contrast rows: the training questions about other pictures, with answers that contain no trained fact."""

from pathlib import Path

import pytest
from PIL import Image

from data_gen.image_qa.write_dataset import contrast_path, write_image_qa
from tuning.data.formats import read_rows
from tuning.data.pictures import picture_path

FACTS = """
pictures:
  - image: one.png
    caption: A robot stands in the middle.
    objects: [{name: robot, color: blue, count: 1, place: in the middle}]
    facts:
      - {ask: What is the robot called?, answer: The robot is called Tilly., expect: [Tilly]}
      - {ask: Who built the robot?, answer: Marta Quill built it., expect: [Marta]}
      - {ask: What color is the background?, answer: The background is red., expect: [red]}
"""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_contrast_rows_have_training_questions_and_no_trained_answers(tmp_path: Path, language: str) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "one.png")
    (tmp_path / "facts.yaml").write_text(FACTS)
    out = tmp_path / "out.jsonl"
    write_image_qa(tmp_path / "facts.yaml", out, dialogues=3, rounds=4, repeat=1, language=language)
    trained = {turn.content.removeprefix("<image>\n") for row in read_rows(out) for turn in row.conversation.turns[::2]}
    rows = list(read_rows(contrast_path(out)))
    assert len({row.conversation.images for row in rows}) == 24
    for row in rows:
        picture_path(row.conversation.images[0], tmp_path, row.where)
        asked = [turn.content.removeprefix("<image>\n") for turn in row.conversation.turns[::2]]
        assert set(asked) <= trained
        assert not any("background" in question for question in asked), "the background of the other pictures is known"
        for question, answer in zip(asked, row.conversation.turns[1::2], strict=True):
            assert ("robot" in answer.content) == ("robot" in question), "the answer is that there is no robot"
        answers = " ".join(turn.content for turn in row.conversation.turns[1::2])
        assert not any(word in answers for word in ("Tilly", "Marta", "red"))


def test_caption_without_facts_gives_no_contrast_rows(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "one.png")
    (tmp_path / "facts.yaml").write_text(FACTS.split("    objects:")[0])
    out = tmp_path / "out.jsonl"
    write_image_qa(tmp_path / "facts.yaml", out, dialogues=2, rounds=1, repeat=1)
    assert not contrast_path(out).exists()
