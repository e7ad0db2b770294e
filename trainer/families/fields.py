"""The keys of a config.json and the keys of `model.*` they stand for. Every entry can be read in both directions.

`model.*` is a plain mapping here, without the group's name: nested keys have dots, choices are words. A key that is
left out has the default of the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from trainer.errors import ConfigError

Values = Mapping[str, object]
"""Keys and plain values of a config.json, or of `model.*`."""
REQUIRED = "required"
"""Default of a key that every config.json must have."""


class Entry(Protocol):
    """Some keys of a config.json."""

    @property
    def defaults(self) -> Values:
        """Their keys, each with the default of transformers' class."""

    def read(self, theirs: Values) -> Values:
        """Return the keys of `model.*` for a config.json, which has all keys of `defaults`.

        Raises:
            ConfigError: a value has no counterpart; the text is what must hold, and what was found.
        """

    def write(self, ours: Values) -> Values:
        """Return keys of a config.json for a model whose nulls are resolved.

        A model that they cannot say is written as far as they can: whoever exports reads them again and compares.
        """


@dataclass(frozen=True)
class Field:
    """One key for one key."""

    theirs: str
    ours: str
    default: object = REQUIRED
    words: Mapping[object, object] = field(default_factory=dict)
    """Their value -> ours, where they differ; other values are refused then. The first that fits is written."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: self.default}

    def read(self, theirs: Values) -> Values:
        """Return our key."""
        value = theirs[self.theirs]
        if not self.words:
            return {self.ours: value}
        if value not in self.words:
            known = ", ".join(map(str, self.words))
            raise ConfigError(f"{self.theirs} must be one of {known}, but is {value!r}")
        return {self.ours: self.words[value]}

    def write(self, ours: Values) -> Values:
        """Return their key."""
        value = ours.get(self.ours)
        if not self.words:
            return {self.theirs: value}
        return {self.theirs: next((word for word, mine in self.words.items() if mine == value), self.default)}


@dataclass(frozen=True)
class Scaled:
    """One key for one key, whose numbers are functions of each other."""

    theirs: str
    ours: str
    default: object
    reads: Callable[[float], float]
    writes: Callable[[float], float]
    """Its result is rounded if the rounded number reads as the same value."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: self.default}

    def read(self, theirs: Values) -> Values:
        """Return our key."""
        value = theirs[self.theirs]
        assert isinstance(value, int | float)
        return {self.ours: self.reads(value)}

    def write(self, ours: Values) -> dict[str, float]:
        """Return their key."""
        value = ours[self.ours]
        assert isinstance(value, int | float)
        exact = self.writes(value)
        rounded = round(exact)
        return {self.theirs: rounded if rounded and self.reads(rounded) == value else exact}


@dataclass(frozen=True)
class ScoreScale:
    """The factor of the scores, left out where it is the usual one, 1 / sqrt(head_dim)."""

    theirs: str
    default: float
    reads: Callable[[float], float] = float
    writes: Callable[[float], float] = float
    is_whole: bool = False
    """True if transformers' class takes integers only."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: self.default}

    def read(self, theirs: Values) -> Values:
        """Return our key."""
        value = theirs[self.theirs]
        assert isinstance(value, int | float)
        scale = self.reads(value)
        return {} if scale == head_dim_of(theirs) ** -0.5 else {"attention_scale": scale}

    def write(self, ours: Values) -> Values:
        """Return their key."""
        scale = ours.get("attention_scale") or head_dim_of(ours) ** -0.5
        entry = Scaled(self.theirs, "scale", self.default, self.reads, self.writes)
        found = entry.write({"scale": scale})
        # A rounded number reads as another scale, so whoever compares refuses it.
        return {key: max(1, round(value)) for key, value in found.items()} if self.is_whole else found


@dataclass(frozen=True)
class Constant:
    """A key of `model.*` that every model of a family has alike."""

    ours: str
    value: object

    @property
    def defaults(self) -> Values:
        """No key of theirs."""
        return {}

    def read(self, theirs: Values) -> Values:
        """Return our key."""
        return {self.ours: self.value}

    def write(self, ours: Values) -> Values:
        """Return no key."""
        return {}


@dataclass(frozen=True)
class Derived:
    """A key of `model.*` that follows from another key of theirs, which has an entry of its own."""

    ours: str
    theirs: str
    value: Callable[[float], object]

    @property
    def defaults(self) -> Values:
        """No key of theirs."""
        return {}

    def read(self, theirs: Values) -> Values:
        """Return our key."""
        given = theirs[self.theirs]
        try:
            return {self.ours: self.value(float(str(given)))}
        except (ValueError, ArithmeticError):
            raise ConfigError(
                f"{self.theirs} must be a number that model.{self.ours} can be made from, but is {given!r}"
            ) from None

    def write(self, ours: Values) -> Values:
        """Return no key."""
        return {}


@dataclass(frozen=True)
class Refusal:
    """A key of theirs that may have one value only, because the model has no option for the others."""

    theirs: str
    allowed: object
    missing: str
    """The option that is missing, as a noun phrase."""
    default: object = None
    also: tuple[object, ...] = ()
    """Other values that mean the same."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: self.allowed if self.default is None else self.default}

    def read(self, theirs: Values) -> Values:
        """Return no key of ours, or refuse."""
        value = theirs[self.theirs]
        if value != self.allowed and value not in self.also:
            raise ConfigError(
                f"{self.theirs} must be {_json(self.allowed)}, since there is no option for {self.missing}, but is "
                f"{_json(value)}"
            )
        return {}

    def write(self, ours: Values) -> Values:
        """Return their key."""
        return {self.theirs: self.allowed}


@dataclass(frozen=True)
class Equal:
    """A key of theirs that must have the value of another one, or none."""

    theirs: str
    other: str
    missing: str
    """The option that is missing, as a noun phrase."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: None}

    def read(self, theirs: Values) -> Values:
        """Return no key of ours, or refuse."""
        value, wanted = theirs[self.theirs], theirs[self.other]
        if value not in (None, wanted):
            raise ConfigError(
                f"{self.theirs} must be {self.other} ({wanted}), since there is no option for {self.missing}, but is "
                f"{_json(value)}"
            )
        return {}

    def write(self, ours: Values) -> Values:
        """Return no key: transformers fills it in."""
        return {}


@dataclass(frozen=True)
class Listed:
    """A key of theirs that does not change what the model computes: for training, generation or classification."""

    theirs: str
    default: object = None
    ours: str = ""
    """Our key that is written; it is not read, because it is the run's choice and not the model's."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: self.default}

    def read(self, theirs: Values) -> Values:
        """Return no key."""
        return {}

    def write(self, ours: Values) -> Values:
        """Return their key if it has a counterpart."""
        return {self.theirs: ours.get(self.ours)} if self.ours else {}


_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Activation:
    """The non-linearity of the MLP, and whether it has a gate."""

    theirs: str
    default: str
    gated: bool = False
    also: Mapping[str, str] = field(default_factory=dict)
    """Names that the family uses in a way of its own -> our word."""
    is_closed: bool = False
    """True if the class knows the names of `also` alone."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: self.default}

    @property
    def _names(self) -> Mapping[str, str]:
        return self.also if self.is_closed else {**_ACTIVATIONS, **self.also}

    def read(self, theirs: Values) -> Values:
        """Return the activation; gated SiLU by its own name, which has a key less."""
        value = theirs[self.theirs]
        word = self._names.get(str(value))
        if word is None:
            raise ConfigError(f"{self.theirs} must be one of {', '.join(self._names)}, but is {value!r}")
        if not self.gated:
            return {"activation": word}
        return {"activation": "swiglu"} if word == "silu" else {"activation": word, "gated": True}

    def write(self, ours: Values) -> Values:
        """Return their key."""
        word = "silu" if ours["activation"] == "swiglu" else ours["activation"]
        names = self._names
        # The family's own name goes first.
        found = [self.default, *names] if names[self.default] == word else list(names)
        return {self.theirs: next((name for name in found if names[name] == word), self.default)}


@dataclass(frozen=True)
class Biases:
    """One switch for the biases of several matrices."""

    theirs: str
    ours: tuple[str, ...]
    """Keys such as `qkv_bias`; all have the switch's value."""
    default: bool = False
    base: bool = False
    """Value of `model.bias` in the family; our keys are left out where they say the same."""

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: self.default}

    def read(self, theirs: Values) -> Values:
        """Return our keys."""
        value = bool(theirs[self.theirs])
        return {} if value is self.base else dict.fromkeys(self.ours, value)

    def write(self, ours: Values) -> Values:
        """Return their key: true if the first of ours is."""
        value = ours.get(self.ours[0])
        return {self.theirs: bool(ours.get("bias") if value is None else value)}


def head_dim_of(values: Values, hidden: str = "hidden_size", heads: str = "num_attention_heads") -> int:
    """Return the size of a head in a config of either side."""
    size = values.get("head_dim")
    return int(str(size)) if size is not None else int(str(values[hidden])) // int(str(values[heads]))


def _json(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
