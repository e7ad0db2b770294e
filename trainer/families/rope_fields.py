"""Rotary positions in a config.json: one mapping `rope_parameters` since transformers 5, several keys before.

Both spellings are read, and both are written: a reader of the other one would silently take the default base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import ConfigError
from trainer.families.fields import Values, head_dim_of

_NUMBERS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_length",
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
    "short_factor": "short_factor",
    "long_factor": "long_factor",
}
"""Key of a scaling in a config.json -> key below `model.rope_scaling`."""
_READ_BY: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (*("factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),),
}
"""Kind of scaling -> the keys that it reads."""
_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""Kind of scaling -> the keys that no other number stands for."""
_BESIDE = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
LENGTH = "max_position_embeddings"
BY_LENGTH = ("dynamic", "longrope")
"""Scalings whose frequencies depend on the length of the text."""


def _parameters(theirs: Values) -> Mapping[str, object]:
    """Return the mapping of either spelling."""
    found = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"rope_parameters must be a mapping, but is {found!r}")
    return found


def _scaling(parameters: Mapping[str, object], theirs: Values) -> dict[str, object]:
    """Return the keys below `model.rope_scaling`."""
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    if kind == "su":
        kind = "longrope"
    if kind not in _READ_BY:
        known = ", ".join(_READ_BY)
        raise ConfigError(f"rope_type must be one of {known}, since there is no option for others, but is {kind}")
    unread = sorted(set(parameters) - {*_READ_BY[kind], *_BESIDE})
    if [key for key in unread if parameters[key] is not None and key != "original_max_position_embeddings"]:
        read = ", ".join(_READ_BY[kind]) or "rope_theta"
        raise ConfigError(f"rope_type={kind} must have none but the keys {read}, but has {unread}")
    if kind == "default" or (kind == "linear" and parameters.get("factor") == 1):
        return {}
    values = {key: parameters[key] for key in _READ_BY[kind] if parameters.get(key) is not None}
    absent = [key for key in _NEEDED.get(kind, ()) if key not in values]
    if absent:
        raise ConfigError(f"rope_type={kind} must have the keys {', '.join(_NEEDED[kind])}, but lacks {absent}")
    length = theirs.get("original_max_position_embeddings") or values.get("original_max_position_embeddings")
    if kind == "dynamic":
        values["original_max_position_embeddings"] = theirs[LENGTH]
    elif "original_max_position_embeddings" in _READ_BY[kind]:
        values["original_max_position_embeddings"] = length or theirs[LENGTH]
    if kind in ("yarn", "longrope") and "factor" not in values:
        whole, original = theirs[LENGTH], values["original_max_position_embeddings"]
        assert isinstance(whole, int | float)
        assert isinstance(original, int | float)
        values["factor"] = whole / original
    return {"rope_scaling.kind": kind, **{f"rope_scaling.{_NUMBERS[key]}": value for key, value in values.items()}}


def _written(ours: Values, theta: object, is_scaled: bool = True) -> dict[str, object]:
    kind = str(ours.get("rope_scaling.kind", "none"))
    if kind == "none" or not is_scaled:
        return {"rope_type": "default", "rope_theta": theta}
    pairs = ((key, ours.get(f"rope_scaling.{_NUMBERS[key]}")) for key in _READ_BY[kind])
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in pairs if value is not None}
    return {"rope_type": kind, "rope_theta": theta, **values}


def _check_whole(parameters: Mapping[str, object]) -> None:
    part = parameters.get("partial_rotary_factor")
    if part not in (None, 1):
        raise ConfigError(
            f"partial_rotary_factor must be 1, since models of this class rotate whole heads, but is {part!r}"
        )


def _rotated(factor: object, head_dim: int) -> int:
    assert isinstance(factor, int | float)
    return int(head_dim * factor)


def _part(dims: int, head_dim: int) -> float:
    """Return the part of a head whose rounded-down product with its size is `dims`."""
    part = dims / head_dim
    return part if _rotated(part, head_dim) == dims else math.nextafter(part, 2.0)


@dataclass(frozen=True)
class Rope:
    """Rotary positions that are alike in all layers, with the length that the model was made for."""

    theta: float = 10000.0
    """Base where the file names none."""
    theta_key: str = "rope_theta"
    """Older key of the base."""
    partial: float | None = None
    """Rotated part of a head where the file names none; None: the family rotates whole heads."""
    partial_key: str = "partial_rotary_factor"
    """Older key of that part."""
    length: int = 2048
    """Length where the file names none."""
    original: int | None = None
    """Default of a key `original_max_position_embeddings` beside the mapping (Phi-3)."""

    @property
    def defaults(self) -> Values:
        """Keys of both spellings."""
        keys: dict[str, object] = {LENGTH: self.length, "rope_parameters": None, "rope_scaling": None}
        keys[self.theta_key] = self.theta
        if self.partial is not None:
            keys[self.partial_key] = self.partial
        if self.original is not None:
            keys["original_max_position_embeddings"] = self.original
        return keys

    def read(self, theirs: Values) -> Values:
        """Return base, rotated part, scaling and length."""
        parameters = _parameters(theirs)
        scaling = _scaling(parameters, theirs)
        found: dict[str, object] = {
            "position": "rope",
            "rope_theta": parameters.get("rope_theta", theirs[self.theta_key]),
            "seq_length": theirs[LENGTH],
            **scaling,
        }
        if scaling.get("rope_scaling.kind") in BY_LENGTH:
            # A longer text has other frequencies; the model begins with those that it was made with.
            found["seq_length"] = scaling["rope_scaling.original_length"]
        if self.partial is None:
            _check_whole(parameters)
        else:
            head_dim = head_dim_of(theirs)
            dims = _rotated(parameters.get("partial_rotary_factor", theirs[self.partial_key]), head_dim)
            found |= {"rope_dims": dims} if dims != head_dim else {}
        return found

    def write(self, ours: Values) -> Values:
        """Return both spellings."""
        parameters = _written(ours, ours["rope_theta"])
        is_scaled = parameters["rope_type"] != "default"
        found: dict[str, object] = {LENGTH: ours["seq_length"], self.theta_key: ours["rope_theta"]}
        if is_scaled and parameters["rope_type"] in BY_LENGTH:
            original = ours["rope_scaling.original_length"]
            assert isinstance(original, int)
            is_dynamic = parameters["rope_type"] == "dynamic"
            found[LENGTH] = original if is_dynamic else round(original * float(str(parameters["factor"])))
        if self.partial is not None:
            head_dim = head_dim_of(ours)
            part = _part(int(str(ours.get("rope_dims") or head_dim)), head_dim)
            parameters["partial_rotary_factor"] = found[self.partial_key] = part
        if self.original is not None:
            found["original_max_position_embeddings"] = (
                ours["rope_scaling.original_length"] if is_scaled else found[LENGTH]
            )
        old = {key: value for key, value in parameters.items() if key not in ("rope_theta", "partial_rotary_factor")}
        found["rope_parameters"] = parameters
        found["rope_scaling"] = {**old, "type": old["rope_type"]} if is_scaled else None
        return found


@dataclass(frozen=True)
class RopeByLayer:
    """Rotary positions that differ between layers with a window and without (OLMo 3, Gemma 3)."""

    theta: float
    local_theta: float
    local_key: str = ""
    """Older key of the base in layers with a window; empty: there is none, and all layers have the same base."""
    length: int = 2048

    @property
    def defaults(self) -> Values:
        """Keys of both spellings."""
        keys = {LENGTH: self.length, "rope_parameters": None, "rope_scaling": None, "rope_theta": self.theta}
        return {**keys, **({self.local_key: self.local_theta} if self.local_key else {})}

    def read(self, theirs: Values) -> Values:
        """Return both bases, and the scaling, which is that of layers without a window."""
        parameters = theirs.get("rope_parameters") or {}
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"rope_parameters must be a mapping, but is {parameters!r}")
        nested = {key: parameters[key] or {} for key in ("full_attention", "sliding_attention") if key in parameters}
        unread = sorted(key for key, value in parameters.items() if key not in nested and value is not None)
        if unread:
            raise ConfigError(
                f"rope_parameters must have full_attention and sliding_attention for this class, but has {unread}"
            )
        full = {**(nested.get("full_attention", {})), **(_mapping(theirs.get("rope_scaling")))}
        local = nested.get("sliding_attention", {})
        _check_whole(full)
        _check_whole(local)
        if local.get("rope_type", "default") != "default":
            raise ConfigError("sliding_attention must have rope_type default: layers with a window are not scaled")
        theta = full.get("rope_theta", theirs["rope_theta"])
        beside = theirs[self.local_key] if self.local_key else theta
        local_theta = local.get("rope_theta", beside)
        scaling = _scaling(full, theirs)
        return {
            "position": "rope",
            "seq_length": theirs[LENGTH],
            "rope_theta": theta,
            **({"local_rope_theta": local_theta} if local_theta != theta else {}),
            **({**scaling, "rope_scaling.windowed": False} if scaling else {}),
        }

    def write(self, ours: Values) -> Values:
        """Return both spellings."""
        theta = ours["rope_theta"]
        local_theta = ours.get("local_rope_theta") or theta
        full = _written(ours, theta)
        local = _written(ours, local_theta, is_scaled=False)
        old = {key: value for key, value in full.items() if key != "rope_theta"}
        return {
            LENGTH: ours["seq_length"],
            "rope_theta": theta,
            **({self.local_key: local_theta} if self.local_key else {}),
            "rope_parameters": {"full_attention": full, "sliding_attention": local},
            "rope_scaling": None if old["rope_type"] == "default" else {**old, "type": old["rope_type"]},
        }


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class RotaryDim:
    """Rotated elements of each head as a number (GPT-J)."""

    theirs: str
    default: int

    @property
    def defaults(self) -> Values:
        """Their key."""
        return {self.theirs: self.default}

    def read(self, theirs: Values) -> Values:
        """Return our key."""
        dims = theirs[self.theirs]
        if dims is None:
            raise ConfigError(
                f"{self.theirs} must be a number, since there is no option for frequencies of the whole width, but is "
                "null"
            )
        return {"position": "rope", "rope_dims": dims}

    def write(self, ours: Values) -> Values:
        """Return their key."""
        return {self.theirs: ours.get("rope_dims") or head_dim_of(ours)}
