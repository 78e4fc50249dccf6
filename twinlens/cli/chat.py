"""`twinlens chat`: talk to a run, an adapter, a merged model or a base model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuning.errors import ConfigError

if TYPE_CHECKING:
    from llm.chat import Chat

EXIT, RESET = "EXIT", "RESET"


def chat(
    target: str = typer.Argument(..., help="A run folder, an adapter, a model folder, a hub name, or embedded."),
    system: str | None = typer.Option(None, help="System text; a run's own when left out."),
    template: str | None = typer.Option(
        None, "--template", "--prompt-template", help="Name of a chat template; a run's or the model's own if left out."
    ),
    temperature: float = typer.Option(0.0, min=0.0, help="0 takes the likeliest word; higher is freer."),
    top_p: float = typer.Option(1.0, min=0.0, max=1.0, help="Draw from the likeliest words that make up this share."),
    top_k: int = typer.Option(0, min=0, help="Draw from so many of the likeliest words; 0 is all."),
    repetition_penalty: float = typer.Option(1.0, min=0.1, help="Above 1 makes words already said less likely."),
    max_new_tokens: int = typer.Option(512, min=1, help="Longest answer."),
    seed: int = typer.Option(0, help="Of drawing words."),
    bits: int = typer.Option(4, help="4, 8 or 16: how a model that is no run is held."),
    image: list[Path] = typer.Option(
        [], help="A picture that the first question is about; may be given several times."
    ),
    base: bool = typer.Option(False, "--base", help="Talk to a run as it was before training."),
) -> None:
    """Talk to a model. RESET forgets what was said, EXIT ends."""
    if bits not in (4, 8, 16):
        raise ConfigError(f"--bits {bits}: take 4, 8 or 16.")
    import torch

    from llm.chat import Chat
    from llm.generation import Sampling
    from tuning.data.pictures import open_picture
    from twinlens.targets import open_target

    for path in image:
        open_picture(path, "--image")
    opened = open_target(target, system, bits, with_adapter=not base, pictures=bool(image), named=template)
    torch.manual_seed(seed)
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty)
    talk(Chat(opened.model, opened.template, opened.compute_dtype, sampling, max_new_tokens, image, opened.embed))


def talk(conversation: "Chat") -> None:
    """Read questions from the terminal or a pipe and stream the answers."""
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{RESET} forgets what was said, {EXIT} ends.")
    while True:
        try:
            asked = input("you> " if terminal else "").strip()
        except EOFError:
            break
        if asked == EXIT:
            break
        if asked == RESET:
            conversation.reset()
            print("(forgotten)")
            continue
        if asked:
            conversation.reply(asked, lambda piece: print(piece, end="", flush=True))
            print()
