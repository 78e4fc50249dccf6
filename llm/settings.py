"""The text task: everything one run of the text path needs, in one file."""

from tuning.settings import Task


class TextTask(Task):
    """Teach a chat model from conversations."""
