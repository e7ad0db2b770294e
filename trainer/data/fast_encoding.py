"""Ids of a corpus several times as fast: by tiktoken, where it is shown to give the ids of the tokenizers library.

Both apply byte-pair merges inside the pieces that a regular expression cuts a text into. They agree on every text if

1. they cut alike. Patterns are taken from a list, each written for the pre-tokenizer that it stands for, and whether
   the two libraries know the same letters, numbers and blanks is tried on every assigned code point, with a vocabulary
   that shows where they cut;
2. they merge alike. tiktoken joins the two neighbours whose joined bytes have the lowest id. The library joins the two
   whose merge comes first. That is the same if ids ascend with the merges, no two merges make the same token, and
   each token's own text is merged to that token: inside the place of a token, merges happen in the order in which they
   happen for its text alone, so the last one joins the same two halves. Tokens that their own text does not lead to
   never come up, and are left out;
3. added tokens are found alike: they are plain texts of which none is a part of another one.

What does not meet this, or a text that tiktoken's regular expressions cannot hold, is encoded by the library. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

WORTH_CHARACTERS = 1 << 22
"""Characters of a corpus from which on the comparison pays, which takes as long as some million of them."""
_CONTRACTIONS = "'(?:[sdmt]|ll|ve|re)"
_BLANKS = r"\s+(?!\S)|\s+"
BYTE_LEVEL = rf"{_CONTRACTIONS}| ?\p{{L}}++| ?\p{{N}}++| ?[^\s\p{{L}}\p{{N}}]++|{_BLANKS}"
"""Pattern of the pre-tokenizer ByteLevel: that of GPT-2 (Radford et al. 2019)."""
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SPLITS = tuple(_SPLIT.replace("NUMBERS", numbers) for numbers in (r"\p{N}{1,3}", r"\p{N}"))
"""Patterns of the pre-tokenizer Split that are known to leave nothing out: those of Llama 3 and of Qwen 2."""
_LAST_COMMON = 0x3FFFF
_SELECTORS = range(0xE0000, 0xE01F0)
"""No code point outside of these two ranges has ever been assigned, but for private use."""


_AT_ONCE = 1 << 11
"""Code points that are tried at once: the library keeps notes on each piece of a text, which need memory."""


class FastEncoder:
    """An encoder of tiktoken that gives the ids of a tokenizer of the tokenizers library.

    Args:
        encoding: the encoder.
        composes: the tokenizer normalises texts to NFC, which leaves texts in Latin-1 as they are.
    """

    def __init__(self, encoding: tiktoken.Encoding, composes: bool) -> None:
        self.encoding = encoding
        self._composes = composes

    def encode(self, text: str) -> npt.NDArray[np.uint32] | None:
        """Return the ids of a text without lone surrogates; None if the library has to encode it."""
        if self._composes and not _is_latin(text):
            return None
        try:
            found: Any = self.encoding.encode_to_numpy(text, allowed_special="all", disallowed_special=())
        # Some million blanks are more than its regular expressions can go back over.
        except ValueError:
            return None
        return np.asarray(found, np.uint32)


def fast_encoder(tokenizer: tokenizers.Tokenizer) -> FastEncoder | None:
    """Return an encoder with the ids of a tokenizer, or None if it cannot be shown to have them all."""
    held: dict[str, Any] = json.loads(tokenizer.to_str())
    pattern, model = _pattern(held["pre_tokenizer"]), held["model"]
    composes = held["normalizer"] == {"type": "NFC"}
    if pattern is None or not (held["normalizer"] is None or composes) or not _is_plain(model):
        return None
    added = {token["content"]: int(token["id"]) for token in held["added_tokens"]}
    ranks = _ranks(held, added)
    if ranks is None or not _are_apart(held["added_tokens"]):
        return None
    if not _cuts_alike(json.dumps(held["pre_tokenizer"]), pattern):
        return None
    return FastEncoder(_encoding(pattern, ranks, added), composes)


def _encoding(pattern: str, ranks: Mapping[bytes, int], added: Mapping[str, int]) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding("corpus", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(added))


@cache
def _cuts_alike(pre_tokenizer: str, pattern: str) -> bool:
    """Return whether a pattern cuts texts as a pre-tokenizer does, given as JSON."""
    import tokenizers

    letters = dict(_letters())
    ranks = {bytes([byte]): byte for byte in range(256)} | {pair: 256 + rank for rank, pair in enumerate(_pairs())}
    written = {text: "".join(letters[byte] for byte in text) for text in ranks}
    model = {
        "type": "BPE",
        "vocab": {written[text]: id_ for text, id_ in ranks.items()},
        "merges": [tuple(written[text]) for text in ranks if len(text) == 2],
    }
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    held = {"version": "1.0", **parts, "added_tokens": [], "pre_tokenizer": json.loads(pre_tokenizer), "model": model}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(held))
    encoder = FastEncoder(_encoding(pattern, ranks, {}), composes=False)
    for text in _probes():
        found = encoder.encode(text)
        if found is None or found.tolist() != tokenizer.encode(text).ids:
            return False
    return True


def _pairs() -> list[bytes]:
    """Return the pairs of bytes that stand across two characters of UTF-8 of which one at least is not of ASCII.

    Merged in this order, such characters are joined with their neighbours wherever they are not cut apart.
    """
    ascii_, inside, leading = range(0x80), range(0x80, 0xC0), range(0xC2, 0xF5)
    both = ((ascii_, leading), (inside, ascii_), (inside, leading))
    return [bytes(pair) for one in both for pair in product(*one)]


def _pattern(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """Return the regular expression that cuts texts as a pre-tokenizer does; None if none is known."""
    kind = None if pre_tokenizer is None else pre_tokenizer["type"]
    if pre_tokenizer is None or kind not in ("ByteLevel", "Sequence"):
        return None
    if kind == "ByteLevel":
        is_usual = pre_tokenizer["use_regex"] and not pre_tokenizer["add_prefix_space"]
        return BYTE_LEVEL if is_usual else None
    parts = pre_tokenizer["pretokenizers"]
    if [part["type"] for part in parts] != ["Split", "ByteLevel"]:
        return None
    split, level = parts
    usual = {"type": "Split", "behavior": "Isolated", "invert": False}
    pattern = split["pattern"].get("Regex")
    if level["use_regex"] or level["add_prefix_space"] or pattern not in SPLITS:
        return None
    return str(pattern) if {key: value for key, value in split.items() if key != "pattern"} == usual else None


def _is_plain(model: Mapping[str, Any]) -> bool:
    """Return whether a model does nothing but merge pairs."""
    others = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return model["type"] == "BPE" and not any(model.get(name) for name in others)


def _ranks(held: Mapping[str, Any], added: Mapping[str, int]) -> dict[bytes, int] | None:
    """Return the ids of the tokens that merges lead to, by their bytes; None if the order of merges is another one."""
    import tokenizers

    model = held["model"]
    vocabulary: dict[str, int] = model["vocab"]
    # Files of earlier versions write the two halves with a blank between them.
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    made = [vocabulary.get(first + second, -1) for first, second in merges]
    if -1 in made or any(before >= after for before, after in pairwise(made)):
        return None
    # With ignore_merges a piece that is a token is never merged: it must be one that merges lead to.
    by_merges = tokenizers.Tokenizer.from_str(json.dumps({**held, "model": {**model, "ignore_merges": False}})).model
    byte_of = {letter: byte for byte, letter in _letters()}
    ranks = {}
    for token, id_ in vocabulary.items():
        is_text = token not in added and all(letter in byte_of for letter in token)
        if is_text and [one.id for one in by_merges.tokenize(token)] == [id_]:
            ranks[bytes(byte_of[letter] for letter in token)] = id_
        elif is_text and model.get("ignore_merges"):
            return None
    return ranks if all(bytes([byte]) in ranks for byte in range(256)) else None


def _letters() -> Iterator[tuple[int, str]]:
    """Yield each byte with the letter that stands for it in the vocabularies of byte-level tokenizers."""
    others = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield byte, chr(byte)
        else:
            yield byte, chr(others)
            others += 1


def _are_apart(added: list[Mapping[str, Any]]) -> bool:
    """Return whether added tokens are plain texts that can be found in one way only."""
    if any(token[name] for token in added for name in ("lstrip", "rstrip", "single_word")):
        return False
    texts = [token["content"] for token in added]
    if not all(text.isascii() for text in texts):
        return False
    return not any(first in second for first in texts for second in texts if first != second)


def _probes() -> Iterator[str]:
    """Yield texts in which assigned code points stand beside their neighbours, and many beside letters and signs."""
    points = (*range(_LAST_COMMON + 1), *_SELECTORS)
    for first in range(0, len(points), _AT_ONCE):
        yield "".join(chr(point) for point in points[first : first + _AT_ONCE] if not 0xD800 <= point <= 0xDFFF)
    # The planes of private use and the unassigned ones are of one class each.
    few = (*range(0x3400), *range(0xFE00, 0xFFFF), *range(0x40000, 0x110000, 0xFFF))
    for first in range(0, len(few), _AT_ONCE):
        chosen = map(chr, few[first : first + _AT_ONCE])
        yield "".join(f"a{point}a1{point}1 {point}{point} '{point}\n{point}!{point}" for point in chosen)


def _is_latin(text: str) -> bool:
    """Return whether all characters are in Latin-1, which have no other composed form."""
    if text.isascii():
        return True
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True
