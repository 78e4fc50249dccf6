"""Errors for users: one sentence with the file, row or key, and the fix."""


class KitError(Exception):
    """An error that the user can fix; the command line prints it as one sentence and exits with `exit_code`."""

    exit_code = 2


class ConfigError(KitError):
    """A task file, an override or a command-line option is wrong."""


class DataError(KitError):
    """A dataset, a probe file or a picture is wrong."""


class ModelError(KitError):
    """A model, tokenizer or adapter is missing, or has the wrong type or shape."""


class DeviceError(KitError):
    """The machine lacks a device, memory, disk space or a permission."""


class Interrupted(KitError):
    """The user stopped a long operation; its finished part is saved."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """The first sentence of a library's error message, to quote in our own message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    message = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return message.partition(". ")[0].rstrip(".:")
