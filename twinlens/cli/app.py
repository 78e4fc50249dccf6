"""The `twinlens` command: its verbs, and how errors reach people."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping

import typer

from tuning.errors import KitError
from twinlens.cli import chat, configs, convert, convert_xtuner, demo, doctor, train, xtuner
from twinlens.cli.data import files, image_qa, rows, scenes

Verb = Callable[..., None]


def group(about: str, verbs: Mapping[str, Verb]) -> typer.Typer:
    """A group of verbs, such as `twinlens data ...`."""
    made = typer.Typer(help=about, no_args_is_help=True)
    made.callback()(lambda: None)  # one verb alone is still a group
    for name, verb in verbs.items():
        made.command(name)(verb)
    return made


app = typer.Typer(
    name="twinlens",
    help="Teach a chat model who it is, and what it sees.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("list-cfg")(configs.list_cfg)
app.command("copy-cfg")(configs.copy_cfg)
app.command("show-cfg")(configs.show_cfg)
app.command("check")(configs.check)
app.command("doctor")(doctor.doctor)
app.add_typer(
    group(
        "Make, convert, mend and look at datasets.",
        {
            "persona": rows.persona,
            "repeat": rows.repeat,
            "rename": rows.rename,
            "convert": files.convert,
            "inspect": files.inspect,
            "image-qa": image_qa.image_qa,
            "scenes": scenes.scenes,
        },
    ),
    name="data",
)
app.command("plan")(train.plan)
app.command("train")(train.train)
app.command("compare")(train.compare)
app.command("chat")(chat.chat)
app.add_typer(
    group(
        "Turn what training leaves into what others load.",
        {
            "merge": convert.merge,
            "llava": convert.llava,
            "internlm": convert.internlm,
            "pth_to_hf": convert_xtuner.pth_to_hf,
            "xtuner": convert_xtuner.to_xtuner,
        },
    ),
    name="convert",
)
app.add_typer(
    group("Walk a whole path with nothing to prepare.", {"text": demo.text, "image": demo.image}), name="demo"
)
app.add_typer(
    group("XTuner itself, as an engine in an environment of its own.", {"install": xtuner.install}), name="xtuner"
)


def run() -> None:
    """Run the command line: 0 done, 2 the user must change something, 130 interrupted, 1 our bug."""
    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    logging.getLogger("twinlens").setLevel(logging.INFO if main_process else logging.WARNING)
    # A download advertised, a device guessed: nothing to act on. The level is no use, for they set it when imported,
    # and a filter is asked about its own logger's records alone.
    for chatty in ("bitsandbytes", "bitsandbytes.backends.cpu.ops", "DeepSpeed"):
        logging.getLogger(chatty).addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # for peft to mend, not for users
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
