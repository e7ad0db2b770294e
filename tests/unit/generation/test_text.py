"""Texts that grow: what can be shown, where they end, and in which order they come to a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from trainer.data.tokenizer import ByteTokenizer, FileTokenizer, Tokenizer
from trainer.generation.printing import InOrder
from trainer.generation.text import End, Ends, Text

BYTES = ByteTokenizer()


def grown(
    tokens: Sequence[int],
    ends: Ends = Ends(),  # noqa: B008
    prompt: str = "p",
    tokenizer: Tokenizer = BYTES,
    max_tokens: int = 1000,
) -> tuple[Text, list[str]]:
    """Return a text after all tokens, and what could be shown after each."""
    seen: list[str] = []
    text = Text(tokenizer, prompt, tokenizer.encode(prompt), max_tokens, ends, lambda text: seen.append(text.shown))
    for token in tokens:
        assert text.end is None, "nothing is drawn for a text that has ended"
        assert text.take(token) == (text.end is None)
    return text, seen


def test_a_text_is_shown_as_it_comes_and_never_taken_back() -> None:
    text, seen = grown(b"abcdef", max_tokens=6)
    assert seen == ["", "a", "ab", "abc", "abcd", "abcdef"]
    assert (text.shown, text.end, text.drawn) == ("abcdef", End.length, list(b"abcdef"))


def test_a_character_is_shown_when_it_is_whole() -> None:
    _, seen = grown("aé🙂b!".encode())
    assert seen == ["", "a", "a", "aé", "aé", "aé", "aé", "aé🙂", "aé🙂b"]


def test_bytes_that_are_no_text_do_not_stay_hidden() -> None:
    text, seen = grown(b"a\xffbc", max_tokens=4)
    assert seen == ["", "a", "a\ufffd", "a\ufffdbc"]
    assert text.shown == "a\ufffdbc"


def test_words_that_a_tokenizer_writes_anew_are_not_shown_too_early() -> None:
    ids = {"[UNK]": 0, "i": 1, "do": 2, "n't": 3, "fox": 4, ",": 5, "</s>": 6}
    made = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["</s>"])
    text, seen = grown([2, 3, 4, 5], prompt="i", tokenizer=FileTokenizer(made.to_str(), "the test's"), max_tokens=4)
    assert seen == ["", " do", " don't", " don't fox,"]
    assert text.shown == " don't fox,"


def test_a_token_ends_it_and_is_no_part_of_it() -> None:
    text, _ = grown([*b"ab", 256], Ends({7, 256}))
    assert (text.shown, text.end, text.drawn) == ("ab", End.token, list(b"ab"))


@pytest.mark.parametrize(
    ("stops", "whole", "kept"),
    [
        (["END"], "abENEND", "abEN"),
        (["bc", "c"], "abc", "a"),
        (["\n\n"], "a\nb\n\n", "a\nb"),
        (["ü"], "aü", "a"),
        (["a"], "a", ""),
    ],
)
def test_a_string_ends_it_and_is_never_shown(stops: list[str], whole: str, kept: str) -> None:
    text, seen = grown(whole.encode(), Ends((), stops))
    assert (text.shown, text.end) == (kept, End.stop)
    for shown in seen:
        assert kept.startswith(shown)


def test_a_stop_string_in_the_prompt_does_not_count_and_the_last_token_may_write_one() -> None:
    text, _ = grown(b"xy;", Ends((), [";"]), prompt="a;", max_tokens=3)
    assert (text.shown, text.end) == ("xy", End.stop)


def test_nothing_is_decoded_before_the_end_if_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def decode(self: ByteTokenizer, ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return bytes(ids).decode()

    monkeypatch.setattr(ByteTokenizer, "decode", decode)
    text = Text(BYTES, "p", [112], 50, Ends())
    for token in b"x" * 50:
        text.take(token)
    assert text.shown == "x" * 50
    assert calls == [51]


# --- on a terminal


def terminal(count: int) -> tuple[InOrder, list[Text], list[str]]:
    written: list[str] = []
    order = InOrder([f"<{index}>" for index in range(count)], written.append)
    texts: list[Text] = []

    texts += [Text(BYTES, "p", [112], 4, Ends(), partial(order.changed, index)) for index in range(count)]
    return order, texts, written


def test_texts_come_in_order_and_the_first_that_is_not_whole_as_it_grows() -> None:
    _, (first, second, third), written = terminal(3)
    for token in b"abc":
        first.take(token)
    for token in b"wxyz":
        third.take(token)
    assert "".join(written) == "<0>ab"
    for token in b"123":
        second.take(token)
    assert "".join(written) == "<0>ab"
    first.take(ord("d"))
    assert "".join(written) == "<0>abcd\n<1>12"
    second.take(ord("4"))
    assert "".join(written) == "<0>abcd\n<1>1234\n<2>wxyz\n"


def test_a_text_that_was_written_anew_is_shown_again() -> None:
    order, (text,), written = terminal(1)
    text.shown = "ab"
    order.changed(0, text)
    text.shown = "xyz"
    order.changed(0, text)
    assert "".join(written) == "<0>ab\n<0>xyz"
