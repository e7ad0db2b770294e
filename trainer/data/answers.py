"""The tokens of an example, and those of them that are learned: exactly the answers. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainer.data.examples import Example
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError


@dataclass(frozen=True)
class Answered:
    """The tokens of an example."""

    ids: list[int]
    counted: list[bool]
    """True for each of them that is learned."""


def answered(tokenizer: Tokenizer, batch: Sequence[Example]) -> list[Answered]:
    """Return the tokens of some examples.

    A text is encoded as a whole. Where a token would reach over the beginning or the end of an answer, the text is
    encoded in parts that end there: the tokens before an answer are those that the model is given to write it.

    Raises:
        DataError: a tokenizer cannot encode a text in parts.
    """
    cuts = [sorted({edge for span in example.spans for edge in span} - {0}) for example in batch]
    texts = [[example.text[:cut] for cut in here] for example, here in zip(batch, cuts, strict=True)]
    flat = tokenizer.encode_batch(
        [text for example, here in zip(batch, texts, strict=True) for text in (example.text, *here)]
    )
    found, start = [], 0
    for example, here in zip(batch, cuts, strict=True):
        whole, before = flat[start], flat[start + 1 : start + 1 + len(here)]
        start += 1 + len(here)
        places = {0: 0} | {cut: len(ids) for cut, ids in zip(here, before, strict=True)}
        if any(whole[: len(ids)] != ids for ids in before):
            whole, places = _in_parts(tokenizer, example, here, whole)
        found.append(_counted(tokenizer, example, whole, places))
    return found


def _in_parts(
    tokenizer: Tokenizer, example: Example, cuts: Sequence[int], whole: Sequence[int]
) -> tuple[list[int], dict[int, int]]:
    """Return the tokens of the parts of a text, and how many of them are before each cut."""
    edges = [0, *cuts, len(example.text)]
    parts = tokenizer.encode_batch([example.text[a:b] for a, b in pairwise(edges)])
    ids: list[int] = []
    places: dict[int, int] = {}
    for edge, part in zip(edges, parts, strict=False):
        places[edge] = len(ids)
        ids += part
    places[len(example.text)] = len(ids)
    # A tokenizer that puts a space before each text makes another text of the parts.
    if tokenizer.decode(ids) != tokenizer.decode(whole):
        raise DataError(
            f"{example.origin}: the beginning and the end of an answer must be those of tokens, but this tokenizer "
            "joins them with what stands around; use a chat template that puts special tokens there"
        )
    return ids, places


def _counted(tokenizer: Tokenizer, example: Example, ids: Sequence[int], places: dict[int, int]) -> Answered:
    counted = [False] * len(ids)
    for begin, end in example.spans:
        first, last = places[begin], places[end]
        if example.may_trim:
            last = _end_of_answer(tokenizer, ids, first, last)
        counted[first:last] = [True] * (last - first)
    if example.ends:
        return Answered([*ids, tokenizer.eos_id], [*counted, True])
    return Answered(list(ids), counted)


def _end_of_answer(tokenizer: Tokenizer, ids: Sequence[int], first: int, last: int) -> int:
    """Return where an answer ends: behind its last special token, if only white space follows it."""
    special = tokenizer.special_ids
    end = next((place + 1 for place in range(last - 1, first - 1, -1) if ids[place] in special), last)
    return last if tokenizer.decode(ids[end:last]).strip() else end
