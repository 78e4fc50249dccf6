"""The report in a real browser: the filters work from the address, and hostile text does nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tuning.card import DatasetCard
from tuning.compare import compare
from tuning.probes import Probe
from tuning.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")]

EVIL = "<img src=x onerror=\"document.title='evil'\"></script><script>document.title='evil'</script>"


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
    return write_report(
        tmp_path_factory.mktemp("run"), comparison, steps=[], samples=[], task_yaml="", card=card, environment={}
    )


def shown(page: Path, fragment: str, profile: Path) -> tuple[list[str], str]:
    """Questions of the rows that are left when the page is opened at a fragment, and the page's title."""
    assert BROWSER
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--dump-dom",
            page.as_uri() + fragment,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    articles = re.findall(r"<article([^>]*)>.*?class=\"ask text\"[^>]*>(.*?)</div>", done.stdout, flags=re.DOTALL)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
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
def test_the_address_chooses_the_rows(page: Path, tmp_path: Path, fragment: str, asks: list[str]) -> None:
    assert shown(page, fragment, tmp_path) == (asks, "Sage: before and after")
