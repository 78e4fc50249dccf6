"""Errors for users: one sentence that names file, row or key, and the fix."""


class KitError(Exception):
    """What the user must change; the command line prints it as one sentence and exits with `exit_code`."""

    exit_code = 2


class ConfigError(KitError):
    """A task file, an override or a command-line option is wrong."""


class DataError(KitError):
    """A dataset, a probe file or a picture is wrong."""


class ModelError(KitError):
    """A model, tokenizer or adapter is missing, of the wrong kind or shape."""


class DeviceError(KitError):
    """The machine lacks what was asked for: a device, memory, disk, permission."""


class Interrupted(KitError):
    """Long work was asked to stop, and kept what it had done."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What a library's error says, short enough for a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return said.partition(". ")[0].rstrip(".:")
