"""A text that grows token by token: where it ends, and how much of it can be shown already. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from trainer.data.tokenizer import Tokenizer
from trainer.generation.continuation import text_after

_NO_CHARACTER = "\ufffd"


class End(Enum):
    """Reason why a text ended."""

    token = "token"
    """The model drew a token that ends a text."""
    stop = "stop"
    """It wrote a stop string."""
    length = "length"
    """It has as many tokens as were wanted, or as the model has positions."""


@dataclass(frozen=True)
class Ends:
    """The ends of a text."""

    tokens: Collection[int] = ()
    """Ids of tokens; they are no part of it."""
    strings: Sequence[str] = ()
    """Strings; the text ends before the first of them."""


class Text:
    """The text that follows one prompt.

    Args:
        tokenizer: turns tokens into text.
        prompt: the prompt's text.
        ids: its tokens.
        max_tokens: largest number of tokens that follow.
        ends: what ends it before.
        on_change: called with it when more can be shown, and at the end; None: nobody looks before the end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        ids: Sequence[int],
        max_tokens: int,
        ends: Ends,
        on_change: Callable[[Text], None] | None = None,
    ) -> None:
        self._tokenizer, self._prompt, self._ids = tokenizer, prompt, ids
        self._max_tokens, self._ends, self._on_change = max_tokens, ends, on_change
        self._last = ""
        self.drawn: list[int] = []
        """Its tokens."""
        self.shown = ""
        """The part that no later token changes; at the end all of it."""
        self.end: End | None = None
        """The reason why it ended; None while it goes on."""

    def take(self, token: int) -> bool:
        """Add a token; return whether the text goes on."""
        if token in self._ends.tokens:
            self.end = End.token
        else:
            self.drawn.append(token)
            if len(self.drawn) >= self._max_tokens:
                self.end = End.length
        if self.end is not None or self._ends.strings or self._on_change is not None:
            self._read()
        if self._on_change is not None:
            self._on_change(self)
        return self.end is None

    def _read(self) -> None:
        whole = text_after(self._tokenizer, self._prompt, self._ids, self.drawn)
        places = [place for stop in self._ends.strings if (place := whole.find(stop)) >= 0]
        if places:
            whole, self.end = whole[: min(places)], End.stop
        if self.end is not None:
            self.shown = whole
            return
        # Some tokenizers write the last word anew when another token follows it; none changes the words before.
        sure = _common_beginning(self._last, whole.rstrip(_NO_CHARACTER))
        self._last = whole
        sure = sure[: len(sure) - self._begun_stop(sure)]
        if sure.startswith(self.shown):
            self.shown = sure

    def _begun_stop(self, text: str) -> int:
        """Return the length of the longest end of a text with which a stop string may begin."""
        begun = (size for stop in self._ends.strings for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return max(begun, default=0)


def _common_beginning(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]
