"""Translations of the names that other trainers use for keys. No torch, no project imports but its tables."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.config.nearness import nearest
from trainer.config.other_names_model import ABSENT_MODEL, DIFFERENT_MODEL, SAME_MODEL, WORDS_MODEL
from trainer.config.other_names_run import ABSENT_RUN, DIFFERENT_RUN, SAME_RUN, WORDS_RUN
from trainer.config.other_values import OTHER_VALUES

_NEAR_ENOUGH, _VERY_NEAR, _LONG_ENOUGH = 0.83, 0.9, 5
"""There are so many names in other trainers that a short or a vague word is near to some of them by chance."""


@dataclass(frozen=True)
class Meaning:
    """Counterpart here of another trainer's name."""

    keys: tuple[str, ...] = ()
    """Keys, or groups, that are meant."""
    note: str = ""
    """Difference between these keys and what was asked for; without keys, the reason why there are none."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Value -> the words to write instead."""

    def told(self, value: str) -> str:
        """Return the counterpart here, as a phrase.

        Args:
            value: the value that the key was set to; empty if it is not known.
        """
        if self.words:
            wanted = self.words.get(_plain(value or next(iter(self.words))))
            return f"write {wanted or ' or '.join(self.words.values())}"
        if not self.keys:
            return f"there is nothing of the kind: {self.note}"
        if self.note:
            return f"the nearest here is {' or '.join(self.keys)}, {self.note}"
        (key,) = self.keys
        return f"it is {key}{f'={value_here(key, value) or value}' if value else ''} here"


@functools.cache
def meanings_elsewhere() -> Mapping[str, Meaning]:
    """Return name -> its counterpart here, for every name of the tables."""
    found: dict[str, Meaning] = {}
    for key, names in (SAME_MODEL | SAME_RUN).items():
        found |= dict.fromkeys(names.split(), Meaning((key,)))
    for names, (keys, note) in (DIFFERENT_MODEL | DIFFERENT_RUN).items():
        found |= dict.fromkeys(names.split(), Meaning(tuple(keys.split()), note))
    for names, words in (WORDS_MODEL | WORDS_RUN).items():
        found |= dict.fromkeys(names.split(), Meaning(words=words))
    for names, note in (ABSENT_MODEL | ABSENT_RUN).items():
        found |= dict.fromkeys(names.split(), Meaning(note=note))
    return found


def known_elsewhere(name: str, with_group: bool) -> Meaning | None:
    """Return the counterpart of a name here, if another trainer has the name.

    Args:
        name: the name as it was typed, `optimizer.params.lr` or `--num-layers`.
        with_group: look for the whole name, and for an end of it that has a dot; otherwise for the last part.
    """
    known, parts = meanings_elsewhere(), _plain(name).split(".")
    if not with_group:
        return known.get(parts[-1])
    ends = [".".join(parts[start:]) for start in range(max(1, len(parts) - 1))]
    return next((known[end] for end in ends if end in known), None)


def near_elsewhere(name: str) -> tuple[str, Meaning] | None:
    """Return the name in another trainer that a mistyped name is near to, with its counterpart here."""
    known = meanings_elsewhere()
    leaf = _plain(name).rpartition(".")[2]
    if len(leaf) < _LONG_ENOUGH:
        return None
    close = nearest(leaf, known, at_least=_NEAR_ENOUGH if "_" in leaf else _VERY_NEAR)
    return (close, known[close]) if close else None


def value_here(key: str, value: str) -> str:
    """Return the value of a key that is meant by another trainer's word for it, or nothing."""
    typed = _plain(value)
    return next((here for here, others in OTHER_VALUES.get(key, {}).items() if typed in others.split()), "")


def _plain(text: str) -> str:
    return text.strip("-+~'\" ").lower().replace("-", "_").replace(":", "_").replace(" ", "_")
