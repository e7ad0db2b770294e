"""The sources of a blend, and how their weights change: values of `data.blend` and `data.blend_schedule`. No torch.

A source is written as keys of `data` of its own, beside its weight: `{web: {weight: 0.7, files: [web/*.jsonl]}}`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WEIGHT = "weight"
_OF_ALL = (
    *(
        "blend",
        "blend_schedule",
        "max_epochs",
        "on_change",
        "cache_dir",
        "prefetch_steps",
        "workers",
        "records",
        "messages_key",
    ),
    *("prompt_key", "completion_key", "chat_template", "too_long", "packing", "mask_documents", "boundary_label"),
)
OF_ALL = frozenset(f"data.{key}" for key in _OF_ALL)
"""Keys that all sources of a blend have in common."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
Coerce = Callable[[str, object], object]
"""(dotted key, plain value) -> the value as the key's type; raises ConfigError."""


class Written(ABC):
    """A value that YAML holds as a mapping."""

    @classmethod
    @abstractmethod
    def read(cls, key: str, value: object, coerce: Coerce) -> Written:
        """Return what a plain value says.

        Args:
            key: dotted name that it is the value of.
            value: as YAML gives it.
            coerce: reads the keys of a source.

        Raises:
            ValueError: it is not of the form; the text goes on from the key's name.
            ConfigError: a key in it does not exist, or has a value of the wrong type.
        """

    @abstractmethod
    def plain(self) -> dict[str, object]:
        """Return the value as YAML holds it; values of keys as they are in the config."""


@dataclass(frozen=True)
class BlendSource:
    """One source of a blend."""

    name: str
    weight: float
    keys: tuple[tuple[str, object], ...]
    """Its own values for keys of `data`, without that prefix."""


@dataclass(frozen=True)
class Blend(Written):
    """Sources in the order in which they are written; none: `data` itself is the only one."""

    sources: tuple[BlendSource, ...] = ()

    @classmethod
    def read(cls, key: str, value: object, coerce: Coerce) -> Blend:
        """Return the blend that a plain value says. See `Written`."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(
                f"must be sources such as {{web: {{weight: 0.7, files: [web/*.jsonl]}}}}, but is {value!r}"
            )
        return cls(tuple(cls._source(key, str(name), held, coerce) for name, held in value.items()))

    @classmethod
    def _source(cls, key: str, name: str, held: object, coerce: Coerce) -> BlendSource:
        if not _NAME.fullmatch(name):
            raise ValueError(f"must give sources names of letters, digits, _ and -, but one is {name!r}")
        if not isinstance(held, Mapping):
            raise ValueError(f"must give {name} keys such as {{weight: 0.7, files: [...]}}, but gives it {held!r}")
        if WEIGHT not in held:
            raise ValueError(f"must give each source a weight, but {name} has none")
        weight = number(held[WEIGHT], f"a weight of {name}")
        own = ((str(leaf), coerce(f"{key}.{name}.{leaf}", one)) for leaf, one in held.items() if leaf != WEIGHT)
        return BlendSource(name, weight, tuple(own))

    def plain(self) -> dict[str, object]:
        """See `Written`."""
        return {one.name: {WEIGHT: one.weight, **dict(one.keys)} for one in self.sources}

    def plain_weights(self) -> dict[str, float]:
        """Return the weight of each source by its name."""
        return {one.name: one.weight for one in self.sources}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(one.name for one in self.sources)

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the sources."""
        return tuple(one.weight for one in self.sources)


ONE_SOURCE = Blend()
"""The blend of a run whose only source is `data`."""


@dataclass(frozen=True)
class BlendPhase(Written):
    """Weights from a place of the stream on."""

    at_tokens: int
    weights: tuple[tuple[str, float], ...]
    """Name of a source and its weight, for each source that it names."""

    @classmethod
    def read(cls, key: str, value: object, coerce: Coerce) -> BlendPhase:
        """Return the phase that a plain value says. See `Written`."""
        if isinstance(value, cls):
            return value
        form = f"must be such as {{at_tokens: 1000000, weights: {{web: 0.5, code: 0.5}}}}, but is {value!r}"
        if not isinstance(value, Mapping) or set(value) != {"at_tokens", "weights"}:
            raise ValueError(form)
        at, weights = number(value["at_tokens"], "at_tokens"), value["weights"]
        if not at.is_integer() or not isinstance(weights, Mapping):
            raise ValueError(form)
        found = tuple((str(name), number(one, f"a weight of {name}")) for name, one in weights.items())
        return cls(int(at), found)

    def plain(self) -> dict[str, object]:
        """See `Written`."""
        return {"at_tokens": self.at_tokens, "weights": dict(self.weights)}


def number(value: object, what: str) -> float:
    """Return a number that is finite and not negative.

    Raises:
        ValueError: the value is not.
    """
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            found = float(value)
            if math.isfinite(found) and found >= 0:
                return found
    except ValueError:
        pass
    raise ValueError(f"must have {what} that is a number of at least 0, but it is {value!r}")
