"""`twinlens chat`: chat with a run, an adapter, a merged model or a base model."""

# pyright: reportUnknownMemberType=false

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
    system: str | None = typer.Option(None, help="System text; by default that of the run."),
    template: str | None = typer.Option(
        None, "--template", "--prompt-template", help="Name of a chat template; by default that of the run or model."
    ),
    temperature: float = typer.Option(0.0, min=0.0, help="Sampling temperature; 0 is greedy decoding."),
    top_p: float = typer.Option(1.0, min=0.0, max=1.0, help="Nucleus sampling: total probability of the candidates."),
    top_k: int = typer.Option(0, min=0, help="Number of most likely tokens to sample from; 0 means all."),
    repetition_penalty: float = typer.Option(1.0, min=0.1, help="Above 1 makes repeated tokens less likely."),
    max_new_tokens: int = typer.Option(512, min=1, help="Maximum length of an answer in tokens."),
    seed: int = typer.Option(0, help="Seed of sampling."),
    bits: int = typer.Option(4, help="4, 8 or 16: bits of the weights; a run uses its own."),
    image: list[Path] = typer.Option([], help="Picture for the first question; may be given several times."),
    base: bool = typer.Option(False, "--base", help="Chat with the model of a run as it was before training."),
) -> None:
    """Chat with a model. RESET clears the conversation, EXIT ends."""
    if bits not in (4, 8, 16):
        raise ConfigError(f"--bits {bits}: use 4, 8 or 16.")
    import torch

    from llm.chat import Chat
    from llm.generation import Sampling
    from tuning.data.pictures import open_picture
    from twinlens.chat_targets import open_target

    for path in image:
        open_picture(path, "--image")
    opened = open_target(target, system, bits, with_adapter=not base, pictures=bool(image), template_name=template)
    torch.manual_seed(seed)
    sampling = Sampling(temperature, top_p, top_k, repetition_penalty)
    chat_loop(Chat(opened.model, opened.template, opened.compute_dtype, sampling, max_new_tokens, image, opened.embed))


def chat_loop(conversation: "Chat") -> None:
    """Read questions from the terminal or a pipe and stream the answers."""
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{RESET} clears the conversation, {EXIT} ends.")
    while True:
        try:
            question = input("you> " if terminal else "").strip()
        except EOFError:
            break
        if question == EXIT:
            break
        if question == RESET:
            conversation.reset()
            print("(conversation cleared)")
        elif question:
            conversation.reply(question, lambda piece: print(piece, end="", flush=True))
            print()
