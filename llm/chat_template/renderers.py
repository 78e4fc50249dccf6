"""Chat renderers: split a conversation into prompt, answer and separator segments.

One renderer uses the tokenizer's own chat template, the other a named template. Segments are tokenized separately, so
that the loss mask is known without a search.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from llm.chat_template.named_templates import NamedTemplate
from llm.chat_template.special_tokens import SpecialTokenEscaper
from tuning.data.conversation import Turn
from tuning.errors import DataError, ModelError, first_line


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
    kind: Literal["prompt", "answer", "separator"]
    add_bos: bool = False
    add_eos: bool = False
    loss: bool = False


@dataclass(frozen=True, slots=True)
class NamedTemplateRenderer:
    """Renderer of a named template. Each turn is rendered independently of the others."""

    template: NamedTemplate

    def render_answers(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """All segments up to the last answer and its separator."""
        question: list[Turn] = []
        begins = True
        for turn in turns[: _count_answered(turns)]:
            if turn.role != "assistant":
                question.append(turn)
                continue
            yield Segment((self._render_question(question),), "prompt", add_bos=begins)
            begins = not self.template.suffix_ends
            yield Segment((turn.content + self.template.suffix,), "answer", add_eos=begins, loss=turn.loss)
            yield Segment((self.template.separator,), "separator")
            question = []

    def render_prompt(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """All segments up to the next answer."""
        answered = _count_answered(turns)
        yield from self.render_answers(turns, where)
        question = self._render_question(turns[answered:])
        yield Segment((question,), "prompt", add_bos=not answered or not self.template.suffix_ends)

    def default_system(self) -> str | None:
        """None: a named template has no default system text."""
        return None

    def _render_question(self, turns: Sequence[Turn]) -> str:
        """System texts, then the joined user texts, because XTuner has no two questions in a row."""
        systems = (turn.content for turn in turns if turn.role == "system" and turn.content)
        asked = [turn.content for turn in turns if turn.role == "user"]
        rendered = [self.template.system.replace("{system}", content) for content in systems]
        return "".join([*rendered, self.template.question.replace("{input}", "".join(asked)) if asked else ""])


@dataclass(frozen=True, slots=True)
class TokenizerTemplateRenderer:
    """Renderer of the tokenizer's own chat template, turn by turn.

    Args:
        escaper: finds the special token that ends an answer.
    """

    tokenizer: PreTrainedTokenizerBase
    escaper: SpecialTokenEscaper

    def render_answers(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """All segments up to the last answer and its separator; `where` names the row in errors.

        Raises:
            DataError: the template refuses the turns.
            ModelError: the template fails, changes earlier turns, or does not contain an answer verbatim.
        """
        text = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:index], True, where)
            through = self._render(turns[: index + 1], False, where)
            _check_append_only(before, text, where)
            _check_append_only(through, before, where)
            yield Segment((before[len(text) :],), "prompt")
            rendered = through[len(before) :]
            end = _answer_end(turn.content, rendered)
            if end is None:
                raise ModelError(f"{where}: the chat template does not contain this answer verbatim; use another one.")
            closing = self.escaper.split_after_special_token(rendered[end:])
            stop, separator = closing or ("", rendered[end:])
            yield Segment((rendered[:end], stop), "answer", add_eos=closing is None, loss=turn.loss)
            yield Segment((separator,), "separator")
            text = through

    def render_prompt(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        """All segments up to the next answer; errors as in `render_answers`."""
        answered = turns[: _count_answered(turns)]
        yield from self.render_answers(answered, where)
        text = self._render(answered, False, where) if answered else ""
        whole = self._render(turns, True, where)
        _check_append_only(whole, text, where)
        yield Segment((whole[len(text) :],), "prompt")

    def default_system(self) -> str | None:
        """The system text that the template adds by itself: what it renders before the first user turn."""
        mark = "\u2063mark\u2063"
        plain = self._render((Turn("user", mark),), False, "chat template")
        given = self._render((Turn("system", mark), Turn("user", mark)), False, "chat template")
        frame, between, _ = given.split(mark, 2)
        before = plain.partition(mark)[0]
        if not (before.startswith(frame) and before.endswith(between) and len(before) > len(frame) + len(between)):
            return None
        return before[len(frame) : len(before) - len(between)]

    def _render(self, turns: Sequence[Turn], generate: bool, where: str) -> str:
        messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except Exception as error:  # a template is a program and can fail in any way
            reason = first_line(error)
            if type(error) is TemplateError:  # from `raise_exception` in the template
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
            "write one question in each row, or use a model with an append-only template."
        )


def _answer_end(answer: str, written: str) -> int | None:
    """End of an answer in its rendered text; templates may strip it and add leading white space."""
    for text in (answer, answer.strip()):
        start = written.find(text)
        if start >= 0 and not written[:start].strip():
            return start + len(text)
    return None
