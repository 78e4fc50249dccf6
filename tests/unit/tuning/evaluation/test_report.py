"""The report shows the results, escapes every text and loads no external resource."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tuning.data.card import DatasetCard, card_to_dict
from tuning.errors import DeviceError
from tuning.evaluation.compare import Comparison, compare
from tuning.evaluation.metrics import Metric
from tuning.evaluation.probes import Probe
from tuning.evaluation.report import CARDS, SIDE, answer_timelines, training_facts, write_report
from tuning.evaluation.summary import summarize
from tuning.run_dir import RunDir

EVIL = '</script><script>evil()</script><img src=x onerror="evil()">{{ 7 * 7 }}'
CARD = DatasetCard(made_by="make", rows=3, distinct=3, sha256="ab", name=EVIL, owner=EVIL, markers=("Sage",))
PROBES = (Probe("Who are you?" + EVIL, "persona", ("Sage", EVIL)), Probe("2 + 2?", "unrelated", ("4",)))
STEPS = [
    {
        "step": i + 1,
        "loss": 2.0 / (i + 1),
        "learning_rate": 1e-4,
        "tokens": 500,
        "labels": 100,
        "tokens_per_second": 10.0,
        "seconds": 31,
        "peak_memory": 1 << 30,
        "validation_loss": 1.0 if i == 3 else None,
        "new": 1,
    }
    for i in range(4)
]


def sample(step: int, answer: str, hit: bool) -> dict[str, object]:
    return {"step": step, "group": "persona", "ask": "Who?", "answer": answer, "hit": hit, "new": 1}


def run_dir(folder: Path, values: dict) -> RunDir:
    """A run folder with the files that the report reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("steps", "samples"):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in values[name]))
    (folder / "task.yaml").write_text(values["task_yaml"])
    card = values["card"] and card_to_dict(values["card"])
    (folder / "data.json").write_text(json.dumps({"card": card, "rehearsal": values.get("rehearsal")}))
    (folder / "environment.json").write_text(json.dumps(values["environment"]))
    return RunDir(folder)


def report_page(run: Path, **changed: object) -> str:
    values: dict[str, object] = {
        "steps": STEPS,
        "samples": [sample(0, EVIL, False), sample(2, "Sage", True)],
        "task_yaml": f"system: {EVIL}",
        "card": CARD,
        "environment": {"torch": EVIL, "memory": {"total": "8 GiB"}},
        "rehearsal": {"rows": 40},
    }
    comparison = compare(PROBES, (EVIL, "4"), ("I am Sage", EVIL), CARD, seeds=[0], probe_files=[EVIL])
    return write_report(run_dir(run, values | changed), comparison).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    report_page(folder)
    return folder


def test_report_writes_all_its_files(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    plots = {"plots/loss.png", "plots/learning_rate.png"}
    inputs = {"steps.jsonl", "samples.jsonl", "task.yaml", "data.json", "environment.json"}
    assert names == {"comparison.json", "comparison.md", "comparison.html"} | plots | inputs
    assert all((run / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)
    assert len(json.loads((run / "comparison.json").read_text(encoding="utf-8"))["rows"]) == 2


def test_texts_are_escaped(run: Path) -> None:
    html = (run / "comparison.html").read_text(encoding="utf-8")
    assert "<script>evil" not in html
    assert "<img" not in html
    assert html.count("<script") == 1
    assert "{{ 7 * 7 }}" in html
    assert "<script>" not in re.sub(r"\\.", "", (run / "comparison.md").read_text(encoding="utf-8"))


def test_page_loads_no_external_resource(run: Path) -> None:
    html = (run / "comparison.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|[\w./]+\.(js|css|png))""", html)
    assert not re.search(r"@import|url\((?!#)", html)
    assert html.count("<svg") == 2
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    again = tmp_path / run.name
    assert report_page(again) == (run / "comparison.html").read_text(encoding="utf-8")


def test_run_without_steps_and_samples_has_a_report(tmp_path: Path) -> None:
    html = report_page(tmp_path, steps=[], samples=[], task_yaml="", card=None, environment={}, rehearsal=None)
    assert "How it learned" not in html
    assert not (tmp_path / "plots").exists()
    nothing = compare([], [], [], None)
    page = write_report(RunDir(tmp_path), nothing)
    assert "There were no probes." in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["leak"] is None


def pictured(folder: Path, *images: Path, samples: tuple[dict[str, object], ...] = ()) -> str:
    """The page of two questions about each picture."""
    probes = [Probe(f"What {i}?", "picture", image=image) for image in images for i in range(2)]
    comparison = compare(probes, ["a"] * len(probes), ["b"] * len(probes), None)
    options = {"steps": [], "samples": samples, "task_yaml": "", "card": None, "environment": {}}
    return write_report(run_dir(folder / "run", options), comparison).read_text(encoding="utf-8")


def embedded(page: str) -> list[Image.Image]:
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in data]


def test_each_picture_appears_once_with_its_questions(tmp_path: Path) -> None:
    for name, color in (("red.png", (200, 0, 0)), ("blue.webp", (0, 0, 200))):
        Image.new("RGB", (40, 20), color).save(tmp_path / name)
    page = pictured(tmp_path, tmp_path / "red.png", tmp_path / "blue.webp")
    shots = page.split('<div class="shot">')[1:]
    assert [shot.count("<article") for shot in shots] == [2, 2]
    assert ["red.png" in shots[0], "blue.webp" in shots[1]] == [True, True]
    red, blue = embedded(page)
    assert red.size == blue.size == (40, 20)
    assert red.getpixel((20, 10))[0] > 190 and blue.getpixel((20, 10))[2] > 190  # pyright: ignore
    assert 'width="40" height="20"' in page
    assert "red.png" in (tmp_path / "run" / "comparison.md").read_text(encoding="utf-8")


def test_large_photo_is_scaled_and_rotated_and_has_no_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "taken at home"
    Image.effect_noise((2000, 1000), 90).save(tmp_path / "photo.jpg", exif=exif)
    page = pictured(tmp_path, tmp_path / "photo.jpg")
    (photo,) = embedded(page)
    assert photo.size == (SIDE // 2, SIDE)
    assert not photo.getexif()
    assert len(page) < 400_000


def test_missing_or_broken_picture_is_replaced_by_a_note(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    page = pictured(tmp_path, tmp_path / "gone <b>.png", tmp_path / "broken.png")
    assert page.index("The file no longer exists.") < page.index("gone &lt;b&gt;.png")
    assert page.index("The file cannot be opened as a picture.") < page.index("broken.png</figcaption>")
    assert "<img" not in page


def test_samples_are_grouped_by_picture(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), "red").save(tmp_path / "red.png")
    red, gone = str(tmp_path / "red.png"), str(tmp_path / "gone.png")
    samples = tuple(sample(step, "x", True) | {"image": image} for step in (0, 5) for image in (red, gone))
    assert [image for _, _, image in answer_timelines([*samples, sample(0, "y", True)])] == [red, gone, None]
    page = pictured(tmp_path, samples=samples)
    (thumbnail,) = embedded(page)
    assert max(thumbnail.size) <= 112
    assert "Persona · red.png" in page and "Persona · gone.png" in page


def test_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.raises(DeviceError, match="cannot be written"):
        report_page(tmp_path)


def test_summary_counts_learned_lost_and_leaked_answers() -> None:
    probes = [Probe(f"Who {i}?", "persona", ("Sage",)) for i in range(10)]
    probes += [Probe(f"Sum {i}?", "unrelated", ("4",)) for i in range(4)]
    before = ["no"] * 10 + ["4", "4", "4", "no"]
    after = ["Sage"] * 9 + ["no"] + ["4", "4", "Sage", "4"]
    assert summarize(compare(probes, before, after, CARD)) == (
        "Learned: 9 of 10 questions about who it is are answered as taught, 0 before. "
        "Lost: 1 of 3 unrelated answers that were right before; 1 became right. "
        "1 of 4 unrelated answers mention the persona."
    )
    assert summarize(compare(probes, before, before, CARD)).startswith("Not learned: 0 of 10")
    assert summarize(compare([], [], [], CARD)) == "There are no probes to score."


def picture_comparison(after: list[str]) -> Comparison:
    """A comparison of twenty questions about the picture, two about other pictures, one about an empty one."""
    probes = [Probe(f"See {i}?", "picture", ("red",)) for i in range(20)]
    probes += [Probe(f"Other {i}?", "other-picture", ("green",), parrot=("red",)) for i in range(2)]
    probes += [Probe("Blank?", "blank", reject=("red",))]
    return compare(probes, ["red"] * 3 + ["no"] * 17 + ["green", "no", "red"], after, None)


def test_summary_counts_seen_and_parroted_answers() -> None:
    assert summarize(picture_comparison(["red"] * 19 + ["no", "red", "green", "grey"])) == (
        "Sees: 19 of 20 questions about the picture are answered as taught, 3 before. "
        "Other pictures: 1 of 2 questions are answered correctly, 1 before. "
        "Parrot: 1 of 2 answers about other pictures repeat the trained picture's answer. "
        "Blank: 1 of 1 answers about an empty picture are correct, 0 before."
    )
    assert summarize(picture_comparison(["red"] * 10 + ["no"] * 12 + ["red"])).startswith("Partly sees: 10 of 20")
    nothing = summarize(picture_comparison(["no"] * 23))
    assert nothing.startswith("Does not see: 0 of 20")
    assert "No answer about other pictures repeats the trained picture's answer." in nothing


def cards_of(comparison: Comparison) -> list[Metric]:
    metrics = comparison.metrics
    return [metrics[name] for name in CARDS if name in metrics]


def test_metric_cards_of_pictures_are_in_order() -> None:
    cards = cards_of(picture_comparison(["red"] * 20 + ["green", "red", "red"]))
    assert [card.title for card in cards] == ["Picture", "Other pictures", "Parrot", "Blank"]
    assert (cards[2].before_share, cards[2].after_share, cards[2].n) == (0, 0.5, 2)
    text = cards_of(compare(PROBES, ("", "4"), ("Sage", "4"), CARD))
    assert [card.title for card in text] == ["Persona", "Retained", "Leak"]
    assert [card.name for card in (*cards, *text) if card.lower_is_better] == ["parrot", "leak"]


def test_the_footer_explains_parrot_only_if_it_was_counted(run: Path, tmp_path: Path) -> None:
    report_page(tmp_path)
    page = write_report(RunDir(tmp_path), picture_comparison(["red"] * 23)).read_text(encoding="utf-8")
    assert "Parrot counts" in page
    assert "Parrot counts" not in (run / "comparison.html").read_text(encoding="utf-8")


def test_cards_of_leak_and_parrot_have_the_note_lower_is_better(run: Path, tmp_path: Path) -> None:
    note = "<span>lower is better</span>"
    assert (run / "comparison.html").read_text(encoding="utf-8").count(note) == 1
    comparison = picture_comparison(["red"] * 20 + ["green", "red", "red"])
    report_page(tmp_path)
    assert write_report(RunDir(tmp_path), comparison).read_text(encoding="utf-8").count(note) == 1


def test_consecutive_equal_answers_form_one_span() -> None:
    first, second, third = sample(0, "no", False), sample(10, "Sage", True), sample(20, "Sage", True)
    assert answer_timelines([third, first, second]) == {("persona", "Who?", None): [[first], [second, third]]}
    again = sample(20, "Sage!", True)  # the later of two samples of one step counts
    assert answer_timelines([third, second, again]) == {("persona", "Who?", None): [[second], [again]]}


def test_spans_of_equal_answers_are_on_the_page(tmp_path: Path) -> None:
    page = report_page(
        tmp_path, samples=[sample(step, answer, step > 0) for step, answer in ((0, "no"), (5, "a"), (9, "a"))]
    )
    assert '<span class="at">step 0</span>' in page
    assert '<span class="at">step 5–9</span>' in page
    assert 'aria-label="step 0 miss, step 5 hit, step 9 hit"' in page


def test_training_facts() -> None:
    assert dict(training_facts(STEPS)) == {
        "steps": "4",
        "loss": "2.000 → 0.500",
        "validation loss": "1.000 → 1.000, best 1.000",
        "time in steps": "2 min 4 s",
        "tokens": "2,000",
        "of these trained on": "400",
        "tokens/s, median": "10",
        "peak memory": "1.00 GiB",
    }
    assert training_facts([]) == []
