"""The words of a verb as data: help, parsing, "did you mean" and completion are made from it, so none can be stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.verbs.parse import Words


class Takes(Enum):
    """Kind of value that a word has."""

    nothing = "nothing"
    """A flag: it is there, or it is not."""
    choice = "choice"
    text = "text"
    number = "number"
    file = "file"
    folder = "folder"
    key = "key"
    """The name of a key of the config."""
    run = "run"
    """A run folder, or a checkpoint in one."""


@dataclass(frozen=True)
class Option:
    """A word that begins with dashes. Its value follows as a word of its own, or after `=`."""

    name: str
    """The name with its dashes: `--multirun`."""
    sentence: str
    """Effect of the option, for the help: no capital at the start, no full stop at the end."""
    aliases: tuple[str, ...] = ()
    takes: Takes = Takes.nothing
    metavar: str = ""
    """Placeholder of the value in the help; with choices it is made of them."""
    choices: tuple[str, ...] = ()
    repeats: bool = False
    """True if it may be given several times."""
    needs: str = ""
    """Another option without which this one has no effect."""
    setting: str = ""
    """Setting of the config that the word is short for; it replaces the word."""
    is_for_config: bool = False
    """True if it says how the config is composed: it stays among the settings, in one word."""
    is_hidden: bool = False
    """True if it is understood, but in no help and no completion."""


@dataclass(frozen=True)
class Positional:
    """A word that is recognised by its place."""

    metavar: str
    sentence: str
    takes: Takes = Takes.text
    choices: Mapping[str, str] | None = None
    """Words that are possible here, each with its sentence."""


@dataclass(frozen=True)
class Key:
    """A `key=value` of the verb's own, not one of the config."""

    name: str
    sentence: str
    takes: Takes = Takes.text
    default: str = ""
    """Default as the help shows it. Empty: there is none, and the key must be given."""


@dataclass(frozen=True)
class Verb:
    """One verb of `trident`."""

    name: str
    summary: str
    """Purpose of the verb, in one line."""
    run: Callable[[Words], int]
    """Function that is given the parsed words and returns the exit code."""
    positionals: tuple[Positional, ...] = ()
    keys: tuple[Key, ...] = ()
    options: tuple[Option, ...] = ()
    takes_settings: bool = False
    """True if groups and keys of the config may follow."""
    text: tuple[str, ...] = ()
    """Paragraphs of the help."""
    examples: tuple[str, ...] = ()
    more: Callable[[int], str] | None = None
    """Function that returns the end of the help, given the width."""

    def option(self, name: str) -> Option | None:
        """Return the option that has this name or alias."""
        return next((option for option in self.options if name in (option.name, *option.aliases)), None)
