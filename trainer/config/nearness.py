"""A measure of how near a mistyped word is to the known ones. No torch, no project imports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

_SAME_WORD = 0.88
"""Likeness of whole words without their underscores, from which on only a letter or two are wrong."""
_SAME_LETTERS = 0.95
"""Likeness from which on only an underscore is missing or too many, as in warm_up_steps."""
_SAME_PART = 0.74
_ENOUGH = 0.75
"""Likeness of whole words that suffices where each part is near to one of the other word's parts."""


def _ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b, autojunk=False).ratio()


def likeness(word: str, known: str) -> float:
    """Return how near a word is to a known one, 0 where the known one cannot be meant.

    Letters alone mislead: hidden_act looks like hidden_size, and attention_bias like num_attention_heads. So every part
    between underscores must be found again, unless the whole differs by a slip of the fingers.
    """
    mine, others = (re.split(r"[_\W]+", text.lower().strip("-_")) for text in (word, known))
    whole = _ratio("".join(mine), "".join(others))
    if len(mine) == len(others) > 1 and any(_ratio(a, b) < 0.5 for a, b in zip(mine, others, strict=True)):
        # One of the parts is another word.
        return 0.0
    if whole >= (_SAME_WORD if len(mine) == len(others) else _SAME_LETTERS):
        return whole
    found = all(any(_ratio(part, other) >= _SAME_PART for other in others) for part in mine)
    return whole if found and whole >= _ENOUGH else 0.0


def nearest(word: str, known: Iterable[str], at_least: float = _ENOUGH) -> str | None:
    """Return the known word that was probably meant, or None."""
    scored = [(likeness(word, one), one) for one in known]
    best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    return best[1] if best[0] >= at_least else None
