"""Settings of another trainer as values: each with its name there and its place in the files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from trainer.errors import ConfigError

_DIGITS = re.compile(r"[+-]?[\d_]{1,25}")
_LARGEST = 2**63
"""No size, count or interval of a run is larger."""
_SHOWN = 60


class Trainer(Enum):
    """Trainers whose files are understood."""

    gpt_neox = "gpt-neox"
    megatron = "megatron"
    nanotron = "nanotron"
    deepspeed = "deepspeed"


@dataclass(frozen=True)
class Unresolved:
    """A value that nobody knows without running the script."""

    text: str
    """The value as the script writes it, `$DATA_PATH`."""
    variable: str = ""
    """Variable that it depends on, if it is one that the environment could set."""


@dataclass(frozen=True)
class Setting:
    """One setting of a foreign file."""

    name: str
    """Name in small letters and underscores; of nested settings with dots, `optimizer.params.lr`."""
    value: object
    """Plain value: None, bool, int, float, str, a list or mapping of them; or `Unresolved`."""
    written: str
    """Name as the file has it."""
    place: str
    """File, and the line where it is known, as `20B.yml:31`."""

    @property
    def is_unresolved(self) -> bool:
        """True if the value is not known, or a part of it is not."""
        items = self.value if isinstance(self.value, list) else [self.value]
        return any(isinstance(item, Unresolved) for item in items)


@dataclass(frozen=True)
class Foreign:
    """Everything that foreign files say."""

    trainer: Trainer
    name: str
    """Name of the first file, without its ending."""
    settings: Mapping[str, Setting]
    surroundings: Mapping[str, Setting] = field(default_factory=dict)
    """Settings of the launcher around the trainer, such as torchrun's --nproc_per_node."""
    notes: tuple[str, ...] = ()
    """Lines about what of the files was not read."""


def as_number(setting: Setting) -> float:
    """Return a setting's value as a number.

    Raises:
        ConfigError: it is none, or not finite.
    """
    value = setting.value
    try:
        # Python's own spelling of large numbers, 220_000_000, is accepted by argparse, and so by Megatron.
        is_number = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        if is_number and math.isfinite(found := float(value)):  # type: ignore[arg-type]
            return value if isinstance(value, (int, float)) else found
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"{setting.place}: {setting.written} must be a number, but is {shown(value)}", _hints(setting))


def as_integer(setting: Setting) -> int:
    """Return a setting's value as an integer.

    Raises:
        ConfigError: it is none, or larger than any size.
    """
    number = as_number(setting)
    value = int(setting.value) if isinstance(setting.value, str) and _DIGITS.fullmatch(setting.value) else number
    if not float(value).is_integer() or abs(value) > _LARGEST:
        raise ConfigError(f"{setting.place}: {setting.written} must be an integer, but is {shown(setting.value)}")
    return int(value)


def as_flag(setting: Setting) -> bool:
    """Return a setting's value as true or false.

    Raises:
        ConfigError: it is neither.
    """
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    found = words.get(str(setting.value).lower())
    if found is None:
        raise ConfigError(
            f"{setting.place}: {setting.written} must be true or false, but is {shown(setting.value)}", _hints(setting)
        )
    return found


def shown(value: object) -> str:
    """Return a value as a message shows it."""
    if isinstance(value, Unresolved):
        return value.text
    if isinstance(value, list) and value and not any(isinstance(item, (list, dict)) for item in value):
        text = f"[{', '.join(map(shown, value))}]"
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]}...]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _hints(setting: Setting) -> list[str]:
    if not isinstance(setting.value, Unresolved):
        return []
    name = setting.value.variable
    if name:
        return [f"the script does not set it: give it with {name}=VALUE trident migrate ..."]
    return ["only running the script would tell it: write the value into a copy of the script"]
