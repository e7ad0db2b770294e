"""The text that follows a prompt: drawn tokens become text only here. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.data.tokenizer import Tokenizer

_ANCHOR = "a"
"""A prompt whose text no following token changes."""


def prompt_ids(tokenizer: Tokenizer, prompt: str, as_imported: bool = False) -> list[int]:
    """Return the ids of a prompt; a document begins after the end of another one.

    Args:
        tokenizer: the model's.
        prompt: the text.
        as_imported: put the special tokens around it with which an imported model was trained elsewhere. Training here
            puts none there.
    """
    ids = tokenizer.encode_whole(prompt) if as_imported else tokenizer.encode(prompt)
    return ids or [tokenizer.eos_id]


def text_after(tokenizer: Tokenizer, prompt: str, ids: Sequence[int], drawn: Sequence[int]) -> str:
    """Return the text of the ids `drawn` after those of a prompt.

    The ids are decoded together with the prompt, whose text is then removed: many tokenizers write the first token of a
    text differently from the same token inside a text (SentencePiece, Llama and Mistral drop its leading blank).
    """
    whole = tokenizer.decode([*ids, *drawn])
    for start in _starts(tokenizer, prompt, ids):
        if whole.startswith(start):
            return whole[len(start) :]
    # Bytes that are no text may spoil those before them; behind a letter so little is lost.
    anchor = tokenizer.encode(_ANCHOR)
    start, whole = tokenizer.decode(anchor), tokenizer.decode([*anchor, *drawn])
    return whole[len(start) :] if whole.startswith(start) else tokenizer.decode(drawn)


def _starts(tokenizer: Tokenizer, prompt: str, ids: Sequence[int]) -> Iterator[str]:
    """Yield possible beginnings of the whole text: the prompt as typed, with blanks at its end, or as it is decoded."""
    if prompt:
        yield prompt
    yield tokenizer.decode(ids)
