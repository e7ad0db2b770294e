"""The experiment that grows while foreign settings are read: keys here, and what of there has no key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from trainer.config.keys import KEYS, coerce
from trainer.config.written import plain
from trainer.errors import ConfigError
from trainer.migration.foreign import Setting, as_flag, as_integer, as_number, shown

_SECRET = re.compile(r"api_?key|access_key|secret|passw|credential|(hub|hf|auth|access)_token")


class Why(Enum):
    """Reason why a foreign setting has no key here."""

    unsupported = "not supported"
    """The run here is another one without it."""
    by_hand = "to be set by hand"
    """There is something like it here, which nobody but the user can settle."""
    unknown = "unknown"
    """No table knows the name."""
    environment = "the environment's business"
    """Launcher, cluster or shell say it."""
    no_effect = "no effect here"
    """It changes nothing that is trained: speed, logging, or a default of here."""


@dataclass(frozen=True)
class Entry:
    """A key of the experiment."""

    value: object
    """Plain value, as YAML holds it."""
    origin: str
    """Names of the foreign settings that it comes from, or why it is what it is."""
    note: str = ""
    """Difference from what was meant there; empty if it is the same."""
    names: tuple[str, ...] = ()
    """Names of these settings."""


@dataclass(frozen=True)
class Dropped:
    """A foreign setting that has no key here."""

    written: str
    shown: str
    why: Why
    reason: str
    place: str


@dataclass
class Draft:
    """An experiment that is being made of foreign settings."""

    settings: Mapping[str, Setting]
    wanted: Mapping[str, object] = field(default_factory=dict)
    """Keys that the user sets beside the files; they win."""
    entries: dict[str, Entry] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Names of settings that an entry or a line among the dropped tells of."""

    def find(self, *names: str) -> Setting | None:
        """Return the first of these settings that is there and not null, and mark all of them as read.

        They are names of one thing: another one that says something else is noted.
        """
        given = [self.settings[name] for name in names if name in self.settings]
        said = [one for one in given if one.value is not None]
        for one in said[1:]:
            if one.name not in self.used and shown(one.value).lower() != shown(said[0].value).lower():
                self.drop(one.name, Why.by_hand, f"{said[0].written} says {shown(said[0].value)}")
        self.used.update(one.name for one in given)
        return said[0] if said else None

    def number(self, *names: str, default: float = 0.0) -> float:
        """Return the number that the first of these settings has; see `as_number`."""
        found = self.find(*names)
        return default if found is None else as_number(found)

    def integer(self, *names: str, default: int = 0) -> int:
        """Return the integer that the first of these settings has; see `as_integer`."""
        found = self.find(*names)
        return default if found is None else as_integer(found)

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return whether the first of these settings is true; see `as_flag`."""
        found = self.find(*names)
        return default if found is None else as_flag(found)

    def text(self, *names: str, default: str = "") -> str:
        """Return the text of the first of these settings."""
        found = self.find(*names)
        return default if found is None else shown(found.value)

    def interval(self, *names: str, default: int) -> int:
        """Return the integer that the first of these settings has, which no number that is trained depends on.

        One that only running a script would tell is noted, and is the default.
        """
        found = self.find(*names)
        if found is not None and found.is_unresolved:
            self.drop(
                found.name, Why.by_hand, f"its value is not known without running the script; it is {default} here"
            )
            return default
        return default if found is None else as_integer(found)

    def size(self, *names: str, default: int | None = None) -> int:
        """Return the size or number that the first of these settings has: at least 1.

        Raises:
            ConfigError: it is smaller, or there is none and no default.
        """
        found = self.find(*names)
        if found is None and default is None:
            raise ConfigError(
                f"the files must say {names[0]}, but do not",
                ["several files that belong together can be given at once"],
            )
        value = default if found is None else as_integer(found)
        assert value is not None, "a default, or a setting"
        if found is not None and value < 1:
            raise ConfigError(f"{found.place}: {found.written} must be at least 1, but is {value}")
        return value

    def origin(self, *names: str) -> str:
        """Return those of the names that are there, as the files write them."""
        return ", ".join(self.settings[name].written for name in names if name in self.settings)

    def put(self, key: str, value: object, *names: str, note: str = "", origin: str = "") -> None:
        """Set a key.

        Args:
            key: dotted name here.
            value: plain value.
            names: settings that it comes from; without any it is a default there.
            note: difference from what was meant there.
            origin: phrase in place of the names.

        Raises:
            ConfigError: the value is not of the key's type.
        """
        self.used.update(name for name in names if name in self.settings)
        told = origin or self.origin(*names) or "default there"
        try:
            held = plain(coerce(key, KEYS[key], value))
        except ConfigError as error:
            raise ConfigError([f"{told}: {line}" for line in error.problems]) from None
        self.entries[key] = Entry(held, told, note, names)

    def drop(self, name: str, why: Why, reason: str) -> None:
        """Note that a setting has no key here, if it is there."""
        setting = self.settings.get(name)
        if setting is None:
            return
        self.used.add(name)
        # A script takes such a value from the environment, and what is dropped is printed and written.
        text = "(hidden)" if _SECRET.search(name) else shown(setting.value)
        self.dropped.append(Dropped(setting.written, text, why, reason, setting.place))

    def drop_all(self, names: Iterable[str], why: Why, reason: str) -> None:
        """Note that settings have no key here; those that are not there are passed over."""
        for name in names:
            self.drop(name, why, reason)

    def value(self, key: str) -> object:
        """Return the value of a key as the user, or the files so far, set it; None if nobody did."""
        if key in self.wanted:
            return self.wanted[key]
        return self.entries[key].value if key in self.entries else None

    def count(self, key: str, default: int = 1) -> int:
        """Return the integer that a key has, or the default."""
        value = self.value(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def settle_read(self) -> None:
        """Tell of settings that were read and are in no key: they are off, or follow from others."""
        told = {name for entry in self.entries.values() for name in entry.names}
        lost = {(one.written, one.place) for one in self.dropped}
        for name, setting in self.settings.items():
            if name in self.used and name not in told and (setting.written, setting.place) not in lost:
                is_off = setting.value in (None, False, 0, "")
                self.drop(
                    name, Why.no_effect, "it is off" if is_off else "it changes nothing beside the other settings"
                )

    def left(self) -> list[Setting]:
        """Return the settings that nobody has read yet."""
        return [setting for name, setting in self.settings.items() if name not in self.used]
