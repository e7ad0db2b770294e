"""Layers that differ: which see a window of the text only, and which have no rotary positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.errors import ConfigError
from trainer.families.fields import Values

_WORDS = {"full_attention": "full", "sliding_attention": "window"}
"""Kind of layer in a config.json -> word of `model.layer_pattern`."""


def shortest_pattern(words: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest pattern that, repeated, gives the words of all layers."""
    for length in range(1, len(words)):
        if all(word == words[index % length] for index, word in enumerate(words)):
            return tuple(words[:length])
    return tuple(words)


def layer_words(ours: Values) -> tuple[str, ...]:
    """Return the word of every layer of a model."""
    layers = int(str(ours["num_layers"]))
    given = ours.get("layer_pattern") or ()
    assert isinstance(given, Sequence)
    pattern = tuple(map(str, given)) or ("full" if ours.get("sliding_window") is None else "window",)
    return tuple(pattern[index % len(pattern)] for index in range(layers))


def _told(words: Sequence[str], window: object) -> dict[str, object]:
    """Return the keys of `model.*` for the words of all layers; what follows from others is left out."""
    pattern = shortest_pattern(words)
    if not any(word.startswith("window") for word in words):
        return {} if pattern == ("full",) else {"layer_pattern": pattern}
    if window is None:
        raise ConfigError("sliding_window must be a number of tokens, since some layers have a window, but is null")
    return {"sliding_window": window, **({} if pattern == ("window",) else {"layer_pattern": pattern})}


def _types(theirs: Values) -> list[str] | None:
    """Return the words for a list `layer_types`."""
    given = theirs.get("layer_types")
    if given is None:
        return None
    layers = theirs["num_hidden_layers"]
    if not isinstance(given, list) or len(given) != layers or not set(given) <= set(_WORDS):
        raise ConfigError(
            f"layer_types must be a list of num_hidden_layers ({layers}) times {' or '.join(_WORDS)}, but is {given}"
        )
    return [_WORDS[kind] for kind in given]


def _as_types(words: Sequence[str]) -> list[str]:
    return ["sliding_attention" if word.startswith("window") else "full_attention" for word in words]


@dataclass(frozen=True)
class Window:
    """One window for all layers, or none."""

    default: int | None = None

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {"sliding_window": self.default}

    def read(self, theirs: Values) -> Values:
        """Return the window if there is one."""
        window = theirs["sliding_window"]
        return {} if window is None else {"sliding_window": window}

    def write(self, ours: Values) -> Values:
        """Return their key."""
        return {"sliding_window": ours.get("sliding_window")}


@dataclass(frozen=True)
class SwitchedWindow:
    """A window in the upper layers, or in those that `layer_types` names, unless it is switched off (Qwen 2 and 3)."""

    @property
    def defaults(self) -> Values:
        """Their keys."""
        return {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}

    def read(self, theirs: Values) -> Values:
        """Return window and pattern."""
        window = theirs["sliding_window"] if theirs["use_sliding_window"] else None
        first, layers = int(str(theirs["max_window_layers"])), int(str(theirs["num_hidden_layers"]))
        has = [window is not None and index >= first for index in range(layers)]
        return _told(_types(theirs) or ["window" if windowed else "full" for windowed in has], window)

    def write(self, ours: Values) -> Values:
        """Return their keys."""
        words, window = layer_words(ours), ours.get("sliding_window")
        first = next((index for index, word in enumerate(words) if word.startswith("window")), len(words))
        return {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": first,
            "layer_types": _as_types(words),
        }


@dataclass(frozen=True)
class EveryFull:
    """Layers with a window, and every n-th without (OLMo 3, Gemma 3)."""

    every: int
    window: int
    every_key: str = ""
    """Older key of n."""

    @property
    def defaults(self) -> Values:
        """Their keys."""
        older: Mapping[str, object] = {self.every_key: self.every} if self.every_key else {}
        return {"sliding_window": self.window, "layer_types": None, **older}

    def read(self, theirs: Values) -> Values:
        """Return window and pattern."""
        every = int(str(theirs[self.every_key])) if self.every_key else self.every
        layers = range(1, int(str(theirs["num_hidden_layers"])) + 1)
        words = _types(theirs) or ["full" if number % every == 0 else "window" for number in layers]
        return _told(words, theirs["sliding_window"])

    def write(self, ours: Values) -> Values:
        """Return their keys."""
        return {"sliding_window": ours.get("sliding_window"), "layer_types": _as_types(layer_words(ours))}


@dataclass(frozen=True)
class NoRope:
    """Rotary positions in some layers only; those without may have a window (SmolLM 3)."""

    every: int = 4

    @property
    def defaults(self) -> Values:
        """Their keys."""
        return {
            "no_rope_layers": None,
            "no_rope_layer_interval": self.every,
            "use_sliding_window": False,
            "sliding_window": None,
            "layer_types": None,
        }

    def read(self, theirs: Values) -> Values:
        """Return window and pattern."""
        layers, every = int(str(theirs["num_hidden_layers"])), int(str(theirs["no_rope_layer_interval"]))
        given = theirs["no_rope_layers"]
        # 1 in their list means that the layer has rotary positions.
        rotated = given if isinstance(given, list) else [int((index + 1) % every != 0) for index in range(layers)]
        if len(rotated) != layers:
            raise ConfigError(f"no_rope_layers must have num_hidden_layers ({layers}) entries, but has {len(rotated)}")
        window = theirs["sliding_window"] if theirs["use_sliding_window"] else None
        has_window = window is not None
        kinds = _types(theirs) or ["window" if has_window and not turns else "full" for turns in rotated]
        if not has_window:
            kinds = ["full"] * layers
        words = [kind if turns else f"{kind}_no_rope" for kind, turns in zip(kinds, rotated, strict=True)]
        return _told(words, window)

    def write(self, ours: Values) -> Values:
        """Return their keys."""
        words, window = layer_words(ours), ours.get("sliding_window")
        return {
            "no_rope_layers": [int(not word.endswith("_no_rope")) for word in words],
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": _as_types(words),
        }


@dataclass(frozen=True)
class AttentionTypes:
    """Kinds of layers as a list of patterns, each with the number of its repetitions (GPT-Neo)."""

    @property
    def defaults(self) -> Values:
        """Their keys."""
        return {"attention_types": [[["global", "local"], 12]], "window_size": 256, "attention_layers": None}

    def read(self, theirs: Values) -> Values:
        """Return window and pattern."""
        given, layers = theirs["attention_types"], theirs["num_layers"]
        assert isinstance(given, list)
        names = [name for pattern, times in given for _ in range(times) for name in pattern]
        if len(names) != layers or not set(names) <= {"global", "local"}:
            raise ConfigError(
                f"attention_types must name global or local for each of num_layers ({layers}) layers, but is {given}"
            )
        return _told(["window" if name == "local" else "full" for name in names], theirs["window_size"])

    def write(self, ours: Values) -> Values:
        """Return their keys."""
        names = ["local" if word.startswith("window") else "global" for word in layer_words(ours)]
        pattern = list(shortest_pattern(names))
        times, rest = divmod(len(names), len(pattern))
        given = [[pattern, times], *([[pattern[:rest], 1]] if rest else [])]
        return {"attention_types": given, "window_size": ours.get("sliding_window") or 256, "attention_layers": names}
