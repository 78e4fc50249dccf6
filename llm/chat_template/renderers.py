"""Chat renderers: turns to prompt, answer and separator segments, by the model's chat template or a named one.

Segments are tokenized separately, so that the loss mask is known without searching.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from llm.chat_template.named_templates import NamedTemplate
from llm.chat_template.special_tokens import SpecialTokenEscaper
from tuning.data.conversation import Turn
from tuning.errors import DataError, ModelError, first_line

Kind = Literal["prompt", "answer", "separator"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the rendered conversation.

    Args:
        texts: tokenized separately.
        kind: prompt, answer with its stop token, or separator before the next turn.
        add_bos: whether the bos token precedes it; `add_eos`: whether the eos token follows.
        loss: whether an answer is trained on.
    """

    texts: tuple[str, ...]
    kind: Kind
    add_bos: bool = False
    add_eos: bool = False
    loss: bool = False


class ChatRenderer(Protocol):
    """Renders turns into segments; `where` names the row in errors."""

    def render_answers(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """All segments up to the last answer and its separator."""
        ...

    def render_prompt(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """All segments up to the next answer."""
        ...

    def default_system(self) -> str | None:
        """The system text that the template adds by itself."""
        ...


class NamedTemplateRenderer:
    """Renderer of a named template; its text depends on one turn at a time."""

    def __init__(self, template: NamedTemplate) -> None:
        self._template = template

    def render_answers(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """As in `ChatRenderer`."""
        asked: list[Turn] = []
        begins = True
        for turn in turns[: _count_answered(turns)]:
            if turn.role != "assistant":
                asked.append(turn)
                continue
            yield Segment((self._render_question(asked),), "prompt", add_bos=begins)
            begins = not self._template.suffix_ends
            yield Segment((turn.content + self._template.suffix,), "answer", add_eos=begins, loss=turn.loss)
            yield Segment((self._template.separator,), "separator")
            asked = []

    def render_prompt(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """As in `ChatRenderer`."""
        yield from self.render_answers(turns, where)
        asked = self._render_question(turns[_count_answered(turns) :])
        yield Segment((asked,), "prompt", add_bos=not _count_answered(turns) or not self._template.suffix_ends)

    def default_system(self) -> str | None:
        """None: named templates add nothing."""
        return None

    def _render_question(self, turns: Sequence[Turn]) -> str:
        """System texts, then the user's texts joined: XTuner has no two questions in a row."""
        systems = (turn.content for turn in turns if turn.role == "system" and turn.content)
        said = [turn.content for turn in turns if turn.role == "user"]
        written = [self._template.system.replace("{system}", content) for content in systems]
        return "".join([*written, self._template.question.replace("{input}", "".join(said)) if said else ""])


class TokenizerTemplateRenderer:
    """Renderer of the tokenizer's own chat template, turn by turn.

    Args:
        escaper: finds the special token that ends an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, escaper: SpecialTokenEscaper) -> None:
        self._tokenizer = tokenizer
        self._escaper = escaper

    def render_answers(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """As in `ChatRenderer`.

        Raises:
            DataError: the template refuses the turns.
            ModelError: the template fails, changes earlier turns, or does not contain an answer verbatim.
        """
        return (segment for segment, _ in self._walk(turns, where))

    def render_prompt(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """As in `ChatRenderer`."""
        text = ""
        for segment, text in self._walk(turns, where):  # noqa: B007 - the last text is needed below
            yield segment
        whole = self._render(turns, True, where)
        _check_append_only(whole, text, where)
        yield Segment((whole[len(text) :],), "prompt")

    def default_system(self) -> str | None:
        """The text before the first user turn."""
        mark = "\u2063mark\u2063"
        plain = self._render((Turn("user", mark),), False, "chat template")
        given = self._render((Turn("system", mark), Turn("user", mark)), False, "chat template")
        frame, between, _ = given.split(mark, 2)
        before = plain.partition(mark)[0]
        if not (before.startswith(frame) and before.endswith(between) and len(before) > len(frame) + len(between)):
            return None
        return before[len(frame) : len(before) - len(between)]

    def _walk(self, turns: Sequence[Turn], where: str) -> Iterator[tuple[Segment, str]]:
        """Segments in order, each with the text rendered up to the end of its turn."""
        text = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:index], True, where)
            whole = self._render(turns[: index + 1], False, where)
            _check_append_only(before, text, where)
            _check_append_only(whole, before, where)
            yield Segment((before[len(text) :],), "prompt"), whole
            written = whole[len(before) :]
            end = _answer_end(turn.content, written)
            if end is None:
                raise ModelError(f"{where}: the chat template does not contain this answer verbatim; use another.")
            closing = self._escaper.split_after_special_token(written[end:])
            stop, separator = closing or ("", written[end:])
            yield Segment((written[:end], stop), "answer", add_eos=closing is None, loss=turn.loss), whole
            yield Segment((separator,), "separator"), whole
            text = whole

    def _render(self, turns: Sequence[Turn], generate: bool, where: str) -> str:
        messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except Exception as error:  # a template is a program, and fails as one
            reason = first_line(error)
            if type(error) is TemplateError:  # as its own raise_exception does
                raise DataError(
                    f"{where}: the model's chat template refuses these turns ({reason}); change their roles."
                ) from error
            raise ModelError(
                f"{where}: the model's chat template fails ({reason}); name another with `template`."
            ) from error
        assert isinstance(text, str)
        return text


def _count_answered(turns: Sequence[Turn]) -> int:
    """Number of turns up to the last answer."""
    return 1 + max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=-1)


def _check_append_only(text: str, prefix: str, where: str) -> None:
    if not text.startswith(prefix):
        raise ModelError(
            f"{where}: the chat template changes earlier turns, so training and generation would differ; "
            "give one question in each row or use a model with an append-only template."
        )


def _answer_end(answer: str, written: str) -> int | None:
    """End of an answer in its rendered text; templates may strip it and add leading white space."""
    for text in (answer, answer.strip()):
        start = written.find(text)
        if start >= 0 and not written[:start].strip():
            return start + len(text)
    return None
