"""The points of a sweep: `a=1,2 b=x,y` is four runs. Hydra's own grammar and its basic sweeper's order. No torch.

A search takes the same words, and besides them those that name a range and no values: `a=tag(log,interval(1e-4,1e-2))`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

from trainer.config.arguments import plain, read_arguments
from trainer.config.compose import options
from trainer.config.keys import KEYS
from trainer.config.request import read_request
from trainer.config.words import SEARCHPATH
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    words: tuple[str, ...]
    """Overrides of the run."""
    swept: tuple[str, ...]
    """Those of them that differ between runs."""

    @property
    def name(self) -> str:
        """What tells the run from the others, e.g. `optimizer.lr=0.001,layout=tp2`."""
        return ",".join(self.swept)

    @property
    def values(self) -> dict[str, str]:
        """The words that differ, as key -> value."""
        return dict(word.split("=", 1) for word in self.swept)


@dataclass(frozen=True)
class Dimension:
    """What a search may choose for one key: some of `choices`, or a number from `low` to `high`, both included."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    is_whole: bool = False
    is_log: bool = False

    def word(self, value: object) -> str:
        """Return the override for a value: one of `choices`, or a number in as many digits as a person would write."""
        is_float = isinstance(value, float) and not self.is_whole
        return f"{self.key}={value:.6g}" if is_float else f"{self.key}={value}"

    @property
    def ends(self) -> tuple[str, str]:
        """Return the words at both ends."""
        if self.choices:
            return f"{self.key}={self.choices[0]}", f"{self.key}={self.choices[-1]}"
        ends = (int(self.low), int(self.high)) if self.is_whole else (self.low, self.high)
        return self.word(ends[0]), self.word(ends[1])


class _Groups:
    """What Hydra asks for the names that `glob(...)` is matched with.

    Args:
        words: those that say where config files are.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._places = read_request(words).places

    def get_group_options(self, group: str, results_filter: object = None) -> list[str]:
        return options(self._places).get(group, [])


def points(words: Sequence[str]) -> list[Point]:
    """Return the runs of a sweep, the values of the last word changing fastest.

    Args:
        words: overrides, each with one value or several: `a=1,2`, `a=range(1,4)`, `a=choice(x,y)`, `model=glob(gpt2*)`.
            Of two words for the same key the later one counts.

    Raises:
        ConfigError: no word has several values, or the values cannot be listed. Words that cannot be read are left to
            `compose`.
    """
    values: dict[str, list[str]] = {}
    swept: set[str] = set()
    for key, (word, override) in _latest(words).items():
        is_swept = override is not None and override.is_sweep_override()
        values[key] = _listed(override, word) if override is not None and is_swept else [word]
        if is_swept:
            swept.add(key)
    if not swept:
        raise ConfigError(_NO_VALUES)
    return [
        Point(combination, tuple(word for key, word in zip(values, combination, strict=True) if key in swept))
        for combination in product(*values.values())
    ]


def search_space(words: Sequence[str]) -> tuple[list[str], list[Dimension]]:
    """Return the words with one value, and what a search may choose for the others.

    Args:
        words: overrides as for `points`; also `a=interval(1,10)`, `a=tag(log,interval(1e-4,1e-2))`.

    Raises:
        ConfigError: no word has several values, or a range has none or cannot be searched.
    """
    fixed: list[str] = []
    dimensions: list[Dimension] = []
    for word, override in _latest(words).values():
        if override is None or not override.is_sweep_override():
            fixed.append(word)
        else:
            dimensions.append(_dimension(override, word))
    if not dimensions:
        raise ConfigError(_NO_VALUES)
    return fixed, dimensions


_NO_VALUES = (
    "--multirun needs a key with several values, but every key has one; write for example optimizer.lr=1e-3,3e-4, or "
    "leave --multirun out"
)


def _latest(words: Sequence[str]) -> dict[str, tuple[str, Override | None]]:
    """Return key -> its last word, at the place of that one: that is where a person looks for it."""
    arguments = read_arguments(words)
    if arguments.problems:
        raise ConfigError(arguments.problems)
    found: dict[str, tuple[str, Override | None]] = {}
    known = plain(words)
    groups = _Groups([word for word in known if word.startswith(("--", f"{SEARCHPATH}="))])
    for word in known:
        override = _parsed(word, groups)
        key = word if override is None else override.key_or_group
        found.pop(key, None)
        found[key] = (word, override)
    return found


def _dimension(override: Override, word: str) -> Dimension:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

    key, value = override.get_key_element(), override.value()
    is_log = isinstance(value, (IntervalSweep, RangeSweep)) and "log" in value.tags
    if isinstance(value, IntervalSweep):
        low, high = float(value.start or 0), float(value.end or 0)
        is_whole = isinstance(value.start, int) or KEYS.get(key) is int
        step = None
        if is_whole and not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"'{word}' must have whole numbers at its ends, since {key} is one")
    elif isinstance(value, RangeSweep) and not value.shuffle and not is_log:
        numbers = [float(number) for number in value.range()]
        if not numbers:
            raise ConfigError(f"'{word}' must give at least one value, but gives none")
        low, high, is_whole = min(numbers), max(numbers), isinstance(value.start, int) and isinstance(value.step, int)
        step = abs(float(value.step)) if len(numbers) > 1 else None
    else:
        return Dimension(key, tuple(text.partition("=")[2] for text in _listed(override, word)))
    if low > high or (is_log and low <= 0):
        raise ConfigError(f"'{word}' must go from a smaller to a larger number{' above 0' if is_log else ''}")
    return Dimension(key, (), low, high, step, is_whole, is_log)


def _parsed(word: str, groups: _Groups) -> Override | None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        return OverridesParser.create(config_loader=cast(Any, groups)).parse_overrides([word])[0]
    except Exception:  # the grammar raises its own errors, ValueError for huge numbers, RecursionError for deep nesting
        return None


def _listed(override: Override, word: str) -> list[str]:
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"'{word}' has no values to list; write them with commas or as range(start,stop,step), or search in "
            "it with sweeper=tpe"
        )
    key = override.get_key_element()
    state = random.getstate()
    # shuffle(...) is another order than the written one, but the same every time.
    random.seed(word)
    found = [f"{key}={value}" for value in override.sweep_string_iterator()]
    random.setstate(state)
    if not found:
        raise ConfigError(f"'{word}' must give at least one value, but gives none")
    return found
