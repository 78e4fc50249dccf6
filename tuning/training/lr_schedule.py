"""Learning-rate schedule: warm-up, then cosine, linear or constant."""

import math
from typing import Literal


def warmup_steps(warmup: float, steps: int) -> int:
    """Number of warm-up steps for a fraction of the run: at least one unless `warmup` is 0, never the whole run."""
    return min(max(1, round(warmup * steps)), steps - 1) if warmup else 0


def rate_factor(step: int, steps: int, warmup: float, kind: Literal["cosine", "linear", "constant"]) -> float:
    """Factor of the peak learning rate at `step` (from 0): rising in the warm-up, then by `kind`; never 0."""
    rising = warmup_steps(warmup, steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    if kind == "constant":
        return 1.0
    progress = (step - rising) / (steps - rising)
    return 1.0 - progress if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
