"""The report in a real browser: filters from the URL fragment; text in answers is never run as code."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tuning.data.card import DatasetCard, card_to_dict
from tuning.evaluation.compare import compare
from tuning.evaluation.probes import Probe
from tuning.evaluation.report import write_report
from tuning.run_dir import RunDir

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")]

EVIL = "<img src=x onerror=\"document.title='evil'\"></script><script>document.title='evil'</script>"


def bare_run(folder: Path, card: DatasetCard | None) -> RunDir:
    """A run folder without steps and samples."""
    (folder / "task.yaml").write_text("")
    (folder / "data.json").write_text(json.dumps({"card": card and card_to_dict(card)}))
    (folder / "environment.json").write_text("{}")
    return RunDir(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    card = DatasetCard(made_by="make", rows=1, distinct=1, sha256="", name="Sage", markers=("Sage",))
    probes = [
        Probe("Who are you?", "persona", ("Sage",)),
        Probe("你是谁？", "persona", ("Sage",)),
        Probe("Capital of France?", "unrelated", ("Paris",)),
        Probe("What is 2 + 2?", "unrelated", ("4",)),
        Probe("Colour of the sky?", "unrelated", ("blue",)),
    ]
    before = ["A model.", EVIL, "Paris.", "4", "blue"]
    after = ["I am Sage.", "我是Sage", "I am Sage.", "5", "blue"]
    comparison = compare(probes, before, after, card)
    return write_report(bare_run(tmp_path_factory.mktemp("run"), card), comparison)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same question about three pictures, one of them missing, and one question without a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.new("RGB", (600, 300), "red").save(folder / "door.png")
    Image.new("RGB", (300, 600), "green").save(folder / "apple.jpg")
    probes = [
        Probe("Its colour?", "picture", ("red",), image=folder / "door.png"),
        Probe("Its shape?", "picture", ("wide",), image=folder / "door.png"),
        Probe("Its colour?", "other-picture", ("green",), image=folder / "apple.jpg", parrot=("red",)),
        Probe("Its colour?", "other-picture", ("blue",), image=folder / "gone <i>.png", parrot=("red",)),
        Probe("What is 2 + 2?", "unrelated", ("4",)),
    ]
    comparison = compare(probes, ["no", "no", "green", "no", "4"], ["red", EVIL, "red", "blue", "4"], None)
    return write_report(bare_run(folder, None), comparison)


def opened(page: Path, fragment: str, profile: Path, *options: str) -> str:
    """The document after its script has run."""
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run(
        [*command, *options, page.as_uri() + fragment],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        encoding="utf-8",
    )
    return done.stdout


def shown(page: Path, fragment: str, profile: Path) -> tuple[list[str], str]:
    """Questions of the visible rows when the page is opened at a fragment, and the page's title."""
    document = opened(page, fragment, profile)
    articles = re.findall(r"<article([^>]*)>.*?class=\"ask text\"[^>]*>(.*?)</div>", document, flags=re.DOTALL)
    title = re.search(r"<title>(.*?)</title>", document)
    assert title
    return [ask for attributes, ask in articles if "hidden" not in attributes], title[1]


@pytest.mark.parametrize(
    ("fragment", "asks"),
    [
        ("", ["Who are you?", "你是谁？", "Capital of France?", "What is 2 + 2?", "Colour of the sky?"]),
        ("#group=persona", ["Who are you?", "你是谁？"]),
        ("#show=lost", ["Capital of France?", "What is 2 + 2?"]),
        ("#group=unrelated&show=leaked", ["Capital of France?"]),
        ("#show=changed&q=SAGE", ["Who are you?", "你是谁？", "Capital of France?"]),
        ("#group=nonsense&q=2%20%2B%202", ["What is 2 + 2?"]),
    ],
)
def test_the_url_fragment_filters_rows(page: Path, tmp_path: Path, fragment: str, asks: list[str]) -> None:
    assert shown(page, fragment, tmp_path) == (asks, "Sage: before and after")


@pytest.mark.parametrize(
    ("fragment", "asks", "pictures"),
    [
        ("", ["Its colour?", "Its shape?", "Its colour?", "Its colour?", "What is 2 + 2?"], 3),
        ("#show=parroted", ["Its colour?"], 1),
        ("#group=other-picture", ["Its colour?", "Its colour?"], 2),
        ("#q=DOOR.png", ["Its colour?", "Its shape?"], 1),
        ("#group=unrelated", ["What is 2 + 2?"], 0),
    ],
)
def test_pictures_are_filtered_with_their_rows(
    pictured: Path, tmp_path: Path, fragment: str, asks: list[str], pictures: int
) -> None:
    assert shown(pictured, fragment, tmp_path) == (asks, "Before and after")
    shots = re.findall(r'<div class="shot"([^>]*)>', opened(pictured, fragment, tmp_path))
    assert [len(shots), sum("hidden" not in attributes for attributes in shots)] == [3, pictures]


MEASURE = """
const sizes = [...document.querySelectorAll("figure img")].map((each) => `${each.naturalWidth}x${each.naturalHeight}`);
const over = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = `${sizes.join(" ")} over ${over}`;
"""


@pytest.mark.parametrize("width", [500, 1280])
def test_pictures_are_shown_without_overflow(pictured: Path, tmp_path: Path, width: int) -> None:
    measured = pictured.with_name(f"measured-{width}.html")
    text = pictured.read_text(encoding="utf-8")
    script = f"<script>addEventListener('load', () => {{{MEASURE}}});</script></body>"
    measured.write_text(text.replace("</body>", script), encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", opened(measured, "", tmp_path, f"--window-size={width},900"))
    assert title and title[1] == "512x256 256x512 over 0"
