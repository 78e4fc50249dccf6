"""English and Chinese grammar (articles, plurals, numbers); keywords that a correct answer contains."""

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from data_gen.image_qa.facts import Fact, Thing
from tuning.evaluation.probes import IN_CJK, mentions
from tuning.paths import shipped_file
from tuning.yaml_files import read_yaml

CHINESE_NUMBERS = "零一两三四五六七八九十"
JOINED = re.compile(r" (?=of |with |on |in |for |from |at |and )")
PARTICLES = "的是在了和有叫为与及，。！？、：；“”「」《》（）\\s"


@cache
def _words() -> dict[str, Any]:
    return read_yaml(shipped_file("data/words.en.yaml"), "word list").values


def fields(thing: Thing, language: str) -> dict[str, str]:
    """Values for the fields of a phrase about an object."""
    return _english(thing) if language == "en" else _chinese(thing)


def join(words: Sequence[str], language: str) -> str:
    """`a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    comma, last = (", ", " and ") if language == "en" else ("、", "和")
    return comma.join(words[:-1]) + last + words[-1]


def quoted(texts: Iterable[str], language: str) -> str:
    """A list of texts in the quotation marks of the language."""
    return join([f'"{text}"' if language == "en" else f"“{text}”" for text in texts], language)


def definite(name: str) -> str:
    """`the workshop log`; a proper name or a URL gets no article."""
    name = bare(name)
    return name if _proper(name) or name.lower().startswith(("the ", "my ", "our ")) else f"the {name}"


def bare(name: str) -> str:
    """The name without the article `a` or `an`."""
    return re.sub(r"^an? (?=.)", "", name, flags=re.IGNORECASE)


def continued(question: str) -> str:
    """A question in the form that follows a colon: `what is the robot called?`."""
    first = question.split(" ", 1)[0]
    return question[0].lower() + question[1:] if first.lower() in _words()["questions"] else question


def sentence(text: str) -> str:
    """The text with an upper-case first letter and a final punctuation mark."""
    text = text[:1].upper() + text[1:]
    if text[-1:] in ".!?。！？…" or text[-2:] in ('."', '!"', '?"', "。”", "！”", "？”"):
        return text
    return text + ("。" if IN_CJK.search(text[-1:]) else ".")


def plural(name: str) -> str:
    """`cup of tea` -> `cups of tea`; a plural name does not change."""
    head, *rest = JOINED.split(name, maxsplit=1)
    *before, noun = head.split(" ")
    low = noun.lower()
    if is_plural(name):
        return name
    irregular: dict[str, str] = _words()["irregular"]
    if low in irregular:
        noun = irregular[low] if noun == low else irregular[low].capitalize()
    elif re.search(r"(s|x|z|ch|sh)$", low):
        noun += "es"
    elif re.search(r"[^aeiou]y$", low):
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return " ".join([*before, noun, *rest])


def is_plural(name: str) -> bool:
    """Whether an English name is a plural: `scissors`, `people`."""
    noun = JOINED.split(name, maxsplit=1)[0].split(" ")[-1].lower()
    irregular: dict[str, str] = _words()["irregular"]
    if noun in irregular.values():
        return noun not in irregular  # one sheep and two sheep are spelled the same
    return noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun not in _words()["ends-in-s"]


def name_words(thing: Thing, language: str) -> tuple[str, ...]:
    """Forms of the name in an answer: singular and plural."""
    name = bare(thing.name)
    return (name,) if language == "zh" else tuple(dict.fromkeys((name, plural(name), _singular(name))))


def color_words(color: str, language: str) -> tuple[str, ...]:
    """`dark blue and white` -> `blue`, `white`."""
    if language == "zh" or IN_CJK.search(color):
        return tuple(dict.fromkeys((color, color.removesuffix("色") or color)))
    return _same(
        [word for word in re.findall(r"[^\W\d_]+", color) if word.lower() not in _words()["shades"]] or [color]
    )


def count_words(count: int, language: str) -> tuple[str, ...]:
    """The number in digits and as a word."""
    unit = "个" if language == "zh" else ""
    return tuple(dict.fromkeys((str(count), _number(count, language) + unit)))


def place_words(place: str, name: str) -> tuple[str, ...]:
    """The words that distinguish a place from others: `in the middle` -> `middle`, `center`, `centre`."""
    if IN_CJK.search(place):
        return (place.removeprefix("在"),)
    dull = {*_words()["places"], *name.lower().split()}
    return _same([word for word in re.findall(r"\w+", place) if word.lower() not in dull] or [place])


def answer_words(text: str, question: str) -> tuple[str, ...]:
    """Words of an answer that its question lacks: names and numbers, or else other new words."""
    if IN_CJK.search(text):
        return _new_chinese(text, question)
    first, *rest = re.findall(r"\w+(?:[.,'’:-]\w+)*", text) or [""]
    named = (
        first if rest and rest[0][0].isupper() else ""
    )  # otherwise it has a capital only because it is the first word
    telling = [word for word in (named, *rest) if word[:1].isupper() or word.lower() in _words()["numbers"]]
    telling += [word for word in (first, *rest) if any(sign.isdigit() for sign in word)]
    new = [word for word in telling if word.lower() not in _words()["dull"] and not mentions(question, word)]
    return tuple(dict.fromkeys(new)) or content_words(
        " ".join(word for word in (first, *rest) if word and not mentions(question, word))
    )


def content_words(text: str) -> tuple[str, ...]:
    """The content words of a text: no articles, pronouns and other function words."""
    if IN_CJK.search(text):
        return _new_chinese(text, "")
    words = re.findall(r"\w+", text)
    telling = [word for word in words if word.lower() not in _words()["dull"]]
    return tuple(dict.fromkeys([word for word in telling if len(word) > 3] or telling or words[-1:]))


def fact_words(fact: Fact) -> tuple[str, ...]:
    """Words of a fact; a correct answer contains one of them."""
    return fact.expect or answer_words(fact.answer, fact.ask)


def _english(thing: Thing) -> dict[str, str]:
    name = bare(thing.name)
    many = thing.count > 1 if thing.count else is_plural(name)
    name = plural(name) if many else name
    unique = _proper(name) or name.lower().startswith("the ")
    uncountable = name.lower().split(" ")[-1] in _words()["uncountable"]
    number = _number(thing.count, "en") if thing.count else ""
    amount = number if many and number else "some" if many or uncountable else ""
    full = f"{thing.color} {name}" if thing.color and not unique else name
    place = _words()["sides"].get((thing.place or "").lower(), thing.place or "")

    def counted(words: str, amount: str) -> str:
        if amount:
            return f"{amount} {words}"
        return words if _proper(words) or words.lower().startswith("the ") else f"{_article(words)} {words}"

    return {
        "name": name,
        "the": definite(name),
        "thing": counted(name, amount),
        "full": counted(full, amount),
        "any": counted(name, "any" if many or uncountable else ""),
        "names": plural(name),
        "counted": f"{number} {name}",
        "is": "are" if many else "is",
        "does": "do" if many else "does",
        "it": "they" if many else "it",
        "them": "them" if many else "it",
        "color": thing.color or "",
        "place": place,
        "where": f" {place}" if place else "",
    }


def _chinese(thing: Thing) -> dict[str, str]:
    count = f"{_number(thing.count, 'zh')}个" if thing.count else ""
    color = thing.color or ""
    if color and IN_CJK.search(color) and not color.endswith("色"):
        color += "色"
    place = (thing.place or "").removeprefix("在")
    return {
        "name": thing.name,
        "thing": f"{count}{thing.name}",
        "full": f"{count}{f'{color}的' if color else ''}{thing.name}",
        "count": count,
        "color": color,
        "place": place,
        "where": f"，在{place}" if thing.place else "",
        "it": "它们" if thing.count and thing.count > 1 else "它",
    }


def _number(count: int, language: str) -> str:
    numbers: Sequence[str] = _words()["numbers"] if language == "en" else CHINESE_NUMBERS
    return numbers[count] if count < len(numbers) else str(count)


def _new_chinese(text: str, question: str) -> tuple[str, ...]:
    """Parts of the text that are not in the question, split at particles and punctuation."""
    matcher = difflib.SequenceMatcher(None, question, text, autojunk=False)
    stretches = [text[start:end] for tag, _, _, start, end in matcher.get_opcodes() if tag in ("insert", "replace")]
    words = [word for stretch in stretches for word in re.split(f"[{PARTICLES}]+", stretch) if word]
    plain = re.findall(r"[0-9A-Za-z]+(?:\.[0-9]+)?", " ".join(words))
    return tuple(dict.fromkeys([*plain, *(word for word in words if len(word) > 1)] or words or [text]))


def _same(words: Sequence[str]) -> tuple[str, ...]:
    """The words and their other spellings."""
    found = [other for word in words for group in _words()["spellings"] if word.lower() in group for other in group]
    return tuple(dict.fromkeys([*words, *found]))


def _singular(name: str) -> str:
    irregular: dict[str, str] = _words()["irregular"]
    for one, many in irregular.items():
        if name.lower() == many:
            return one
    if not is_plural(name) or " of " in name:
        return name
    if re.search(r"(xes|ches|shes|sses)$", name):
        return name[:-2]
    return name[:-3] + "y" if name.endswith("ies") else name.removesuffix("s")


def _proper(name: str) -> bool:
    """Whether every word is a capital and small letters (Tilly, Ada Lovelace; not TV or LEGO brick), or a URL."""
    return bool(re.fullmatch(r"([A-Z][a-z'’]+)( [A-Z][a-z'’]+)*", name)) or "://" in name


def _article(words: str) -> str:
    low = words.lower()
    if low.startswith(("hour", "honest", "heir")):
        return "an"
    return "an" if low[0] in "aeiou" and not low.startswith(("uni", "use", "euro", "one", "ufo", "uk")) else "a"
