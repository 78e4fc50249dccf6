"""Plots of a run: loss and learning rate, as PNG files and as SVG in the report.

Rows are those of `steps.jsonl`: `step`, `loss`, `learning_rate`, and `validation_loss` if it was measured.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Literal["loss", "learning_rate"]
CURVES: tuple[Curve, ...] = get_args(Curve)

# Colours of the plots. In the report, CSS variables replace them, so that the plots follow the page's theme.
INK, GRID, FIRST, SECOND = "#5b6470", "#d9dde2", "#1f5fa8", "#b4530a"
THEME = {INK: "var(--muted)", GRID: "var(--line)", FIRST: "var(--accent)", SECOND: "var(--second)"}


def plot_png(steps: Sequence[Mapping[str, Any]], curve: Curve) -> bytes:
    """A PNG file with a light background."""
    return _rendered(steps, curve, format="png", dpi=160)


def plot_svg(steps: Sequence[Mapping[str, Any]], curve: Curve) -> str:
    """An SVG element for HTML, coloured by the page's CSS variables. The same rows give the same text."""
    text = _rendered(steps, curve, format="svg", transparent=True, metadata={"Date": None}).decode("utf-8")
    text = text[text.index("<svg") :]
    # Ids must be unique in the page, and both plots use the same ones.
    text = re.sub(r'((?:id=|href=)"#?|url\(#)', rf"\g<1>{curve}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    title = "Loss by step" if curve == "loss" else "Learning rate by step"
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _figure(steps: Sequence[Mapping[str, Any]], curve: Curve) -> "Figure":
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot, its windows and its global state

    with rc_context({"font.size": 9.5, "axes.unicode_minus": False}):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        axes = figure.subplots()
        at = [row["step"] for row in steps]
        axes.plot(at, [row[curve] for row in steps], color=FIRST, linewidth=1.5, label="training")
        checked = [row for row in steps if row.get("validation_loss") is not None]
        if curve == "loss" and checked:
            values = [row["validation_loss"] for row in checked]
            axes.plot([r["step"] for r in checked], values, color=SECOND, marker="o", markersize=4, label="validation")
            axes.legend(frameon=False, labelcolor=INK)
        if curve == "loss":
            axes.set_ylim(bottom=0)
        else:
            axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
            axes.yaxis.get_offset_text().set_color(INK)
        axes.set_xlabel("step", color=INK)
        axes.set_title(curve.replace("_", " "), color=INK, loc="left", fontsize=9.5)
        axes.tick_params(colors=INK, length=0)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
    return figure


def _rendered(steps: Sequence[Mapping[str, Any]], curve: Curve, **options: Any) -> bytes:
    from matplotlib import rc_context

    figure, target = _figure(steps, curve), io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "twinlens"}):
        figure.savefig(target, **options)
    return target.getvalue()
