"""Where tests find the checkout and its fixtures, however deep a test lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
