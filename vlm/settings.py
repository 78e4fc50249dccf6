"""Settings of an image task: vision tower, projector, pictures, learning rates."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tuning.settings import Lora, SettingsGroup, Task


class Pictures(SettingsGroup):
    """Location and processing of the pictures."""

    folder: Path | None = None
    """Base folder of the picture paths in all data files; by default, the folder of each file."""
    views: int = Field(default=0, ge=0, le=64)
    """Number of augmented views of each picture (light crop and color change); each use draws the picture or a view."""
    cache_gib: float = Field(default=20.0, ge=0)
    """Maximum size of the feature cache on disk, in GiB; if the features do not fit, the tower runs at every step."""


class Rates(SettingsGroup):
    """Peak learning rates of projector and tower; the default is optim.learning_rate."""

    projector: float | None = Field(default=None, gt=0)
    """Learning rate of the projector."""
    tower: float | None = Field(default=None, gt=0)
    """Learning rate of the tower or of its adapter."""


class ImageTask(Task):
    """Fine-tune a chat model on pictures, as LLaVA."""

    stage: Literal["align", "tune"] = "tune"
    """align trains only the projector; tune also trains the language model, and the tower if tower_lora or whole_tower
    is set."""
    tower: str
    """The vision tower: a CLIP or SigLIP folder or hub name (owner/model or owner/model@revision),
    open_clip:NAME/WEIGHTS, or `embedded`."""
    start: str | None = None
    """Initial weights: `embedded`, a run, a projector file, XTuner's .pth or folder, LLaVA's mm_projector.bin or
    a LLaVA checkpoint. The projector is loaded, and in stage tune also the adapters."""
    tower_lora: Lora | None = None
    """LoRA adapter of the tower; the tower then runs at every step, because its features change."""
    whole_tower: bool = False
    """Full fine-tuning of the tower, without an adapter."""
    pictures: Pictures = Pictures()
    rates: Rates = Rates()

    @model_validator(mode="after")
    def _check_combinations(self) -> "ImageTask":
        if self.data.pack and self.data.packing == "xtuner":
            raise ValueError("data.packing xtuner would split pictures: set data.pack: false, as XTuner does for LLaVA")
        for key, trains_tower in (("tower_lora", self.tower_lora is not None), ("whole_tower", self.whole_tower)):
            if self.stage == "align" and trains_tower:
                raise ValueError(f"stage align trains only the projector: remove {key}, or set stage: tune")
        if self.tower_lora is not None and self.whole_tower:
            raise ValueError("tower_lora and whole_tower exclude each other: remove one of them")
        return self

    @property
    def full_finetuning(self) -> bool:
        """Whether every weight of the language model is trained; in stage align it is frozen."""
        return self.stage == "tune" and self.lora is None
