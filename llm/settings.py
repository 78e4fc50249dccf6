"""Settings of a text task."""

from tuning.settings import Task


class TextTask(Task):
    """Teach a chat model from conversations."""
