"""Settings of an image task."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tuning.settings import Lora, SettingsGroup, Task


class Pictures(SettingsGroup):
    """Where pictures lie, and how they go through the tower."""

    folder: Path | None = None
    """Where the picture paths of all data files start; each file's own folder when left out."""
    views: int = Field(default=0, ge=0, le=64)
    """Lightly cropped and coloured views of each picture beside the picture itself; each use draws one of them."""
    cache_gib: float = Field(default=20.0, ge=0)
    """Largest feature cache on disk, in GiB; what does not fit goes through the tower each time it is seen."""


class Rates(SettingsGroup):
    """Peak learning rates of what is not the language model; optim.learning_rate where left out."""

    projector: float | None = Field(default=None, gt=0)
    """Of the projector."""
    tower: float | None = Field(default=None, gt=0)
    """Of the tower, or of its adapter."""


class ImageTask(Task):
    """Teach a chat model what it sees."""

    stage: Literal["align", "tune"] = "tune"
    """align trains the projector alone; tune trains the language model too, and the tower where asked."""
    tower: str
    """The vision tower: a CLIP or SigLIP folder or hub name (owner/model or owner/model@revision),
    open_clip:NAME/WEIGHTS, or `embedded`."""
    start: str | None = None
    """What to start from: `embedded`, or a run, a projector file, XTuner's .pth or folder, LLaVA's mm_projector.bin,
    a LLaVA checkpoint. Its projector is taken, and in stage tune its adapters where it has any."""
    tower_lora: Lora | None = None
    """An adapter on the tower as well; the tower then runs at every step, for nothing of it can be kept."""
    whole_tower: bool = False
    """Train every weight of the tower, without an adapter."""
    pictures: Pictures = Pictures()
    rates: Rates = Rates()

    @model_validator(mode="after")
    def _no_split_pictures(self) -> "ImageTask":
        if self.data.pack and self.data.packing == "xtuner":
            raise ValueError("data.packing xtuner would cut pictures: set data.pack: false, as XTuner's LLaVA does")
        return self

    @model_validator(mode="after")
    def _one_way_to_train_tower(self) -> "ImageTask":
        for key, asked in (("tower_lora", self.tower_lora is not None), ("whole_tower", self.whole_tower)):
            if self.stage == "align" and asked:
                raise ValueError(f"stage align trains the projector alone: take {key} out, or set stage: tune")
        if self.tower_lora is not None and self.whole_tower:
            raise ValueError(
                "tower_lora and whole_tower: the tower is trained by an adapter or as a whole, take one out"
            )
        return self

    @property
    def full_finetuning(self) -> bool:
        """Whether every weight of the language model is trained; stage align leaves it as it is."""
        return self.stage == "tune" and self.lora is None
