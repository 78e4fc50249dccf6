"""The `twinlens` command: its verbs, and how errors reach people."""

import logging
import os
import sys
import warnings

import typer

import twinlens.cli.convert_xtuner
import twinlens.cli.data_files
import twinlens.cli.data_image_qa
import twinlens.cli.data_pictures  # noqa: F401 - like data_files, adds its verbs to data
from tuning.errors import KitError
from twinlens.cli import chat, configs, convert, data, demo, doctor, train, xtuner

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
app.command()(configs.check)
app.command()(doctor.doctor)
app.add_typer(data.app, name="data")
app.command()(train.plan)
app.command()(train.train)
app.command()(train.compare)
app.command()(chat.chat)
app.add_typer(convert.app, name="convert")
app.add_typer(demo.app, name="demo")
app.add_typer(xtuner.app, name="xtuner")


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
