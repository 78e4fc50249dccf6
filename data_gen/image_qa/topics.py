"""Question topics of a picture: training questions, held-out questions for probes, answers, expected words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from data_gen.image_qa import wording
from data_gen.image_qa.facts import Fact, Picture, Thing
from data_gen.names import fold
from tuning.evaluation.probes import mentions_any
from tuning.paths import shipped_file

FIELD = re.compile(r"\{(\w+)\}")
MAX_BORROWED = 2  # nouns of other pictures used as absent, besides the `absent` of the facts file


@dataclass(frozen=True, slots=True)
class Phrases:
    """Phrase templates of one kind of question in one language.

    Args:
        questions: for training; `plural`, if any, replaces them for several objects.
        follow_ups: refer to the subject of the previous round.
        held_out: for probes, never trained on.
        expect: words of a correct answer, for kinds where these are fixed; `reject`: words of a wrong one.
    """

    questions: tuple[str, ...] = ()
    plural: tuple[str, ...] = ()
    follow_ups: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    expect: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of a picture, with filled phrases.

    Args:
        kind: key of the phrase bank.
        subject: folded name of the object, or the question of the fact; empty for the picture as a whole.
        needed: at least one dialogue must ask it.
    """

    kind: str
    subject: str
    questions: tuple[str, ...]
    follow_ups: tuple[str, ...]
    held_out: tuple[str, ...]
    answers: tuple[str, ...]
    expect: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    needed: bool = False


Bank = Mapping[str, Phrases]


@lru_cache(maxsize=2)
def read_bank(language: str) -> Bank:
    """The shipped phrase bank of one language, by kind."""
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe")
    document: dict[str, dict[str, dict[str, list[str]]]] = yaml.load(shipped_file(f"data/image-qa.{language}.yaml"))
    return {
        kind: Phrases(**{key: tuple(texts) for key, texts in phrases.items()})
        for kind, phrases in document["kinds"].items()
    }


def topics_of(picture: Picture, language: str, nouns: Sequence[str] = ()) -> tuple[Topic, ...]:
    """All topics of a picture; a question that the facts file answers belongs to its fact only.

    Args:
        nouns: objects of other pictures; those that this picture does not mention serve as absent objects.
    """
    bank = read_bank(language)
    topics = [*_whole(picture, bank, language)]
    for thing in picture.objects:
        topics += _seen(thing, _words_of_facts(thing, picture, language), bank, language)
    for fact in picture.facts:
        topics += _known(fact, bank, language)
    spoken = true_words(picture, language)
    borrowed = [noun for noun in nouns if not mentions_any(spoken, wording.name_words(Thing(noun), language))]
    for index, noun in enumerate([*picture.absent, *_others(borrowed, picture.absent)[:MAX_BORROWED]]):
        topics += absent_topics(Thing(noun), language, needed=index == 0)
    own = {fold(question) for fact in picture.facts for question in (fact.ask, *fact.also)}
    return tuple(topic if topic.kind == "fact" else _without(topic, own) for topic in topics)


def true_words(picture: Picture, language: str) -> str:
    """All words that are true of a picture, as one text for `mentions`."""
    words = [picture.caption or "", *picture.text]
    for thing in picture.objects:
        words += [*wording.name_words(thing, language), thing.color or "", thing.place or ""]
        words += wording.color_words(thing.color, language) if thing.color else ()
        words += wording.place_words(thing.place, thing.name) if thing.place else ()
        words += wording.count_words(thing.count or 1, language)
    words += [fact.answer for fact in picture.facts]
    return "\n".join(words)


def _whole(picture: Picture, bank: Bank, language: str) -> Iterator[Topic]:
    names = tuple(word for thing in picture.objects for word in wording.name_words(thing, language))
    if picture.caption:
        named = names and mentions_any(picture.caption, names)
        expect = (*names, *(() if named else wording.content_words(picture.caption)))
        yield _topic("describe", "", bank, {"caption": wording.sentence(picture.caption)}, expect, needed=True)
    if picture.objects:
        each = [wording.fields(thing, language) for thing in picture.objects]
        values = {"things": wording.join([one["thing"] for one in each], language), "are": each[0].get("is", "")}
        yield _topic("what", "", bank, values, names, needed=True)
    if picture.text:
        yield _topic("text", "", bank, {"texts": wording.quoted(picture.text, language)}, picture.text, needed=True)


def _words_of_facts(thing: Thing, picture: Picture, language: str) -> tuple[str, ...]:
    """Words of the facts about an object; an answer about the object may contain them."""
    names = wording.name_words(thing, language)
    return tuple(word for fact in picture.facts if mentions_any(fact.ask, names) for word in wording.fact_words(fact))


def _seen(thing: Thing, fact_words: tuple[str, ...], bank: Bank, language: str) -> Iterator[Topic]:
    subject, values = fold(wording.bare(thing.name)), wording.fields(thing, language)
    color = wording.color_words(thing.color, language) if thing.color else ()
    place = wording.place_words(thing.place, thing.name) if thing.place else ()
    count = wording.count_words(thing.count, language) if thing.count else ()
    many = values.get("is") == "are"
    yield _topic("present", subject, bank, values, many=many)
    if color:
        yield _topic("color", subject, bank, values, color, needed=True)
    if place:
        yield _topic("where", subject, bank, values, place, needed=True)
    if count:
        counted = _topic("count", subject, bank, values, count, needed=True)
        yield counted if thing.count != 1 else replace(counted, follow_ups=())  # "them" does not fit one object
    if color:
        where = f" {values['place']}" if language == "en" else f"，在{values['place']}"
        yield _topic("about", subject, bank, values | {"where": where if place else ""}, (*color, *place, *fact_words))
    if color or place or count:
        yield _topic("seen", subject, bank, values)


def _known(fact: Fact, bank: Bank, language: str) -> Iterator[Topic]:
    """Topics of a fact; with several questions, the last one is held out for probes."""
    asked = (fact.ask, *fact.also)
    trained, held_out = (asked[:-1], asked[-1:]) if fact.also else (asked, ())
    answer = wording.sentence(fact.answer)
    phrases = bank["fact"]
    fillings = [{"ask": ask, "then": wording.continued(ask), "answer": answer} for ask in trained]
    yield Topic(
        kind="fact",
        subject=fold(fact.ask),
        questions=tuple(_fill(phrase, values) for phrase in phrases.questions for values in fillings),
        follow_ups=(),
        held_out=(*held_out, *(_fill(phrase, fillings[0]) for phrase in phrases.held_out)),
        answers=(answer,),
        expect=wording.fact_words(fact),
        needed=True,
    )
    if fact.source:
        source = wording.definite(fact.source) if language == "en" else fact.source
        values = {"said": answer, "source": source.removesuffix(".").removesuffix("。")}
        yield _topic("why", fold(fact.ask), bank, values, wording.content_words(fact.source))


def absent_topics(thing: Thing, language: str, *, needed: bool = False) -> tuple[Topic, Topic]:
    """Topics of an absent object: whether it is there, and questions that presuppose it."""
    bank = read_bank(language)
    subject, values = fold(wording.bare(thing.name)), wording.fields(thing, language)
    many = values.get("is") == "are"
    return (
        _topic("absent", subject, bank, values, needed=needed, many=many),
        _topic("trap", subject, bank, values),
    )


def _others(nouns: Sequence[str], absent: Sequence[str]) -> list[str]:
    known = {fold(wording.bare(noun)) for noun in absent}
    return [noun for noun in dict.fromkeys(nouns) if fold(wording.bare(noun)) not in known]


def _topic(
    kind: str,
    subject: str,
    bank: Bank,
    values: Mapping[str, str],
    expect: tuple[str, ...] = (),
    *,
    needed: bool = False,
    many: bool = False,
) -> Topic:
    phrases = bank[kind]
    questions = phrases.plural if many and phrases.plural else phrases.questions
    return Topic(
        kind=kind,
        subject=subject,
        questions=tuple(_fill(text, values) for text in questions),
        follow_ups=tuple(_fill(text, values) for text in phrases.follow_ups),
        held_out=tuple(_fill(text, values) for text in phrases.held_out),
        answers=tuple(wording.sentence(_fill(text, values)) for text in phrases.answers),
        expect=tuple(dict.fromkeys(expect or phrases.expect)),
        reject=phrases.reject,
        needed=needed,
    )


def _fill(phrase: str, values: Mapping[str, str]) -> str:
    """Fill a phrase in one pass, so that braces in user text stay as they are."""
    text = FIELD.sub(lambda gap: values[gap[1]], phrase)
    return text[:1].upper() + text[1:]


def _without(topic: Topic, asked: set[str]) -> Topic:
    """The topic without the questions of the facts file."""

    def kept(questions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(question for question in questions if fold(question) not in asked)

    return replace(
        topic, questions=kept(topic.questions), follow_ups=kept(topic.follow_ups), held_out=kept(topic.held_out)
    )
