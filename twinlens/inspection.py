"""Dataset inspection: statistics, and rows as tokenized for training, with the loss mask marked."""

# pyright: reportUnknownMemberType=false

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.data.conversation import Conversation
from tuning.data.formats import SourceRow
from tuning.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm.chat_template.encoding import ChatTemplate
    from tuning.training.samples import EncodedSample

_NO_LIMIT = 1 << 30  # tokens; longer than any row
_TRAINED, _CONTEXT = "bold green", "dim"  # styles of rich
_TEMPLATE = Path(__file__).with_name("inspection.html.jinja")
_CONTROLS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of rows in tokens, or in characters if no model is given.

    Args:
        over: number of rows longer than `limit` tokens; None for characters.
    """

    unit: str
    shortest: int
    median: int
    p95: int
    longest: int
    limit: int
    over: int | None


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """Counts over all rows of a file.

    Args:
        questions: number of distinct first questions.
        pictures: number of distinct pictures; `missing` are those that do not exist.
        languages: number of rows by language; see `detect_language`.
    """

    rows: int
    distinct: int
    questions: int
    turns: int
    answers: int
    masked_answers: int
    pictures: int
    missing: tuple[str, ...]
    languages: dict[str, int]
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A part of a row's text, and whether it is trained."""

    text: str
    supervised: bool


@dataclass(frozen=True, slots=True)
class RowView:
    """One row as the model sees it.

    Args:
        size: such as `42 tokens, 17 learned`.
        remark: what training does to the row, such as truncation; may be empty.
    """

    where: str
    pieces: tuple[TextSpan, ...]
    size: str
    remark: str
    images: tuple[str, ...]


def summarize_dataset(
    rows: Iterable[SourceRow], folder: Path, max_length: int, template: "ChatTemplate | None"
) -> DatasetSummary:
    """Count everything in one pass; memory is a few bytes per row.

    Args:
        folder: picture paths are relative to it.
        max_length: limit in tokens; longer rows are counted.
        template: measures rows in tokens; None measures them in characters.
    """
    distinct: set[int] = set()
    questions: set[int] = set()
    pictures: set[str] = set()
    languages: Counter[str] = Counter()
    lengths = array("q")
    turns = answers = masked = 0

    @lru_cache(maxsize=256)
    def measure(conversation: Conversation) -> int:
        if template is None:
            return sum(len(turn.content) for turn in conversation.turns)
        return len(template.encode(conversation, _NO_LIMIT))

    for row in rows:
        conversation = row.conversation
        distinct.add(hash(conversation))
        questions.add(hash(conversation.question))
        pictures.update(map(str, conversation.images))
        languages[detect_language(conversation)] += 1
        lengths.append(measure(conversation))
        turns += len(conversation.turns)
        answers += sum(turn.role == "assistant" for turn in conversation.turns)
        masked += sum(not turn.loss for turn in conversation.turns)
    ordered, last = sorted(lengths), len(lengths) - 1
    return DatasetSummary(
        rows=len(lengths),
        distinct=len(distinct),
        questions=len(questions),
        turns=turns,
        answers=answers,
        masked_answers=masked,
        pictures=len(pictures),
        missing=tuple(sorted(picture for picture in pictures if not (folder / picture).exists())),
        languages=dict(languages.most_common()),
        lengths=Lengths(
            unit="tokens" if template else "characters",
            shortest=ordered[0],
            median=ordered[last // 2],
            p95=ordered[round(last * 0.95)],
            longest=ordered[-1],
            limit=max_length,
            over=sum(length > max_length for length in ordered) if template else None,
        ),
    )


@lru_cache(maxsize=256)
def detect_language(conversation: Conversation) -> str:
    """`zh` if a fifth of the letters are Chinese, else `en` if most are Latin, else `other`."""
    letters = [character for turn in conversation.turns for character in turn.content if character.isalpha()]
    chinese = sum("\u3400" <= letter <= "\u9fff" for letter in letters)
    latin = sum(letter < "\u0250" for letter in letters)
    if letters and chinese * 5 >= len(letters):
        return "zh"
    return "en" if latin * 2 > len(letters) else "other"


def first_distinct(rows: Iterable[SourceRow], count: int) -> list[SourceRow]:
    """The first `count` distinct rows."""
    found: dict[Conversation, SourceRow] = {}
    for row in rows:
        if len(found) == count:
            break
        found.setdefault(row.conversation, row)
    return list(found.values())


def view_turns(row: SourceRow) -> RowView:
    """A row as roles and texts, without a model; the answers with loss are trained."""
    pieces: list[TextSpan] = []
    for index, turn in enumerate(row.conversation.turns):
        pieces.append(TextSpan(f"{chr(10) if index else ''}{turn.role}: ", False))
        pieces.append(TextSpan(turn.content, turn.role == "assistant" and turn.loss))
    characters = sum(len(turn.content) for turn in row.conversation.turns)
    return RowView(row.where, tuple(pieces), f"{characters} characters", "", tuple(map(str, row.conversation.images)))


def view_tokens(row: SourceRow, template: "ChatTemplate", max_length: int) -> RowView:
    """A row in the model's chat template, truncated as in training.

    Raises:
        DataError: the chat template refuses the turns.
    """
    try:
        sample = template.encode(row.conversation, max_length, row.where)
        remark = f"cut after the last whole answer that fits into {max_length} tokens" if sample.truncated else ""
    except DataError as error:
        sample = template.encode(row.conversation, _NO_LIMIT, row.where)
        remark = str(error).removeprefix(f"{row.where}: ")
    pieces = split_at_mask(sample, template.tokenizer)
    size = f"{len(sample)} tokens, {int(sample.loss_mask.sum())} learned"
    return RowView(row.where, tuple(pieces), size, remark, tuple(map(str, row.conversation.images)))


def split_at_mask(sample: "EncodedSample", tokenizer: "PreTrainedTokenizerBase") -> list[TextSpan]:
    """Decode a sample and split its text where the loss mask changes.

    One token may be a part of a character, and a tokenizer may drop a leading space. So every prefix up to a change of
    the mask is decoded, and each piece is the text that it adds. The mask never changes inside a character.
    """
    ids = sample.ids.tolist()
    pieces: list[TextSpan] = []
    text, end = "", 0
    for supervised, run in groupby(sample.loss_mask.tolist()):
        end += len(list(run))
        prefix = str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        pieces.append(TextSpan(prefix[len(text) :], supervised))
        text = prefix
    return pieces


def render_html(title: str, summary: DatasetSummary, remarks: list[str], views: list[RowView]) -> str:
    """One self-contained page; all text of the dataset is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, facts=facts(summary), remarks=remarks, views=views)


def print_report(title: str, summary: DatasetSummary, remarks: list[str], views: list[RowView]) -> None:
    """Print the same as `render_html` on the terminal: trained text in color, the rest dim."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    for line in (title, *(f"{label}: {value}" for label, value in facts(summary)), *remarks):
        console.print(visible_controls(line), soft_wrap=True)
    if views:
        console.print(Text.assemble(("green", _TRAINED), " is learned, ", ("dim", _CONTEXT), " is context only"))
    for view in views:
        console.rule(Text(f"{view.where} ({view.size})"), align="left")
        for image in view.images:
            console.print(f"picture: {visible_controls(image)}")
        spans = ((visible_controls(span.text), _TRAINED if span.supervised else _CONTEXT) for span in view.pieces)
        console.print(Text.assemble(*spans), soft_wrap=True)
        if view.remark:
            console.print(view.remark, style="yellow")


def facts(summary: DatasetSummary) -> list[tuple[str, str]]:
    """The counts as pairs of label and text."""
    lengths = summary.lengths
    shown = [
        ("rows", f"{summary.rows:,} ({summary.distinct:,} distinct, {summary.rows - summary.distinct:,} copies)"),
        ("distinct questions", f"{summary.questions:,}"),
        ("turns", f"{summary.turns:,} ({summary.answers:,} answers, {summary.masked_answers:,} of them without loss)"),
        ("languages", ", ".join(f"{name} {rows:,}" for name, rows in summary.languages.items())),
        (
            f"{lengths.unit} per row",
            f"shortest {lengths.shortest:,}, median {lengths.median:,}, 95 % up to {lengths.p95:,}, "
            f"longest {lengths.longest:,}",
        ),
    ]
    if lengths.over is not None:
        shown.append((f"over {lengths.limit:,} tokens", f"{lengths.over:,} rows"))
    if summary.pictures:
        absent = f"{len(summary.missing):,} not found, such as {summary.missing[0]}" if summary.missing else "all found"
        shown.append(("pictures", f"{summary.pictures:,} ({absent})"))
    return shown


def visible_controls(text: str) -> str:
    """Replace control characters by visible ones, so that a dataset cannot control the terminal."""
    return text.translate(_CONTROLS)
