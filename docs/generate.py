"""Generate the settings and command references, the map of the code, and the map in the README.

Run it after changing a docstring, an option or a file name: `python docs/generate.py`. A test compares.
"""

import ast
import json
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo

from llm.settings import TextTask
from tuning.settings import Lora, settings_group_of
from twinlens.cli.app import app
from vlm.settings import ImageTask

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- map: written by docs/generate.py -->", "<!-- end of the map -->"

ROOMS = {
    "tuning": "shared core: training and evaluation; knows tokens and modules, not personas or pictures",
    "tuning/data": "dataset files: conversations, row formats, dataset cards, pictures; no torch",
    "tuning/evaluation": "probes, comparison before and after training, report; no torch",
    "tuning/modules": "quantization, LoRA, full fine-tuning, fp32 upcast, pickled checkpoints",
    "tuning/training": "batches, packing, learning-rate schedule, training loop, checkpoints and resume",
    "llm": "language model: the text path, from dataset to adapter and chat",
    "llm/chat_template": "conversation to token ids and loss mask; chat templates; special-token escaping",
    "llm/internlm": "InternLM 1, 2 and 2.5 as Llama, without remote code; tokenizers",
    "llm/checkpoints": "model sources: Hugging Face hub, ModelScope, weight shards, the embedded model",
    "llm/export": "merge of adapter and base, model folders, InternLM2 layout",
    "vlm": "LLaVA: the image path; projector, feature cache, vision tower and language model in one module",
    "vlm/towers": "vision towers: CLIP, SigLIP, open_clip, the embedded tower; preprocessing",
    "vlm/checkpoints": "initial weights of an image run, read from a run, XTuner or LLaVA",
    "vlm/export": "LLaVA export: HF-native, official layout, separate parts",
    "data_gen": "dataset generation: persona rows, renamed and repeated rows; no torch",
    "data_gen/image_qa": "question-and-answer dialogues about pictures, with probes",
    "data_gen/image_qa/teacher": "dialogues written by a teacher model behind an OpenAI-compatible endpoint",
    "data_gen/scenes": "drawn pictures with known content, for projector alignment and probes",
    "twinlens": "front door: tasks, checks, start and resume; the only package that imports all others",
    "twinlens/cli": "command-line verbs",
    "twinlens/cli/data": "the verbs of `twinlens data`",
    "twinlens/xtuner": "XTuner interoperability: checkpoints and folders",
    "twinlens/xtuner/configs": "XTuner configs, read without running them, as tasks",
    "twinlens/xtuner/engine": "XTuner itself as the training engine, in an environment of its own",
}
PLACES = {
    "configs": "task files, probes, phrase banks, pictures, DeepSpeed presets",
    "benchmarks": "measurements beside other tools",
    "docs": "journeys, references, decisions, measurements",
    "tests": "unit (mirrors the rooms), integration, e2e (the command line), house (documents, configs, layering)",
}


def documents() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    return {
        ROOT / "docs/reference/settings.md": settings_reference(),
        ROOT / "docs/reference/cli.md": cli_reference(),
        ROOT / "docs/map.md": map_of_files(),
        readme: f"{before}{BEGIN}\n{map_of_folders()}{END}{after}",
    }


def map_of_folders() -> str:
    """Each folder with its line."""
    folders = ROOMS | PLACES
    return "".join(f"{'  ' * room.count('/')}- [`{room}/`]({room}) {about}\n" for room, about in folders.items())


def map_of_files() -> str:
    """Each room with its files, in the words of their own docstrings."""
    lines = ["# Map of the code", "", "Written by `docs/generate.py` from the first line of every module."]
    for room, about in ROOMS.items():
        lines += ["", f"## `{room}/`", "", f"{about[0].upper()}{about[1:]}.", ""]
        files = [file for file in sorted((ROOT / room).glob("*.py")) if file.name != "__init__.py"]
        lines += [f"- [`{file.name}`](../{room}/{file.name}) {_headline(file)}" for file in files]
    return "\n".join(lines) + "\n"


def settings_reference() -> str:
    """A table for each block of the tasks, from the fields' docstrings; of the image task what it has besides."""
    lines = ["# Settings of a task", "", "Written by `docs/generate.py` from the docstrings in the code.", ""]
    lines += ["Settings of a group are written below its name, or as `group.key=value` on the command line.", ""]
    shared = TextTask.model_fields
    lines += _fields("The task itself", shared)
    besides = {key: field for key, field in ImageTask.model_fields.items() if key not in shared}
    lines += ["", *_fields("Of an image task, besides", besides)]
    return "\n".join(lines) + "\n"


def _fields(title: str, fields: dict[str, FieldInfo]) -> list[str]:
    lines = [f"## {title}", "", *_table({key: field for key, field in fields.items() if not settings_group_of(field)})]
    for key, field in fields.items():
        if block := settings_group_of(field):
            about = " ".join(f"{block.__doc__ or ''} {field.description or ''}".split())
            lines += ["", f"## `{key}`", "", about, "", *_table(block.model_fields)]
    return lines


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in fields.items():
        default = (
            "must be given" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
        )
        kind = _type(field.annotation).replace("|", "\\|")
        rows.append(f"| `{key}` | {kind} | {default} | {' '.join((field.description or '').split())} |")
    return rows


def _plain(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(annotation: Any) -> str:
    """A type as people write it in YAML: `int`, `one of cosine, linear`, `list of path`."""
    name = getattr(annotation, "__name__", str(annotation))
    arguments = getattr(annotation, "__args__", ())
    if annotation is Lora:
        return "as `lora`"
    if name == "Literal":
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if name == "tuple":
        inner = _type(arguments[0])
        return f"list of {inner}" if arguments[-1] is Ellipsis else f"{len(arguments)} × {inner}"
    if arguments:
        return " or ".join("null" if each is type(None) else _type(each) for each in arguments)
    return {"str": "text", "Path": "path", "bool": "true or false", "float": "number", "int": "whole number"}[name]


def cli_reference() -> str:
    """A section for each verb with its arguments and options."""
    lines = ["# The command line", "", "Written by `docs/generate.py` from the verbs themselves.", ""]
    lines += [
        "Every verb ends with 0 when it is done, 2 when you must change something (one sentence on stderr says what),",
        "130 when interrupted, and 1 when the fault is ours. `--json` prints one JSON object on stdout.",
    ]
    for path, command in _verbs(typer.main.get_command(app), "twinlens"):
        options = [each for each in command.params if each.param_type_name == "option"]
        arguments = {_metavar(each): each for each in command.params if each.param_type_name == "argument"}
        lines += [
            "",
            f"## `{path}`",
            "",
            command.help or "",
            "",
            "```",
            " ".join([path, *arguments, "[OPTIONS]"]),
            "```",
        ]
        rows = [f"| `{name.replace('|', chr(92) + '|')}` | {each.help or ''} |" for name, each in arguments.items()]
        rows += [f"| {', '.join(f'`{name}`' for name in _names(each))} | {_option(each)} |" for each in options]
        lines += ["", "| | |", "| --- | --- |", *rows] if rows else []
    return "\n".join(lines) + "\n"


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _names(option: Any) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def _option(option: Any) -> str:
    default = option.default
    said = (
        "" if option.is_flag or default in (None, "", [], ()) else f" Default: `{getattr(default, 'value', default)}`."
    )
    return (option.help or "") + (" Required." if option.required else said)


def _verbs(command: Any, path: str) -> list[tuple[str, Any]]:
    commands = getattr(command, "commands", None)
    if commands is None:
        return [(path, command)]
    return [verb for name, inner in commands.items() for verb in _verbs(inner, f"{path} {name}")]


def _headline(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert docstring, f"{file}: a module says in its first line what it is for"
    return docstring.splitlines()[0]


def main() -> None:
    for path, text in documents().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
