"""The table of verbs. Their files are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from trainer.config.keys import did_you_mean, joined
from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Takes, Verb
from trainer.verbs.other_verbs import NO_VERB, OTHER_VERBS

NAMES = (
    *("train", "plan", "migrate", "data", "data inspect", "data audit", "data write", "generate", "evaluate"),
    *("import", "export", "checkpoint", "balance", "reshard", "watch", "runs", "compare", "doctor"),
    "report",
    "parity",
)
"""Names of the verbs in the order of the help; each is a file of this room that declares `VERB`.

A name of two words is a verb below another one: `data inspect` is declared in data_inspect.py.
"""

_FIRST = tuple(name for name in NAMES if " " not in name)
_SHELLS = ("bash", "zsh", "fish")
COMMAND_OPTIONS = (
    Option("--help", "this text, or `trident VERB --help`", aliases=("-h",)),
    Option("--version", "the version"),
    Option(
        "--install-completion",
        "let a shell complete verbs, groups, keys, values and paths; without SHELL, the shell that is running",
        takes=Takes.choice,
        metavar="[SHELL]",
        choices=_SHELLS,
    ),
    Option(
        "--show-completion",
        "print the text that --install-completion would write",
        takes=Takes.choice,
        metavar="[SHELL]",
        choices=_SHELLS,
    ),
)
"""Options that may stand in the place of a verb."""


def find_verb(name: str) -> Verb:
    """Return a verb.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in NAMES:
        raise ConfigError(f"the verb must be one of {joined(_FIRST)}, but is {name!r}", hints=[_meant(name)])
    verb: Verb = import_module(f"trainer.verbs.{name.replace(' ', '_')}").VERB
    return verb


def named_verb(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the name of the verb that words begin with, which may be two of them, and the words behind it."""
    both = " ".join(words[:2])
    return (both, words[2:]) if both in NAMES else (words[0], words[1:])


def verbs_below(name: str) -> list[str]:
    """Return the second words of the verbs below a verb."""
    return [other.partition(" ")[2] for other in NAMES if other.startswith(f"{name} ")]


def _meant(name: str) -> str:
    """Return the verb that was meant by a word that is none, as a phrase."""
    plain = name.lower().replace("-", "_").strip("_")
    if plain in ("v", "version"):
        return "did you mean `trident --version`?"
    for names, verb in OTHER_VERBS.items():
        if plain in names.split():
            return f"did you mean `trident {verb}`?"
    for names, note in NO_VERB.items():
        if plain in names.split():
            return note
    if "=" in name or name.startswith("-"):
        return f"a verb comes first: `trident train {name}`"
    return did_you_mean(name, NAMES, "`trident {}`").removeprefix("; ") or "see `trident --help`"
