"""The faster encoder gives the ids of the tokenizers library, and is not used where that is not certain."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from trainer.data import fast_encoding
from trainer.data import tokenizer as tokenizer_module
from trainer.data.fast_encoding import SPLITS, FastEncoder, fast_encoder
from trainer.data.tokenizer import FileTokenizer

END = "<|endoftext|>"
TEXT = (
    "Don't stop: they'll say it's 1234 times 56, or 7 8 9... \n\n  indented\tand tabbed  \r\n"
    "Zażółć gęślą jaźń; I'VE seen 'Em — naïve café №5 ½ ١٢٣ 漢字かな 한국어 "
    "🙂🙂\u200d🙂 e\u0301 \u00a0\u2003x\u0085y\u001cz "
    "aaaaaaaaaaaa abababab bcbcbc (((())))[[]] ==>> $$$ _under_score_ CamelCaseWord x1y2z3 "
) * 3


def _splits(pattern: str) -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": lambda: _splits(SPLITS[0]),
    "qwen2": lambda: _splits(SPLITS[1]),
}


@cache
def trained(kind: str, composes: bool = False) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[kind]()
    tokenizer.decoder = decoders.ByteLevel()
    if composes:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[END, "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


@cache
def made(kind: str, composes: bool = False) -> FastEncoder:
    found = fast_encoder(trained(kind, composes))
    assert found is not None
    return found


def changed(**values: Any) -> tokenizers.Tokenizer:
    """Return the tokenizer of GPT-2's kind with other entries of its file; those of the model begin with model__."""
    held = json.loads(trained("gpt2").to_str())
    for name, value in values.items():
        inside = held["model"] if name.startswith("model__") else held
        inside[name.removeprefix("model__")] = value
    return tokenizers.Tokenizer.from_str(json.dumps(held))


PIECES = st.sampled_from(
    [
        *(
            "'s",
            "'LL",
            "'ſ",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "a",
            "ab",
            "bcb",
            "1",
            "234",
            "é",
            "e\u0301",
            "漢",
            "🙂",
            "(",
            "==",
        ),
        *(END, "<|pad|>", "<|"),
    ]
)


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
@given(text=st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join), st.text(TEXT)))
@settings(deadline=None, max_examples=150)
def test_any_text_has_the_ids_of_the_library(kind: str, text: str) -> None:
    text = text.encode("utf-8", errors="replace").decode()
    ids = made(kind).encode(text)
    assert ids is not None
    assert ids.tolist() == trained(kind).encode(text, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_every_code_point_is_read_alike(kind: str) -> None:
    """Also those that no version of Unicode has assigned yet, beside letters, numbers, blanks and signs."""
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
    for first in range(0, len(points), 20_000):
        text = "".join(f"a{c}a1{c}1 {c}{c}  {c}!{c}\n{c}'{c}" for c in points[first : first + 20_000])
        ids = made(kind).encode(text)
        assert ids is not None
        assert ids.tolist() == trained(kind).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("letter", "length"), [("a", 1 << 16), ("^", 1 << 16), ("é", 1 << 16), (" ", 1 << 10), (" ", 1 << 20)]
)
def test_a_long_run_of_one_character(letter: str, length: int) -> None:
    text = letter * length + "x"
    ids = made("gpt2").encode(text)
    # Blanks in front of a word are gone back over one by one, of which a regular expression can hold only so many.
    assert (ids is None) == (length > 1 << 16)
    assert ids is None or ids.tolist() == trained("gpt2").encode(text, add_special_tokens=False).ids


def test_a_text_that_has_to_be_composed_is_left_to_the_library() -> None:
    encoder, tokenizer = made("qwen2", composes=True), trained("qwen2", composes=True)
    assert encoder.encode("e\u0301") is None
    for text in ("plain", "café ½"):
        ids = encoder.encode(text)
        assert ids is not None
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def _merges(swap: bool = False, twice: bool = False) -> list[Any]:
    merges = json.loads(trained("gpt2").to_str())["model"]["merges"]
    if swap:
        merges[3], merges[4] = merges[4], merges[3]
    if twice:
        merges.append(merges[3])
    return list(merges)


def _vocabulary(**others: int) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads(trained("gpt2").to_str())["model"]["vocab"]
    return vocabulary | others


def _added(**values: Any) -> list[dict[str, Any]]:
    token = json.loads(trained("gpt2").to_str())["added_tokens"][0]
    return [token, {**token, "id": 1000, "content": "<x>", **values}]


DIGITS = {"type": "Digits", "individual_digits": True}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    "values",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": LEVEL | {"add_prefix_space": True}},
        {"pre_tokenizer": LEVEL | {"use_regex": False}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, LEVEL]}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False},
                    LEVEL | {"use_regex": False},
                ],
            }
        },
        {"normalizer": {"type": "Lowercase"}},
        {"model__dropout": 0.1},
        {"model__unk_token": END},
        {"model__merges": _merges(swap=True)},
        {"model__merges": _merges(twice=True)},
        {"model__vocab": _vocabulary(zzzz=1001), "model__ignore_merges": True},
        {"added_tokens": _added(lstrip=True)},
        {"added_tokens": _added(content="<|endoftext|>!")},
        {"added_tokens": _added(content="é")},
    ],
)
def test_a_tokenizer_of_another_kind_is_left_to_the_library(values: dict[str, Any]) -> None:
    assert fast_encoder(changed(**values)) is None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model__ignore_merges": True},
        {"model__vocab": _vocabulary(zzzz=1001)},
        {"added_tokens": _added()},
        {"model__merges": [" ".join(pair) for pair in _merges()]},
    ],
)
def test_what_does_not_matter_is_no_hindrance(values: dict[str, Any]) -> None:
    tokenizer = changed(**values)
    encoder = fast_encoder(tokenizer)
    assert encoder is not None
    for text in (TEXT, "zzzz<x>zzzz", f"{END}a<x"):
        ids = encoder.encode(text)
        assert ids is not None
        assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("place", [0, 1])
def test_other_tables_of_unicode_are_noticed(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the two libraries disagreed about which characters are numbers, or blanks."""
    other = (r"\p{N}++", "[0-9]++") if place else (r"\s+(?!\S)", r"[ \n\t]+(?!\S)")
    monkeypatch.setattr(fast_encoding, "BYTE_LEVEL", fast_encoding.BYTE_LEVEL.replace(*other))
    assert fast_encoder(trained("gpt2")) is None


def test_a_corpus_is_encoded_faster_once_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "WORTH_CHARACTERS", 1_000_000)
    tokenizer = FileTokenizer(trained("gpt2").to_str(), "t", END)
    texts = ["lone \ud800 surrogate", " " * 1_000_000 + "x", TEXT, "", "a"]
    before = [ids.tolist() for ids in tokenizer.encode_arrays(texts)]
    assert before == tokenizer.encode_batch(texts)
    used, encode = list[str](), FastEncoder.encode

    def seen(self: FastEncoder, text: str) -> Any:
        used.append(text)
        return encode(self, text)

    monkeypatch.setattr(FastEncoder, "encode", seen)
    assert [ids.tolist() for ids in tokenizer.encode_arrays(texts)] == before
    assert len(used) == len(texts)
