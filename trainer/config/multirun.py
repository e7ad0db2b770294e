"""The points of a sweep: `a=1,2 b=x,y` is four runs. Hydra's own grammar and its basic sweeper's order. No torch.

A search takes the same words, and also those that give a range instead of values: `a=tag(log,interval(1e-4,1e-2))`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import TYPE_CHECKING, Any, cast

from trainer.config.arguments import plain, read_arguments
from trainer.config.keys import KEYS, joined
from trainer.config.request import read_request
from trainer.config.words import SEARCHPATH
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override, RangeSweep

MOST_RUNS = 10_000
"""Most runs of one sweep. Each is checked before the first one starts, so with many more nothing would ever start."""
_COUNTED = 10**15
"""Numbers above this are not written out in digits."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    words: tuple[str, ...]
    """Overrides of the run."""
    swept: tuple[str, ...]
    """The part of `words` that differs between runs."""

    @property
    def name(self) -> str:
        """The words that tell the run from the others, e.g. `optimizer.lr=0.001,layout=tp2`."""
        return ",".join(self.swept)

    @property
    def values(self) -> dict[str, str]:
        """The words that differ between runs, as key -> value."""
        return dict(word.split("=", 1) for word in self.swept)


@dataclass(frozen=True)
class Dimension:
    """Choices of a search for one key: some of `choices`, or a number from `low` to `high`, both included."""

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
        """Return the words for both ends of the range."""
        if self.choices:
            return f"{self.key}={self.choices[0]}", f"{self.key}={self.choices[-1]}"
        ends = (int(self.low), int(self.high)) if self.is_whole else (self.low, self.high)
        return self.word(ends[0]), self.word(ends[1])


class _Groups:
    """Names of the files of groups, which Hydra asks for to match `glob(...)`.

    Args:
        words: words that say where config files are.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._places = read_request(words).places

    def get_group_options(self, group: str, results_filter: object = None) -> list[str]:
        return sorted({name for place in self._places for name in place.names(group)})


def points(words: Sequence[str]) -> list[Point]:
    """Return the runs of a sweep, the values of the last word changing fastest.

    Args:
        words: overrides, each with one value or several: `a=1,2`, `a=range(1,4)`, `a=choice(x,y)`, `model=glob(gpt2*)`.
            If two words set the same key, the later one counts.

    Raises:
        ConfigError: no word has several values, the values cannot be listed, or they make too many runs. Words that
            cannot be read are left to `compose`.
    """
    latest = _latest(words)
    swept = {
        key: (override, word)
        for key, (word, override) in latest.items()
        if override is not None and override.is_sweep_override()
    }
    if not swept:
        raise ConfigError(_NO_VALUES)
    _check_number({key: _count(override, word) for key, (override, word) in swept.items()})
    values = {key: _listed(*swept[key]) if key in swept else [word] for key, (word, _) in latest.items()}
    return [
        Point(combination, tuple(word for key, word in zip(values, combination, strict=True) if key in swept))
        for combination in product(*values.values())
    ]


def search_space(words: Sequence[str]) -> tuple[list[str], list[Dimension]]:
    """Return the words with one value, and the dimensions that a search may choose for the others.

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
    """Return key -> its last word, in the place of that word: a person looks for it there."""
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
        ends = _ends(value, key, word)
        low, high, is_whole = min(ends), max(ends), isinstance(value.start, int) and isinstance(value.step, int)
        step = abs(float(value.step)) if low < high else None
    else:
        _check_number({key: _count(override, word)})
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


def _ends(values: RangeSweep, key: str, word: str) -> tuple[float, float]:
    """Return the first and the last number of a range."""
    count = _count_of_range(values, word)
    if count == 0:
        raise ConfigError(_gives_none(word))
    numbers = values.range()
    if isinstance(numbers, range):
        return float(numbers[0]), float(numbers[-1])
    _check_number({key: count})
    found = [float(number) for number in numbers]
    return found[0], found[-1]


def _gives_none(word: str) -> str:
    return f"'{word}' must give at least one value, but gives none"


def _check_number(counts: Mapping[str, int]) -> None:
    """Refuse more runs than can be gone through; counted without making them."""
    total = math.prod(counts.values())
    if total > MOST_RUNS:
        told = joined([f"{key} ({_told(count)})" for key, count in counts.items() if count > 1], "and")
        raise ConfigError(
            f"a sweep must be at most {MOST_RUNS:,} runs, but the values of {told} make {_told(total)}; name fewer, or "
            "let a search choose among them: sweeper=random sweeper.trials=20, with interval(low,high) for a range"
        )


def _told(count: int) -> str:
    return f"{count:,}" if count <= _COUNTED else f"more than {_COUNTED:,}"


def _count(override: Override, word: str) -> int:
    """Return how many values a word has, without making those of a range."""
    from hydra.core.override_parser.types import RangeSweep

    _check_discrete(override, word)
    value = override.value()
    if isinstance(value, RangeSweep):
        return _count_of_range(value, word)
    return sum(1 for _ in override.sweep_iterator())


def _count_of_range(values: RangeSweep, word: str) -> int:
    start, stop, step = (Fraction(number) if _is_finite(number) else None for number in _parts(values))
    if start is None or stop is None or not step:
        raise ConfigError(f"'{word}' must be range(start,stop,step) of finite numbers and a step other than 0")
    return max(0, math.ceil((stop - start) / step))


def _parts(values: RangeSweep) -> tuple[float, float, float]:
    return values.start or 0, values.stop or 0, values.step


def _is_finite(number: float) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def _check_discrete(override: Override, word: str) -> None:
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"'{word}' has no values to list; write them with commas or as range(start,stop,step), or search in "
            "it with sweeper=tpe"
        )


def _listed(override: Override, word: str) -> list[str]:
    key = override.get_key_element()
    state = random.getstate()
    # shuffle(...) gives another order than the written one, but the same order every time.
    random.seed(word)
    found = [f"{key}={value}" for value in override.sweep_string_iterator()]
    random.setstate(state)
    if not found:
        raise ConfigError(_gives_none(word))
    return found
