"""InternLM tokenizers: fast tokenizers from the sentencepiece file, with the ids of the official classes.

transformers' own ways to such a file give other ids (a space put in front) or need the checkpoint's code. The file is
a list of pieces with scores, and byte-pair encoding by score is all that the official classes do with it.

Facts: sentencepiece_model.proto; InternEvo's tokenization_internlm.py and tokenization_internlm2.py.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm.checkpoints.config_json import model_type, read_json_object
from tuning.errors import ModelError, first_line

CLASSES = ("InternLMTokenizer", "InternLM2Tokenizer", "InternLM2TokenizerFast")
SENTENCEPIECE_FILE, TOKENIZER_CONFIG = "tokenizer.model", "tokenizer_config.json"
SPACE = "▁"
NORMAL_PIECE = 1  # the kind of piece, in sentencepiece_model.proto, that others are merged into
VERSION_1_SPECIAL_TOKENS = ("<eoh>", "<eoa>")  # pieces of the file that its chat models treat as special


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer: rebuilt where InternLM's own class would have to run, else as transformers has it.

    Raises:
        ModelError: its files are missing or broken.
    """
    if (folder / SENTENCEPIECE_FILE).is_file() and _read_tokenizer_config(folder).get("tokenizer_class") in CLASSES:
        return build_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever the file's parser raises
        raise ModelError(
            f"{folder}: its tokenizer cannot be read ({first_line(error)}); get the model's files again."
        ) from error


def build_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of `tokenizer.model`, with the names and the chat template of `tokenizer_config.json` if there.

    Ids are the official classes' but for one thing: a text that spells a piece meant for later use, such as
    `[UNUSED_TOKEN_146]`, stays text, where sentencepiece makes the special token of it.

    Raises:
        ModelError: the file is no byte-pair sentencepiece model, or its tokens cannot have the ids that they should.
    """
    said = _read_tokenizer_config(folder)
    pieces = _read_pieces(folder / SENTENCEPIECE_FILE)
    words = [piece for piece, _, _ in pieces]
    special = _special_tokens(said, folder)
    special |= {index: word for index, word in enumerate(words) if word in VERSION_1_SPECIAL_TOKENS}
    for index, name in special.items():
        if 0 <= index < len(words):
            words[index] = name  # chat models give pieces kept for later use a name
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(BPE(vocabulary, list(_merges(pieces)), unk_token=words[0], fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    start = words[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start}:1 $B:1", special_tokens=[(start, 1)]
    )
    named = [AddedToken(special[index], special=True, normalized=False) for index in sorted(special) if index > 2]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=words[0],
        bos_token=start,
        eos_token=words[2],
        pad_token=words[2],
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
    )
    for index, name in special.items():
        if fast.convert_tokens_to_ids(name) != index:
            raise ModelError(
                f"{folder / TOKENIZER_CONFIG}: {name} cannot have the id {index}; get the model's files again."
            )
    template = said.get("chat_template")
    fast.chat_template = template if isinstance(template, str) else _template_file(folder)
    fast.name_or_path = str(folder)
    return fast


def _special_tokens(said: Mapping[str, Any], folder: Path) -> dict[int, str]:
    """Special tokens by their ids, as the checkpoint names them."""
    try:
        return {int(index): str(token["content"]) for index, token in said.get("added_tokens_decoder", {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder / TOKENIZER_CONFIG}: added_tokens_decoder does not name tokens by their ids; get the model's "
            "files again."
        ) from error


def _merges(pieces: list[tuple[str, float, int]]) -> Iterator[tuple[str, str]]:
    """Every way to make a piece of two others, the best pieces first, as sentencepiece prefers them."""
    index = {piece: number for number, (piece, _, kind) in enumerate(pieces) if kind == NORMAL_PIECE}
    ranked = sorted(index, key=lambda piece: -pieces[index[piece]][1])
    for piece in ranked:
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(left, right) for left, right in halves if left in index and right in index]
        yield from sorted(known, key=lambda pair: (index[pair[0]], index[pair[1]]))


def _read_pieces(path: Path) -> list[tuple[str, float, int]]:
    """Piece, score and kind, in the order of their ids."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model: Any = import_protobuf().ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's, whichever version is installed
        raise ModelError(f"{path}: not a sentencepiece model; get the file again.") from error
    if model.trainer_spec.model_type != model.trainer_spec.BPE or len(model.pieces) < 3:
        raise ModelError(f"{path}: not a byte-pair sentencepiece model; get InternLM's own tokenizer.model.")
    return [(piece.piece, piece.score, piece.type) for piece in model.pieces]


def _read_tokenizer_config(folder: Path) -> Mapping[str, Any]:
    """What the checkpoint says of its tokenizer; a folder without the file but with InternLM's config has its class."""
    file = folder / TOKENIZER_CONFIG
    said = read_json_object(file) if file.is_file() else {}
    if "tokenizer_class" not in said and (folder / "config.json").is_file():
        kind = model_type(folder)
        said["tokenizer_class"] = {"internlm": CLASSES[0], "internlm2": CLASSES[1]}.get(kind or "")
    return said


def _template_file(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else None
