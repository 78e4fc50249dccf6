"""What is in a dataset: its counts and lengths, and rows as the model sees them, with what is learned marked."""

# pyright: reportUnknownMemberType=false

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.data.conversation import Conversation
from tuning.data.formats import SourceRow
from tuning.errors import DataError

if TYPE_CHECKING:
    from llm.chat_template.encoding import ChatTemplate
    from tuning.training.samples import EncodedSample

_ALL = 1 << 30  # tokens; a length that cuts nothing
_LEARNED, _READ = "bold green", "dim"
_TEMPLATE = Path(__file__).with_name("inspection.html.jinja")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of rows in tokens, or in characters where there is no model to count tokens with.

    Args:
        over: rows longer than `limit` tokens; None when counted in characters.
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
        questions: distinct first questions.
        languages: rows by language, told by their letters.
        missing: distinct pictures that do not lie where the rows say.
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
    """A stretch of text and whether the model learns it."""

    text: str
    supervised: bool


@dataclass(frozen=True, slots=True)
class RowView:
    """One row as the model sees it.

    Args:
        size: such as `42 tokens, 17 learned`.
        remark: what happens to the row that its text does not show, or empty.
    """

    where: str
    pieces: tuple[TextSpan, ...]
    size: str
    remark: str
    images: tuple[str, ...]


def summarize_dataset(
    rows: Iterable[SourceRow], folder: Path, max_length: int, template: "ChatTemplate | None"
) -> DatasetSummary:
    """Count everything in one pass, holding a few bytes for each distinct row.

    Args:
        folder: that picture paths are relative to.
        max_length: tokens; rows above it are counted.
        template: measures in tokens; None measures in characters.
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
        return len(template.encode(conversation, _ALL))

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
    missing = tuple(sorted(picture for picture in pictures if not (folder / picture).exists()))
    return DatasetSummary(
        rows=len(lengths),
        distinct=len(distinct),
        questions=len(questions),
        turns=turns,
        answers=answers,
        masked_answers=masked,
        pictures=len(pictures),
        missing=missing,
        languages=dict(languages.most_common()),
        lengths=_summary(lengths, max_length, template is not None),
    )


@lru_cache(maxsize=256)
def detect_language(conversation: Conversation) -> str:
    """`zh` where a fifth of the letters are Chinese, else `en` where most are Latin, else `other`."""
    letters = [character for turn in conversation.turns for character in turn.content if character.isalpha()]
    chinese = sum("\u3400" <= letter <= "\u9fff" for letter in letters)
    latin = sum(letter < "\u0250" for letter in letters)
    if letters and chinese * 5 >= len(letters):
        return "zh"
    return "en" if latin * 2 > len(letters) else "other"


def first_distinct(rows: Iterable[SourceRow], count: int) -> list[SourceRow]:
    """The first rows of a file that differ from each other."""
    found: dict[Conversation, SourceRow] = {}
    for row in rows:
        if len(found) == count:
            break
        found.setdefault(row.conversation, row)
    return list(found.values())


def view_turns(row: SourceRow) -> RowView:
    """A row by its turns, for want of a model: answers are learned where their loss is on."""
    pieces: list[TextSpan] = []
    for index, turn in enumerate(row.conversation.turns):
        pieces.append(TextSpan(f"{chr(10) if index else ''}{turn.role}: ", False))
        pieces.append(TextSpan(turn.content, turn.role == "assistant" and turn.loss))
    characters = sum(len(turn.content) for turn in row.conversation.turns)
    return RowView(row.where, tuple(pieces), f"{characters} characters", "", tuple(map(str, row.conversation.images)))


def view_tokens(row: SourceRow, template: "ChatTemplate", max_length: int) -> RowView:
    """A row in the model's own markup, cut as training cuts it.

    Raises:
        DataError: the model's chat template refuses the turns.
    """
    try:
        sample = template.encode(row.conversation, max_length, row.where)
        remark = f"cut after the last whole answer that fits into {max_length} tokens" if sample.truncated else ""
    except DataError as error:
        sample = template.encode(row.conversation, _ALL, row.where)
        remark = str(error).removeprefix(f"{row.where}: ")
    pieces = split_at_mask(sample, lambda ids: _decode(template, ids))
    size = f"{len(sample)} tokens, {int(sample.loss_mask.sum())} learned"
    return RowView(row.where, tuple(pieces), size, remark, tuple(map(str, row.conversation.images)))


def split_at_mask(sample: "EncodedSample", decode: Callable[[list[int]], str]) -> list[TextSpan]:
    """Decode a sample at the borders of its mask.

    A token alone may be part of a letter, and a tokenizer may drop the blank a text starts with, so each piece is what
    the decoded text grows by, up to a border; mask borders never divide a letter.
    """
    ids = sample.ids.tolist()
    pieces: list[TextSpan] = []
    text, end = "", 0
    for supervised, run in groupby(sample.loss_mask.tolist()):
        end += len(list(run))
        grown = decode(ids[:end])
        pieces.append(TextSpan(grown[len(text) :], supervised))
        text = grown
    return pieces


def render_html(title: str, census: DatasetSummary, remarks: list[str], views: list[RowView]) -> str:
    """One self-contained page, everything that comes from the file escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, facts=facts(census), remarks=remarks, views=views)


def print_views(views: list[RowView], console: Any) -> None:
    """Show rows on a terminal: what is learned in colour, the rest dim.

    Args:
        console: of rich.
    """
    from rich.text import Text

    if views:
        console.print(Text.assemble(("green", _LEARNED), " is learned, ", ("dim", _READ), " is read only"))
    for view in views:
        console.rule(Text(f"{view.where} ({view.size})"), align="left")
        for image in view.images:
            console.print(Text(f"picture: {visible_controls(image)}"))
        text = Text()
        for piece in view.pieces:
            text.append(visible_controls(piece.text), style=_LEARNED if piece.supervised else _READ)
        console.print(text, soft_wrap=True)
        if view.remark:
            console.print(Text(view.remark, style="yellow"))


def facts(census: DatasetSummary) -> list[tuple[str, str]]:
    """The counts as label and value, for people."""
    lengths = census.lengths
    shown = [
        ("rows", f"{census.rows:,} ({census.distinct:,} distinct, {census.rows - census.distinct:,} copies)"),
        ("distinct questions", f"{census.questions:,}"),
        ("turns", f"{census.turns:,} ({census.answers:,} answers, {census.masked_answers:,} of them without loss)"),
        ("languages", ", ".join(f"{name} {rows:,}" for name, rows in census.languages.items())),
        (
            f"{lengths.unit} a row",
            f"shortest {lengths.shortest:,}, median {lengths.median:,}, 95 % up to {lengths.p95:,}, "
            f"longest {lengths.longest:,}",
        ),
    ]
    if lengths.over is not None:
        shown.append((f"over {lengths.limit:,} tokens", f"{lengths.over:,} rows"))
    if census.pictures:
        absent = f"{len(census.missing):,} not found, such as {census.missing[0]}" if census.missing else "all found"
        shown.append(("pictures", f"{census.pictures:,} ({absent})"))
    return shown


def visible_controls(text: str) -> str:
    """Text with its control characters made visible, so that a dataset cannot steer the terminal."""
    return "".join(
        chr(0x2400 + ord(character)) if character < " " and character not in "\n\t" else character for character in text
    ).translate({0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd")})


def _decode(template: "ChatTemplate", ids: list[int]) -> str:
    text = template.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _summary(lengths: "array[int]", limit: int, tokens: bool) -> Lengths:
    ordered = sorted(lengths)
    last = len(ordered) - 1
    return Lengths(
        unit="tokens" if tokens else "characters",
        shortest=ordered[0],
        median=ordered[last // 2],
        p95=ordered[round(last * 0.95)],
        longest=ordered[-1],
        limit=limit,
        over=sum(length > limit for length in ordered) if tokens else None,
    )
