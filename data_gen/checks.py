"""Checks of the options that several dataset commands share."""

import re
from collections.abc import Iterable
from pathlib import Path

from tuning.errors import ConfigError

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_name(key: str, name: str) -> None:
    """Check that a name is not empty and fits on one line.

    Raises:
        ConfigError: the name is wrong; the message starts with `key`.
    """
    if not name.strip():
        raise ConfigError(f"{key}: is empty; give a name.")
    if name != name.strip() or CONTROL.search(name):
        raise ConfigError(f"{key} {name!r}: remove spaces at both ends, line breaks and control characters.")


def check_choice(key: str, value: str | None, choices: Iterable[str | None]) -> None:
    """Check that an option has one of its allowed values.

    Raises:
        ConfigError: it has another value.
    """
    if value not in choices:
        raise ConfigError(f"{key} {value!r}: choose one of {', '.join(filter(None, choices))}.")


def check_positive(key: str, number: int) -> None:
    """Check that a number is 1 or more.

    Raises:
        ConfigError: it is less.
    """
    if number < 1:
        raise ConfigError(f"{key} {number}: give 1 or more.")


def check_suffix(out: Path, *suffixes: str) -> None:
    """Check the suffix of an output file.

    Raises:
        ConfigError: it is none of `suffixes`.
    """
    if out.suffix not in suffixes:
        raise ConfigError(f"{out}: end OUT in {' or '.join(suffixes)}.")
