"""Settings of a text task: the settings that all tasks have."""

from tuning.settings import Task


class TextTask(Task):
    """Teach a chat model from conversations."""
