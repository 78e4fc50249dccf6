"""The text task: everything one run of the text path needs, in one file."""

from pydantic import Field, model_validator

from tuning.settings import Block, Data, Evaluation, Lora, Optim, Quant, Rehearsal, Run


class TextTask(Block):
    """Teach a chat model from conversations."""

    model: str
    """A folder in Hugging Face layout, a hub name, or `embedded`: the small model that comes as a Python package."""
    system: str | None = None
    """System text given wherever a conversation has none of its own, the same in training, compare and chat."""
    quant: Quant = Quant()
    lora: Lora = Lora()
    data: Data
    rehearsal: Rehearsal = Rehearsal()
    optim: Optim = Field(default_factory=Optim)
    evaluation: Evaluation = Evaluation()
    run: Run = Run()

    @model_validator(mode="after")
    def _one_length(self) -> "TextTask":
        if (self.optim.steps is None) == (self.optim.epochs is None):
            raise ValueError("give optim.steps or optim.epochs, one of the two")
        return self
