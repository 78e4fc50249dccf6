"""Question topics of a picture: training questions, probe questions, answers, expected keywords."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from data_gen.image_qa import grammar
from data_gen.image_qa.facts import Fact, Picture, Thing
from tuning.evaluation.probes import mentions_any, normalize
from tuning.paths import shipped_file
from tuning.yaml_files import read_yaml

FIELD = re.compile(r"\{(\w+)\}")
MAX_BORROWED = 2  # nouns of other pictures used as absent, besides the `absent` of the facts file


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


@cache
def read_bank(language: str) -> Mapping[str, Mapping[str, Sequence[str]]]:
    """The shipped phrase bank of one language: by kind of question, templates by key (`questions`, `answers`, ...)."""
    return read_yaml(shipped_file(f"data/image-qa.{language}.yaml"), "phrase bank").values["kinds"]


def topics_of(picture: Picture, language: str, nouns: Sequence[str] = ()) -> tuple[Topic, ...]:
    """All topics of a picture; a question from the facts file belongs only to its fact.

    Args:
        nouns: objects of other pictures; those that this picture does not mention are used as absent objects.
    """
    topics = [*_whole(picture, language)]
    for thing in picture.objects:
        topics += _seen(thing, _words_of_facts(thing, picture, language), language)
    for fact in picture.facts:
        topics += _known(fact, language)
    spoken = true_words(picture, language)
    absent = {normalize(grammar.bare(noun)) for noun in picture.absent}
    borrowed = [
        noun
        for noun in dict.fromkeys(nouns)
        if normalize(grammar.bare(noun)) not in absent
        and not mentions_any(spoken, grammar.name_words(Thing(noun), language))
    ]
    for index, noun in enumerate([*picture.absent, *borrowed[:MAX_BORROWED]]):
        topics += absent_topics(Thing(noun), language, needed=index == 0)
    own = {normalize(question) for fact in picture.facts for question in (fact.ask, *fact.also)}
    return tuple(topic if topic.kind == "fact" else _without(topic, own) for topic in topics)


@cache
def true_words(picture: Picture, language: str) -> str:
    """All words that are true of a picture, as one text for `mentions`."""
    words = [picture.caption or "", *picture.text]
    for thing in picture.objects:
        words += [*grammar.name_words(thing, language), thing.color or "", thing.place or ""]
        words += grammar.color_words(thing.color, language) if thing.color else ()
        words += grammar.place_words(thing.place, thing.name) if thing.place else ()
        words += grammar.count_words(thing.count or 1, language)
    words += [fact.answer for fact in picture.facts]
    return "\n".join(words)


def _whole(picture: Picture, language: str) -> Iterator[Topic]:
    names = tuple(word for thing in picture.objects for word in grammar.name_words(thing, language))
    if picture.caption:
        named = names and mentions_any(picture.caption, names)
        expect = (*names, *(() if named else grammar.content_words(picture.caption)))
        yield _topic("describe", "", language, {"caption": grammar.sentence(picture.caption)}, expect, needed=True)
    if picture.objects:
        each = [grammar.fields(thing, language) for thing in picture.objects]
        values = {"things": grammar.join([one["thing"] for one in each], language), "are": each[0].get("is", "")}
        yield _topic("what", "", language, values, names, needed=True)
    if picture.text:
        yield _topic("text", "", language, {"texts": grammar.quoted(picture.text, language)}, picture.text, needed=True)


def _words_of_facts(thing: Thing, picture: Picture, language: str) -> tuple[str, ...]:
    """Words of the facts about an object; an answer about the object may contain them."""
    names = grammar.name_words(thing, language)
    return tuple(word for fact in picture.facts if mentions_any(fact.ask, names) for word in grammar.fact_words(fact))


def _seen(thing: Thing, fact_words: tuple[str, ...], language: str) -> Iterator[Topic]:
    subject, values = normalize(grammar.bare(thing.name)), grammar.fields(thing, language)
    color = grammar.color_words(thing.color, language) if thing.color else ()
    place = grammar.place_words(thing.place, thing.name) if thing.place else ()
    count = grammar.count_words(thing.count, language) if thing.count else ()
    yield _topic("present", subject, language, values, many=values.get("is") == "are")
    if color:
        yield _topic("color", subject, language, values, color, needed=True)
    if place:
        yield _topic("where", subject, language, values, place, needed=True)
    if count:
        counted = _topic("count", subject, language, values, count, needed=True)
        yield counted if thing.count != 1 else replace(counted, follow_ups=())  # "them" does not fit one object
    if color:
        yield _topic("about", subject, language, values, (*color, *place, *fact_words))
    if color or place or count:
        yield _topic("seen", subject, language, values)


def _known(fact: Fact, language: str) -> Iterator[Topic]:
    """Topics of a fact; with several questions, the last one is held out for probes."""
    asked = (fact.ask, *fact.also)
    trained, held_out = (asked[:-1], asked[-1:]) if fact.also else (asked, ())
    answer = grammar.sentence(fact.answer)
    phrases = read_bank(language)["fact"]
    fillings = [{"ask": ask, "then": grammar.continued(ask), "answer": answer} for ask in trained]
    yield Topic(
        kind="fact",
        subject=normalize(fact.ask),
        questions=tuple(_fill(phrase, values) for phrase in phrases["questions"] for values in fillings),
        follow_ups=(),
        held_out=(*held_out, *(_fill(phrase, fillings[0]) for phrase in phrases["held_out"])),
        answers=(answer,),
        expect=grammar.fact_words(fact),
        needed=True,
    )
    if fact.source:
        source = grammar.definite(fact.source) if language == "en" else fact.source
        values = {"said": answer, "source": source.removesuffix(".").removesuffix("。")}
        yield _topic("why", normalize(fact.ask), language, values, grammar.content_words(fact.source))


def absent_topics(thing: Thing, language: str, *, needed: bool = False) -> tuple[Topic, Topic]:
    """Topics of an absent object: whether it is there, and questions that presuppose it."""
    subject, values = normalize(grammar.bare(thing.name)), grammar.fields(thing, language)
    absent = _topic("absent", subject, language, values, needed=needed, many=values.get("is") == "are")
    return absent, _topic("trap", subject, language, values)


def _topic(
    kind: str,
    subject: str,
    language: str,
    values: Mapping[str, str],
    expect: tuple[str, ...] = (),
    *,
    needed: bool = False,
    many: bool = False,
) -> Topic:
    phrases = read_bank(language)[kind]

    def filled(key: str) -> tuple[str, ...]:
        return tuple(_fill(text, values) for text in phrases.get(key, ()))

    return Topic(
        kind=kind,
        subject=subject,
        questions=(filled("plural") if many else ()) or filled("questions"),
        follow_ups=filled("follow_ups"),
        held_out=filled("held_out"),
        answers=tuple(map(grammar.sentence, filled("answers"))),
        expect=tuple(dict.fromkeys(expect or phrases.get("expect", ()))),
        reject=tuple(phrases.get("reject", ())),
        needed=needed,
    )


def _fill(phrase: str, values: Mapping[str, str]) -> str:
    """Fill a phrase in one pass, so that braces in user text stay as they are."""
    text = FIELD.sub(lambda gap: values[gap[1]], phrase)
    return text[:1].upper() + text[1:]


def _without(topic: Topic, asked: set[str]) -> Topic:
    """The topic without the questions of the facts file."""

    def kept(questions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(question for question in questions if normalize(question) not in asked)

    return replace(
        topic, questions=kept(topic.questions), follow_ups=kept(topic.follow_ups), held_out=kept(topic.held_out)
    )
