"""Generate the settings and command references, the map of the code, and the map in the README.

Run `python docs/generate.py` after changing a docstring, an option or a file name; a test compares the files.
"""

import ast
import json
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

from llm.settings import TextTask
from tuning.settings import Lora, settings_group_of
from twinlens.cli.app import app
from vlm.settings import ImageTask

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- map: written by docs/generate.py -->", "<!-- end of the map -->"

ROOMS = {
    "tuning": "shared core of text and image tasks: dataset files, training, evaluation",
    "tuning/data": "dataset files: conversations, row formats, dataset cards, pictures; no torch",
    "tuning/evaluation": "probes, comparison of answers before and after training, report; no torch",
    "tuning/modules": "quantization, LoRA, full fine-tuning, fp32 upcast, pickled checkpoints",
    "tuning/training": "batches, packing, learning-rate schedule, training loop, checkpoints and resume",
    "llm": "language model: text fine-tuning, from dataset to adapter and chat",
    "llm/chat_template": "conversation to token ids and loss mask; chat templates; special-token escaping",
    "llm/internlm": "InternLM 1, 2 and 2.5 as Llama, without remote code; tokenizers",
    "llm/checkpoints": "model files: downloads from hubs, weight shards, config.json, the embedded model",
    "llm/export": "merge an adapter into its base model, write model folders, convert InternLM2 layouts",
    "vlm": "vision-language model (LLaVA): fine-tuning on pictures with vision tower, projector and language model",
    "vlm/towers": "vision towers: CLIP, SigLIP, open_clip, the embedded tower; preprocessing",
    "vlm/checkpoints": "initial weights of an image task, read from a run, XTuner or LLaVA",
    "vlm/export": "LLaVA export: HF-native, official layout, separate parts",
    "data_gen": "dataset generation: persona rows, replaced names, repeated rows, dialogues about pictures; no torch",
    "data_gen/image_qa": "question-and-answer dialogues about pictures, with probes",
    "data_gen/image_qa/teacher": "dialogues written by a teacher model behind an OpenAI-compatible endpoint",
    "data_gen/scenes": "drawn pictures with known content, for projector alignment and probes",
    "twinlens": "tasks, checks, start and resume of runs; the only package that imports all others",
    "twinlens/cli": "subcommands of the `twinlens` command line",
    "twinlens/cli/data": "subcommands of `twinlens data`",
    "twinlens/xtuner": "XTuner interoperability: read configs and checkpoints, write XTuner folders, run its trainer",
    "twinlens/xtuner/configs": "convert XTuner configs to tasks without running them",
    "twinlens/xtuner/engine": "XTuner as the training engine, in a separate environment",
}
TERMS = {
    "task": "a YAML file with the settings of one fine-tuning",
    "text task, image task": "a task that trains a language model on conversations, or a LLaVA on pictures",
    "run": "one training of a task; the *run folder* contains its logs, checkpoints and results",
    "probe": "a test question with known answers, asked before, during and after training",
    "hit": "a correct answer to a probe",
    "leak": "an answer to an unrelated probe that mentions the persona",
    "parrot": "an answer about another picture that repeats the answer about the trained picture",
    "retained": "an unrelated answer that is correct before and after training",
    "rehearsal": "rows mixed into the training data against forgetting: unrelated prompts with the base model's own "
    "answers, or dialogues about other pictures",
    "persona": "who the assistant says it is: its name, its owner, its base model",
    "facts": "what a user states about a picture; dialogues and probes are generated from facts",
    "tower": "the vision encoder of LLaVA (CLIP, SigLIP); a *patch* is one position of its output",
    "embedded model, embedded tower": "small pretrained models that are installed as Python packages with twinlens",
    "recipe": "the Python file that combines all parts of one kind of task",
}
PLACES = {
    "configs": "task files, probes, phrase banks (sentences of generated datasets), pictures, DeepSpeed presets",
    "benchmarks": "scripts that measure time, memory and accuracy",
    "docs": "journeys, references, decisions, measurements",
    "tests": "unit (folders as in the code), integration, e2e (command line), house (documents, configs, layering)",
}


def documents() -> dict[Path, str]:
    """Every generated file and its text."""
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
    """Each folder with one line."""
    folders = ROOMS | PLACES
    return "".join(f"{'  ' * room.count('/')}- [`{room}/`]({room}) {about}\n" for room, about in folders.items())


def map_of_files() -> str:
    """Each folder of the code with the first docstring line of each of its files."""
    lines = [
        "# Map of the code",
        "",
        "Written by `docs/generate.py` from the first line of every module.",
        "",
        "## Terms",
        "",
    ]
    lines += [f"- *{term}*: {meaning}" for term, meaning in TERMS.items()]
    for room, about in ROOMS.items():
        lines += ["", f"## `{room}/`", "", f"{about[0].upper()}{about[1:]}.", ""]
        for file in sorted((ROOT / room).glob("*.py")):
            if file.name == "__init__.py":
                continue
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            assert docstring, f"{file}: the module has no docstring"
            lines.append(f"- [`{file.name}`](../{room}/{file.name}) {docstring.splitlines()[0]}")
    return "\n".join(lines) + "\n"


def settings_reference() -> str:
    """A table for each group of settings, from the docstrings of the fields; then the settings of image tasks only."""
    lines = ["# Settings of a task", "", "Written by `docs/generate.py` from the docstrings in the code.", ""]
    lines += ["Settings of a group are written below its name, or as `group.key=value` on the command line.", ""]
    shared = TextTask.model_fields
    image_only = {key: field for key, field in ImageTask.model_fields.items() if key not in shared}
    lines += [*_fields("The task itself", shared), "", *_fields("Only in an image task", image_only)]
    return "\n".join(lines) + "\n"


def _fields(title: str, fields: dict[str, FieldInfo]) -> list[str]:
    groups = {key: group for key, field in fields.items() if (group := settings_group_of(field))}
    lines = [f"## {title}", "", *_table({key: field for key, field in fields.items() if key not in groups})]
    for key, group in groups.items():
        about = " ".join(f"{group.__doc__ or ''} {fields[key].description or ''}".split())
        lines += ["", f"## `{key}`", "", about, "", *_table(group.model_fields)]
    return lines


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in fields.items():
        default = f"`{_plain(field.get_default(call_default_factory=True))}`"
        default = "must be given" if field.is_required() else default
        kind = _type(field.annotation).replace("|", "\\|")
        rows.append(f"| `{key}` | {kind} | {default} | {' '.join((field.description or '').split())} |")
    return rows


def _plain(value: Any) -> str:
    """A value as written in YAML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(annotation: Any) -> str:
    """A type in words: `whole number`, `one of cosine, linear`, `list of path`."""
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
    """A section for each command with its arguments and options, as typer documents them."""
    text = (
        "# The command line\n\nWritten by `docs/generate.py` from the commands themselves.\n\n"
        "Exit codes: 0 done; 2 you must change something, and one sentence on stderr says what; 130 interrupted;\n"
        "1 a bug in twinlens. `--json` prints one JSON object on stdout.\n\n"
    )
    for path, verb in _verbs(typer.main.get_command(app), "twinlens"):
        text += get_docs_for_click(obj=verb, ctx=typer.Context(verb), name=path, indent=1)
    return text.rstrip() + "\n"


def _verbs(command: Any, path: str) -> list[tuple[str, Any]]:
    commands = getattr(command, "commands", None)
    if commands is None:
        return [(path, command)]
    return [verb for name, inner in commands.items() for verb in _verbs(inner, f"{path} {name}")]


def main() -> None:
    for path, text in documents().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
