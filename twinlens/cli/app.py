"""The `twinlens` command: its subcommands, logging, and exit codes."""

import logging
import os
import sys
import warnings
from collections.abc import Callable

import typer

from tuning.errors import KitError
from twinlens.cli import chat, configs, convert, demo, doctor, train, xtuner
from twinlens.cli.data import files, image_qa, rows, scenes

Verbs = dict[str, Callable[..., None]]
VERBS: Verbs = {
    "list-cfg": configs.list_cfg,
    "copy-cfg": configs.copy_cfg,
    "show-cfg": configs.show_cfg,
    "check": configs.check,
    "doctor": doctor.doctor,
    "plan": train.plan,
    "train": train.train,
    "compare": train.compare,
    "chat": chat.chat,
}
DATA: Verbs = {
    "persona": rows.persona,
    "repeat": rows.repeat,
    "rename": rows.rename,
    "convert": files.convert,
    "inspect": files.inspect,
    "image-qa": image_qa.image_qa,
    "scenes": scenes.scenes,
}
CONVERT: Verbs = {
    "merge": convert.merge,
    "llava": convert.llava,
    "internlm": convert.internlm,
    "pth_to_hf": convert.pth_to_hf,
    "xtuner": convert.to_xtuner,
}
GROUPS: dict[str, tuple[str, Verbs]] = {
    "data": ("Create, convert, fix and inspect datasets.", DATA),
    "convert": ("Convert and merge checkpoints.", CONVERT),
    "demo": ("Run a complete example.", {"text": demo.text, "image": demo.image}),
    "xtuner": ("Install XTuner, an optional training engine.", {"install": xtuner.install}),
}


def add_verbs(group: typer.Typer, verbs: Verbs) -> typer.Typer:
    """Register each function under its verb."""
    for name, function in verbs.items():
        group.command(name)(function)
    return group


app = typer.Typer(
    name="twinlens",
    help="Fine-tune a chat model on a persona or on pictures, and measure what changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
add_verbs(app, VERBS)
for name, (about, verbs) in GROUPS.items():
    app.add_typer(add_verbs(typer.Typer(help=about, no_args_is_help=True), verbs), name=name)


def run() -> None:
    """Run the command line; exit code 0: done, 2: the user must change something, 130: interrupted, 1: a bug."""
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("twinlens").setLevel(logging.INFO if main_process else logging.WARNING)
    # These loggers report downloads and guessed devices, which need no action. They set their level when imported, so a
    # level set here would be overwritten. A filter sees only records of its own logger, so each logger gets one.
    for logger in ("bitsandbytes", "bitsandbytes.backends.cpu.ops", "DeepSpeed"):
        logging.getLogger(logger).addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # caused by peft, not by users
    try:
        app()
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
