"""The report says what the rows say, escapes every text, and fetches nothing."""

import json
import re
from pathlib import Path

import pytest

from tuning.card import DatasetCard
from tuning.compare import compare, read_comparison
from tuning.errors import DeviceError
from tuning.probes import Probe
from tuning.report import Moment, stories, training_facts, verdict, write_report

EVIL = '</script><script>evil()</script><img src=x onerror="evil()">{{ 7 * 7 }}'
CARD = DatasetCard(made_by="make", rows=3, distinct=3, sha256="ab", name=EVIL, owner=EVIL, markers=("Sage",))
PROBES = (Probe("Who are you?" + EVIL, "persona", ("Sage", EVIL)), Probe("2 + 2?", "unrelated", ("4",)))
STEPS = [
    {"step": i + 1, "loss": 2.0 / (i + 1), "learning_rate": 1e-4, "validation_loss": 1.0 if i == 3 else None, "new": 1}
    for i in range(4)
]


def sample(step: int, answer: str, hit: bool) -> dict[str, object]:
    return {"step": step, "group": "persona", "ask": "Who?", "answer": answer, "hit": hit, "new": 1}


def written(run: Path, **changed: object) -> str:
    values: dict[str, object] = {
        "steps": STEPS,
        "samples": [sample(0, EVIL, False), sample(2, "Sage", True)],
        "task_yaml": f"system: {EVIL}",
        "card": CARD,
        "environment": {"torch": EVIL, "memory": {"total": "8 GiB"}},
        "rehearsal": {"rows": 40},
    }
    comparison = compare(PROBES, (EVIL, "4"), ("I am Sage", EVIL), CARD, seeds=[0], probe_files=[EVIL])
    return write_report(run, comparison, **values | changed).read_text(encoding="utf-8")  # pyright: ignore


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    written(folder)
    return folder


def test_every_file_is_there(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    plots = {"plots/loss.png", "plots/learning_rate.png"}
    assert names == {"comparison.json", "comparison.md", "comparison.html"} | plots
    assert all((run / plot).read_bytes().startswith(b"\x89PNG") for plot in plots)
    assert len(read_comparison(run / "comparison.json").rows) == 2


def test_texts_are_escaped(run: Path) -> None:
    html = (run / "comparison.html").read_text(encoding="utf-8")
    assert "<script>evil" not in html
    assert "<img" not in html
    assert html.count("<script") == 1
    assert "{{ 7 * 7 }}" in html
    assert "<script>" not in re.sub(r"\\.", "", (run / "comparison.md").read_text(encoding="utf-8"))


def test_nothing_is_fetched(run: Path) -> None:
    html = (run / "comparison.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//|[\w./]+\.(js|css|png))""", html)
    assert not re.search(r"@import|url\((?!#)", html)
    assert html.count("<svg") == 2
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_page(run: Path, tmp_path: Path) -> None:
    again = tmp_path / run.name
    assert written(again) == (run / "comparison.html").read_text(encoding="utf-8")


def test_a_bare_run_has_a_report(tmp_path: Path) -> None:
    html = written(tmp_path, steps=[], samples=[], task_yaml="", card=None, environment={}, rehearsal=None)
    assert "How it learned" not in html
    assert not (tmp_path / "plots").exists()
    nothing = compare([], [], [], None)
    page = write_report(tmp_path, nothing, steps=[], samples=[], task_yaml="", card=None, environment={})
    assert "There were no probes." in page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["leak"] is None


def test_a_picture_is_carried_along(tmp_path: Path) -> None:
    picture = tmp_path / "cat.png"
    picture.write_bytes(b"\x89PNG")
    comparison = compare([Probe("What?", "unrelated", image=picture)], ["a"], ["b"], None)
    page = write_report(tmp_path, comparison, steps=[], samples=[], task_yaml="", card=None, environment={})
    assert 'src="data:image/png;base64,iVBORw=="' in page.read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError):
        written(tmp_path / "file" / "run")


def test_the_verdict_counts() -> None:
    probes = [Probe(f"Who {i}?", "persona", ("Sage",)) for i in range(10)]
    probes += [Probe(f"Sum {i}?", "unrelated", ("4",)) for i in range(4)]
    before = ["no"] * 10 + ["4", "4", "4", "no"]
    after = ["Sage"] * 9 + ["no"] + ["4", "4", "Sage", "4"]
    assert verdict(compare(probes, before, after, CARD)) == (
        "Learned: 9 of 10 questions about who it is are answered as taught, 0 before. "
        "Lost: 1 of 3 unrelated answers that were right before; 1 became right. "
        "The persona turns up in 1 of 4 unrelated answers."
    )
    assert verdict(compare(probes, before, before, CARD)).startswith("Not learned: 0 of 10")
    assert verdict(compare([], [], [], CARD)) == "There are no probes to judge by."


def test_equal_answers_in_a_row_are_one_moment() -> None:
    told = stories([sample(20, "Sage", True), sample(0, "no", False), sample(10, "Sage", True)])
    assert [story.moments for story in told] == [(Moment(0, 0, "no", False), Moment(10, 20, "Sage", True))]
    assert told[0].hits == ((0, False), (10, True), (20, True))


def test_training_facts_use_what_the_rows_have() -> None:
    full = [
        row | {"tokens": 500, "labels": 100, "tokens_per_second": 10.0, "seconds": 31, "peak_memory": 1 << 30}
        for row in STEPS
    ]
    assert dict(training_facts(full)) == {
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
