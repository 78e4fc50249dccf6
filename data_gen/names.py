"""What a name may be, and where it stands in a text: as a whole word in Latin scripts, anywhere in Chinese."""

import re
import unicodedata

from tuning.errors import ConfigError
from tuning.evaluation.probes import IN_CJK, LETTER

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
GAP = "[\\s\u200b-\u200d\ufeff]*"


def check_name(key: str, name: str) -> None:
    """Refuse a name that is empty or cannot be written on one line.

    Raises:
        ConfigError: names the key.
    """
    if not name.strip():
        raise ConfigError(f"{key}: is empty; give a name.")
    if name != name.strip() or CONTROL.search(name):
        raise ConfigError(f"{key} {name!r}: take out the space around it, line breaks and control characters.")


def fold(text: str) -> str:
    """One spelling for what differs only in case or in full and half width."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def as_written(name: str) -> str:
    """A pattern for the name exactly as it is spelled."""
    return _edges(name, re.escape(name))


def spaced(name: str) -> str:
    """A pattern, for folded text, that also finds the name with gaps between its characters."""
    name = "".join(fold(name).split())
    return _edges(name, GAP.join(re.escape(character) for character in name))


def _edges(name: str, pattern: str) -> str:
    if IN_CJK.search(name):
        return pattern
    if re.match(LETTER, name[0]):
        pattern = f"(?<!{LETTER}){pattern}"
    if re.match(LETTER, name[-1]):
        pattern += f"(?!{LETTER}|[\u0300-\u036f])"  # a combining accent makes it another letter
    return pattern
