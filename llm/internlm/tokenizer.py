"""InternLM fast tokenizers from the sentencepiece file; token ids equal the official tokenizers'.

transformers' own conversion of this file gives other ids (it adds a leading space) or needs remote code. The file is a
list of pieces with scores. The official classes only do byte-pair encoding by score with it.

Sources: sentencepiece_model.proto; InternEvo's tokenization_internlm.py and tokenization_internlm2.py.
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
NORMAL_PIECE = 1  # piece type in sentencepiece_model.proto; only these pieces are results of merges
VERSION_1_SPECIAL_TOKENS = ("<eoh>", "<eoa>")  # normal pieces in the file, but special tokens of the chat models


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer: rebuilt if it needs InternLM's own class, else loaded by transformers.

    Raises:
        ModelError: the files are missing or broken.
    """
    if (folder / SENTENCEPIECE_FILE).is_file() and _read_tokenizer_config(folder).get("tokenizer_class") in CLASSES:
        return build_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers passes on any error of the file's parser
        raise ModelError(
            f"{folder}: the tokenizer cannot be read ({first_line(error)}); download the model again."
        ) from error


def build_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of `tokenizer.model`, with the token names and the chat template of `tokenizer_config.json`.

    The ids are those of the official classes, with one exception: a text that spells an unused piece, such as
    `[UNUSED_TOKEN_146]`, stays text here, but sentencepiece makes it a special token.

    Raises:
        ModelError: the file is not a byte-pair sentencepiece model, or a token cannot have its configured id.
    """
    settings = _read_tokenizer_config(folder)
    pieces = _read_pieces(folder / SENTENCEPIECE_FILE)
    words = [piece for piece, _, _ in pieces]
    special = _special_tokens(settings, folder)
    special |= {index: word for index, word in enumerate(words) if word in VERSION_1_SPECIAL_TOKENS}
    for index, name in special.items():
        if 0 <= index < len(words):
            words[index] = name  # chat models rename unused pieces
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
                f"{folder / TOKENIZER_CONFIG}: {name} cannot have the id {index}; download the model again."
            )
    template, file = settings.get("chat_template"), folder / "chat_template.jinja"
    if not isinstance(template, str):
        template = file.read_text(encoding="utf-8") if file.is_file() else None
    fast.chat_template = template
    fast.name_or_path = str(folder)
    return fast


def _special_tokens(settings: Mapping[str, Any], folder: Path) -> dict[int, str]:
    """Special tokens by id, from `tokenizer_config.json`."""
    try:
        return {int(index): str(token["content"]) for index, token in settings.get("added_tokens_decoder", {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder / TOKENIZER_CONFIG}: added_tokens_decoder must map ids to tokens; download the model again."
        ) from error


def _merges(pieces: list[tuple[str, float, int]]) -> Iterator[tuple[str, str]]:
    """All merges of two pieces to one; the pieces with the highest scores are first, as in sentencepiece."""
    index = {piece: number for number, (piece, _, kind) in enumerate(pieces) if kind == NORMAL_PIECE}
    ranked = sorted(index, key=lambda piece: -pieces[index[piece]][1])
    for piece in ranked:
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [(left, right) for left, right in halves if left in index and right in index]
        yield from sorted(known, key=lambda pair: (index[pair[0]], index[pair[1]]))


def _read_pieces(path: Path) -> list[tuple[str, float, int]]:
    """Piece, score and type, in the order of their ids."""
    from transformers.convert_slow_tokenizer import import_protobuf

    model: Any = import_protobuf().ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # the error class depends on the protobuf version
        raise ModelError(f"{path}: not a sentencepiece model; download the file again.") from error
    if model.trainer_spec.model_type != model.trainer_spec.BPE or len(model.pieces) < 3:
        raise ModelError(f"{path}: not a byte-pair sentencepiece model; use InternLM's own tokenizer.model.")
    return [(piece.piece, piece.score, piece.type) for piece in model.pieces]


def _read_tokenizer_config(folder: Path) -> Mapping[str, Any]:
    """`tokenizer_config.json` of a folder. If it names no class, the class is set from InternLM's `config.json`."""
    file = folder / TOKENIZER_CONFIG
    settings = read_json_object(file) if file.is_file() else {}
    if "tokenizer_class" not in settings and (folder / "config.json").is_file():
        kind = model_type(folder)
        settings["tokenizer_class"] = {"internlm": CLASSES[0], "internlm2": CLASSES[1]}.get(kind or "")
    return settings
