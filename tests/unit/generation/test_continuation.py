"""Texts go on where the prompt ends: no blank lost, none too many, whatever way a tokenizer writes the first token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from trainer.data.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer, train_bpe
from trainer.generation.continuation import prompt_ids, text_after

WORDS = ("the", "quick", "brown", "fox", "a", ",", "do")
IDS = {"[UNK]": 0, **{word: number for number, word in enumerate(WORDS, 1)}}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def of(made: tokenizers.Tokenizer) -> FileTokenizer:
    made.add_special_tokens(["</s>", "<pad>"])
    return FileTokenizer(made.to_str(), "the test's")


def llama() -> FileTokenizer:
    """SentencePiece with byte fallback, as in Llama 1 and 2, Mistral, TinyLlama: the decoder strips the first blank."""
    merges = [("\u2581" + word[:cut], word[cut]) for word in WORDS for cut in range(len(word))]
    pieces = ["<unk>", *BYTES, "\u2581", *sorted(set("".join(WORDS))), *(left + right for left, right in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return of(made)


def metaspace() -> FileTokenizer:
    """T5 and ALBERT."""
    pieces = [("<unk>", 0.0), *((f"\u2581{word}", -1.0) for word in WORDS), ("\u2581", -5.0)]
    made = tokenizers.Tokenizer(models.Unigram(pieces, 0, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return of(made)


def word_pieces() -> FileTokenizer:
    """BERT: lower case, and blanks before commas are tidied away."""
    made = tokenizers.Tokenizer(models.WordPiece(IDS, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece()
    return of(made)


def words() -> FileTokenizer:
    """Words with blanks between."""
    made = tokenizers.Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return of(made)


def byte_level(add_prefix_space: bool) -> FileTokenizer:
    """GPT-2, and RoBERTa with a blank in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({piece: number for number, piece in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    return of(made)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "llama": llama,
    "metaspace": metaspace,
    "word pieces": word_pieces,
    "words": words,
    "byte level": lambda: byte_level(False),
    "blank in front": lambda: byte_level(True),
    "trained": lambda: train_bpe(["the quick brown fox, don't"] * 5, 300),
    "bytes": ByteTokenizer,
}


@pytest.fixture(scope="module")
def made() -> dict[str, Tokenizer]:
    return {name: make() for name, make in KINDS.items()}


def goes_on(tokenizer: Tokenizer, prompt: str, whole: str) -> str:
    """Return the prompt and what a model that knows `whole` by heart says after it."""
    ids, known = prompt_ids(tokenizer, prompt), tokenizer.encode(whole)
    assert known[: len(ids)] == ids, "the prompt is no part of it in ids"
    return prompt + text_after(tokenizer, prompt, ids, known[len(ids) :])


@pytest.mark.parametrize("kind", KINDS)
def test_the_blank_between_prompt_and_text(made: dict[str, Tokenizer], kind: str) -> None:
    assert goes_on(made[kind], "the quick", "the quick brown fox") == "the quick brown fox"


@pytest.mark.parametrize("kind", ["word pieces", "words"])
def test_a_prompt_that_ends_in_a_blank_that_the_tokenizer_does_not_keep(made: dict[str, Tokenizer], kind: str) -> None:
    assert goes_on(made[kind], "the quick ", "the quick brown") == "the quick brown"


@pytest.mark.parametrize("kind", ["llama", "byte level", "blank in front", "trained", "bytes"])
def test_a_prompt_that_ends_in_a_blank_that_is_kept(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    fox = tokenizer.encode("the fox")[len(tokenizer.encode("the")) :]
    prompt = "the quick "
    assert prompt + text_after(tokenizer, prompt, prompt_ids(tokenizer, prompt), fox) == "the quick  fox"


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_prompt(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    ids = prompt_ids(tokenizer, "")
    assert ids == [tokenizer.eos_id]
    text = text_after(tokenizer, "", ids, tokenizer.encode("the fox"))
    assert text == tokenizer.decode(tokenizer.encode("the fox"))
    assert text.strip() == "the fox"


def test_an_end_of_text_that_is_an_ordinary_word() -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "fox": 1, "</s>": 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = FileTokenizer(made.to_str(), "the test's")
    assert text_after(tokenizer, "", prompt_ids(tokenizer, ""), [1]).strip() == "fox"


@pytest.mark.parametrize("kind", ["llama", "metaspace", "byte level", "trained"])
def test_special_tokens_in_the_prompt_are_not_shown_twice(made: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = made[kind]
    prompt = f"{'<|endoftext|>' if kind == 'trained' else '</s>'}the quick"
    brown = tokenizer.encode("the brown")[len(tokenizer.encode("the")) :]
    assert text_after(tokenizer, prompt, prompt_ids(tokenizer, prompt), brown) == " brown"


def test_a_prompt_that_comes_back_in_another_form(made: dict[str, Tokenizer]) -> None:
    tokenizer = made["word pieces"]
    assert goes_on(tokenizer, "The QUICK", "the quick fox") == "The QUICK fox"
    assert goes_on(tokenizer, "the fox ,", "the fox , a") == "the fox , a"
    assert goes_on(tokenizer, "the fox", "the fox , a") == "the fox, a"


@pytest.mark.parametrize("kind", ["byte level", "trained", "bytes", "llama"])
@pytest.mark.parametrize("text", ["é", "数学", "🙂"])
def test_characters_of_several_bytes(made: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = made[kind]
    prompt = f"the {text}"
    assert goes_on(tokenizer, prompt, f"{prompt}{text} a") == f"{prompt}{text} a"
    # What is drawn may be the inside of a character; the prompt stays as it is.
    ids, last = prompt_ids(tokenizer, prompt), tokenizer.encode(text)[-1:]
    assert text_after(tokenizer, prompt, ids, last) == "\ufffd"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_was_drawn(made: dict[str, Tokenizer], kind: str) -> None:
    for prompt in ("", "the", "the quick ", "é"):
        assert text_after(made[kind], prompt, prompt_ids(made[kind], prompt), []) == ""
