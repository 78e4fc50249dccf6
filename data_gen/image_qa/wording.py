"""Grammar helpers for English and Chinese phrases (articles, plurals, lists), and expected words of answers."""

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from data_gen.image_qa.facts import Fact, Thing
from tuning.evaluation.probes import IN_CJK, mentions
from tuning.paths import shipped_file

CHINESE_NUMBERS = "零一两三四五六七八九十"
JOINED = re.compile(r" (?=of |with |on |in |for |from |at |and )")
PARTICLES = "的是在了和有叫为与及，。！？、：；“”「」《》（）\\s"


@lru_cache(maxsize=1)
def _words() -> dict[str, Any]:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe")
    return yaml.load(shipped_file("data/words.en.yaml"))


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
    """Texts as they stand in a picture, in the language's quotation marks."""
    return join([f'"{text}"' if language == "en" else f"“{text}”" for text in texts], language)


def definite(name: str) -> str:
    """`the workshop log`; a proper name or an address stays as it is."""
    name = bare(name)
    return name if _proper(name) or name.lower().startswith(("the ", "my ", "our ")) else f"the {name}"


def bare(name: str) -> str:
    """The name without `a` or `an` in front."""
    return re.sub(r"^an? (?=.)", "", name, flags=re.IGNORECASE)


def continued(question: str) -> str:
    """A question as it goes on after a colon: `what is the robot called?`."""
    first = question.split(" ", 1)[0]
    return question[0].lower() + question[1:] if first.lower() in _words()["questions"] else question


def sentence(text: str) -> str:
    """A first letter in upper case and an end, where they are missing."""
    text = text[:1].upper() + text[1:]
    if text[-1:] in ".!?。！？…" or text[-2:] in ('."', '!"', '?"', "。”", "！”", "？”"):
        return text
    return text + ("。" if IN_CJK.search(text[-1:]) else ".")


def plural(name: str) -> str:
    """`cup of tea` -> `cups of tea`; a name that is plural already stays."""
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
    """Whether an English name reads as more than one: `scissors`, `people`."""
    noun = JOINED.split(name, maxsplit=1)[0].split(" ")[-1].lower()
    irregular: dict[str, str] = _words()["irregular"]
    if noun in irregular.values():
        return noun not in irregular  # one sheep and two sheep are spelled the same
    return noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun not in _words()["ends-in-s"]


def name_words(thing: Thing, language: str) -> tuple[str, ...]:
    """The name as an answer may have it, in singular and plural."""
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
    if language == "zh":
        return (str(count), f"{_chinese_number(count)}个")
    return tuple(dict.fromkeys((str(count), _number(count))))


def place_words(place: str, name: str) -> tuple[str, ...]:
    """The words of a place that tell it from others: `in the middle` -> `middle`, `center`, `centre`."""
    if IN_CJK.search(place):
        return (place.removeprefix("在"),)
    dull = {*_words()["places"], *name.lower().split()}
    return _same([word for word in re.findall(r"\w+", place) if word.lower() not in dull] or [place])


def answer_words(text: str, question: str) -> tuple[str, ...]:
    """Words of an answer that its question lacks: names and numbers, or else other new words."""
    if IN_CJK.search(text):
        return _new_chinese(text, question)
    first, *rest = re.findall(r"\w+(?:[.,'’:-]\w+)*", text) or [""]
    named = first if rest and rest[0][0].isupper() else ""  # otherwise its capital says only that it is first
    telling = [word for word in (named, *rest) if word[:1].isupper() or word.lower() in _words()["numbers"]]
    telling += [word for word in (first, *rest) if any(sign.isdigit() for sign in word)]
    new = [word for word in telling if word.lower() not in _words()["dull"] and not mentions(question, word)]
    return tuple(dict.fromkeys(new)) or content_words(
        " ".join(word for word in (first, *rest) if word and not mentions(question, word))
    )


def content_words(text: str) -> tuple[str, ...]:
    """The words of a text that mean something by themselves."""
    if IN_CJK.search(text):
        return _new_chinese(text, "")
    words = re.findall(r"\w+", text)
    telling = [word for word in words if word.lower() not in _words()["dull"]]
    return tuple(dict.fromkeys([word for word in telling if len(word) > 3] or telling or words[-1:]))


def fact_words(fact: Fact) -> tuple[str, ...]:
    """Words of which a correct answer to a fact holds one."""
    return fact.expect or answer_words(fact.answer, fact.ask)


def _english(thing: Thing) -> dict[str, str]:
    name = bare(thing.name)
    many = thing.count > 1 if thing.count else is_plural(name)
    name = plural(name) if many else name
    number = _number(thing.count) if thing.count else ""
    color = f"{thing.color} " if thing.color else ""
    amount = number if many and number else "some" if many or _uncountable(name) else ""

    def some(words: str, amount: str) -> str:
        if amount:
            return f"{amount} {words}"
        return words if _proper(words) or words.lower().startswith("the ") else f"{_article(words)} {words}"

    shown = name if _proper(name) or name.lower().startswith("the ") else f"{color}{name}"
    return {
        "name": name,
        "the": definite(name),
        "thing": some(name, amount),
        "full": some(shown, amount),
        "any": some(name, "any" if many or _uncountable(name) else ""),
        "names": plural(name),
        "counted": f"{number} {name}",
        "is": "are" if many else "is",
        "does": "do" if many else "does",
        "it": "they" if many else "it",
        "them": "them" if many else "it",
        "color": thing.color or "",
        "place": _words()["sides"].get((thing.place or "").lower(), thing.place or ""),
    }


def _chinese(thing: Thing) -> dict[str, str]:
    count = f"{_chinese_number(thing.count)}个" if thing.count else ""
    color = thing.color or ""
    if color and IN_CJK.search(color) and not color.endswith("色"):
        color += "色"
    return {
        "name": thing.name,
        "thing": f"{count}{thing.name}",
        "full": f"{count}{f'{color}的' if color else ''}{thing.name}",
        "count": count,
        "color": color,
        "place": (thing.place or "").removeprefix("在"),
        "it": "它们" if thing.count and thing.count > 1 else "它",
    }


def _number(count: int) -> str:
    numbers: list[str] = _words()["numbers"]
    return numbers[count] if count < len(numbers) else str(count)


def _chinese_number(count: int) -> str:
    return CHINESE_NUMBERS[count] if count < len(CHINESE_NUMBERS) else str(count)


def _new_chinese(text: str, question: str) -> tuple[str, ...]:
    """Stretches of the text that the question does not have, cut at the words that mean nothing."""
    matcher = difflib.SequenceMatcher(None, question, text, autojunk=False)
    stretches = [text[start:end] for tag, _, _, start, end in matcher.get_opcodes() if tag in ("insert", "replace")]
    words = [word for stretch in stretches for word in re.split(f"[{PARTICLES}]+", stretch) if word]
    plain = re.findall(r"[0-9A-Za-z]+(?:\.[0-9]+)?", " ".join(words))
    return tuple(dict.fromkeys([*plain, *(word for word in words if len(word) > 1)] or words or [text]))


def _same(words: Sequence[str]) -> tuple[str, ...]:
    """The words, and other spellings of them."""
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
    """Tilly, or Ada Lovelace: capital, then small letters, in every word; TV and LEGO brick are no such names."""
    return bool(re.fullmatch(r"([A-Z][a-z'’]+)( [A-Z][a-z'’]+)*", name)) or "://" in name


def _uncountable(name: str) -> bool:
    return name.lower().split(" ")[-1] in _words()["uncountable"]


def _article(words: str) -> str:
    low = words.lower()
    if low.startswith(("hour", "honest", "heir")):
        return "an"
    return "an" if low[0] in "aeiou" and not low.startswith(("uni", "use", "euro", "one", "ufo", "uk")) else "a"
