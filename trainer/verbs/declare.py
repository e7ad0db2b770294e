"""What a verb takes, as data: help, parsing, "did you mean" and completion are made from it, so none can be stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.verbs.parse import Words


class Takes(Enum):
    """What kind of value a word has."""

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
    """With its dashes: `--multirun`."""
    sentence: str
    """What it does, for the help: no capital at the start, no full stop at the end."""
    aliases: tuple[str, ...] = ()
    takes: Takes = Takes.nothing
    metavar: str = ""
    """What the help shows for the value; with choices it is made of them."""
    choices: tuple[str, ...] = ()
    repeats: bool = False
    """May be given several times."""
    needs: str = ""
    """Has no effect without this other option."""
    setting: str = ""
    """Short for a setting of the config: the word becomes this one."""
    is_for_config: bool = False
    """Says how the config is composed: it stays among the settings, in one word."""
    is_hidden: bool = False
    """Understood, but in no help and no completion."""


@dataclass(frozen=True)
class Positional:
    """A word that is told by its place."""

    metavar: str
    sentence: str
    takes: Takes = Takes.text
    choices: Mapping[str, str] | None = None
    """What it can be, each with its sentence."""


@dataclass(frozen=True)
class Key:
    """A `key=value` of the verb's own: not one of the config."""

    name: str
    sentence: str
    takes: Takes = Takes.text
    default: str = ""
    """As the help shows it. Empty: none, the key must be given."""


@dataclass(frozen=True)
class Verb:
    """One verb of `trident`."""

    name: str
    summary: str
    """What it does, in one line."""
    run: Callable[[Words], int]
    """Gets the words that were given and returns the exit code."""
    positionals: tuple[Positional, ...] = ()
    keys: tuple[Key, ...] = ()
    options: tuple[Option, ...] = ()
    takes_settings: bool = False
    """Groups and keys of the config may follow."""
    text: tuple[str, ...] = ()
    """Paragraphs of the help."""
    examples: tuple[str, ...] = ()
    more: Callable[[int], str] | None = None
    """What the help ends with; gets the width."""

    def option(self, name: str) -> Option | None:
        """Return the option that goes by this name or alias."""
        return next((option for option in self.options if name in (option.name, *option.aliases)), None)
