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
    target: str = typer.Argument(
        ...,
        help="A run folder, a LoRA adapter folder (of PEFT or XTuner), a model folder, a hub name (owner/model), or "
        "`embedded`: the embedded model, SmolLM2-135M-Instruct.",
    ),
    system: str | None = typer.Option(
        None, help="System prompt. By default that of the run's task; other targets have that of their chat template."
    ),
    template: str | None = typer.Option(
        None,
        "--template",
        "--prompt-template",
        help="Name of one of XTuner's chat templates, such as internlm2_chat; an unknown name prints all names. By "
        "default that of the run's task, else the model's own.",
    ),
    temperature: float = typer.Option(
        0.0,
        min=0.0,
        help="Sampling temperature. 0 is greedy decoding, in which --top-p, --top-k and --seed have no effect.",
    ),
    top_p: float = typer.Option(
        1.0, min=0.0, max=1.0, help="Nucleus sampling: total probability of the candidate tokens; 1 means all tokens."
    ),
    top_k: int = typer.Option(0, min=0, help="Number of most likely tokens to sample from; 0 means all tokens."),
    repetition_penalty: float = typer.Option(
        1.0, min=0.1, help="Repetition penalty: above 1 makes repeated tokens less likely, 1 has no effect."
    ),
    max_new_tokens: int = typer.Option(512, min=1, help="Maximum number of tokens in an answer."),
    seed: int = typer.Option(0, help="Random seed of sampling."),
    bits: int = typer.Option(
        4,
        help="Load the weights in 4 bits (NF4), 8 bits (LLM.int8) or 16 bits (not quantized). No effect on a run "
        "folder: it uses quant.bits of its task.",
    ),
    image: list[Path] = typer.Option(
        [],
        help="Picture for the first question, also for the first after RESET; may be given several times. Only for "
        "the run of an image task, or `embedded`.",
    ),
    base: bool = typer.Option(
        False, "--base", help="Chat with the model of a run as it was before training, or with the base of an adapter."
    ),
) -> None:
    """Chat with a model. Type RESET to clear the conversation, EXIT to end."""
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
