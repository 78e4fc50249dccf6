"""Special-token escaping: user text that spells a special token is tokenized as plain text.

Before a template adds its special tokens, an escape character is inserted into every special token that the text
spells. Tokenization then finds only the template's own special tokens, and removes the escape characters.
"""

import re

from transformers import PreTrainedTokenizerBase

ESCAPE = "\ufdd0"  # a Unicode noncharacter, reserved for internal use; it is removed from texts
MATCHES_NOTHING = "(?!)"  # the pattern of a tokenizer without special tokens


class SpecialTokenEscaper:
    """Separates a template's special tokens from user text that spells them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = {index: token for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset((*added, *tokenizer.all_special_ids))
        """Ids of the special tokens."""
        patterns = {  # as the tokenizer finds them: some tokens include the white space around them
            token.content: r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip
            for token in added.values()
            if token.content
        }
        for word in map(str, tokenizer.all_special_tokens):
            patterns.setdefault(word, re.escape(word))
        longest_first = sorted(patterns, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or MATCHES_NOTHING)
        self._marks = re.compile("|".join(f"({patterns[word]})" for word in longest_first) or MATCHES_NOTHING)
        self._ids = [int(tokenizer.convert_tokens_to_ids(word)) for word in longest_first]  # pyright: ignore[reportArgumentType]

    def escape(self, text: str, but: str = "") -> str:
        """The text with an escape character in every special token that it spells, except in `but`."""
        return self._spelled.sub(
            lambda found: found[0] if found[0] == but else f"{found[0][0]}{ESCAPE}{found[0][1:]}", text
        )

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text that may contain escapes."""
        if ESCAPE not in text:
            return self._tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        ids: list[int] = []
        start = 0
        for found in self._marks.finditer(text):
            assert found.lastindex is not None
            ids += [*self._tokenize_plain(text[start : found.start()]), self._ids[found.lastindex - 1]]
            start = found.end()
        return ids + self._tokenize_plain(text[start:])

    def split_after_special_token(self, text: str) -> tuple[str, str] | None:
        """The text up to the end of its first special token, and the rest; None if it has no special token."""
        found = self._marks.search(text)
        return (text[: found.end()], text[found.end() :]) if found else None

    def _tokenize_plain(self, text: str) -> list[int]:
        plain = text.replace(ESCAPE, "")
        if not plain:
            return []
        return self._tokenizer(plain, add_special_tokens=False, split_special_tokens=True)["input_ids"]
