"""The points of a sweep: `a=1,2 b=x,y` is four runs. Hydra's own grammar and its basic sweeper's order. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, cast

from trainer.config.arguments import plain
from trainer.config.compose import options
from trainer.config.words import quoted as quoted
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


class _Groups:
    """What Hydra asks for the names that `glob(...)` is matched with."""

    @staticmethod
    def get_group_options(group: str, results_filter: object = None) -> list[str]:
        return options().get(group, [])


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
    for word in plain(words):
        override = _parsed(word)
        key = word if override is None else override.key_or_group
        # The place of the last word, too: that is where a person looks for it.
        values.pop(key, None)
        swept.discard(key)
        if override is not None and override.is_sweep_override():
            swept.add(key)
            values[key] = _listed(override, word)
        else:
            values[key] = [word]
    if not swept:
        raise ConfigError(
            "--multirun needs a key with several values, but every key has one; write for example "
            "optimizer.lr=1e-3,3e-4, or leave --multirun out"
        )
    return [
        Point(combination, tuple(word for key, word in zip(values, combination, strict=True) if key in swept))
        for combination in product(*values.values())
    ]


def _parsed(word: str) -> Override | None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        return OverridesParser.create(config_loader=cast(Any, _Groups)).parse_overrides([word])[0]
    except Exception:  # the grammar raises its own errors, ValueError for huge numbers, RecursionError for deep nesting
        return None


def _listed(override: Override, word: str) -> list[str]:
    if not override.is_discrete_sweep():
        raise ConfigError(f"'{word}' has no values to list; write them with commas, or as range(start,stop,step)")
    key = override.get_key_element()
    found = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not found:
        raise ConfigError(f"'{word}' must give at least one value, but gives none")
    return found
