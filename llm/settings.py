"""Settings of a text task: exactly the common settings of `tuning/settings.py`."""

from tuning.settings import Task


class TextTask(Task):
    """Teach a chat model from conversations."""
