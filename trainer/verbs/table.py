"""Which verbs there are. Their files are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module

from trainer.config.keys import did_you_mean, joined
from trainer.errors import ConfigError
from trainer.verbs.declare import Verb

NAMES = ("train", "data", "generate", "checkpoint", "balance", "reshard")
"""In the order of the help; each is a file of this room that declares `VERB`."""


def find_verb(name: str) -> Verb:
    """Return a verb.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in NAMES:
        guess = did_you_mean(name, NAMES, "`trident {}`").removeprefix("; ")
        raise ConfigError(
            f"the verb must be one of {joined(NAMES)}, but is {name!r}", hints=[guess or "see `trident --help`"]
        )
    verb: Verb = import_module(f"trainer.verbs.{name}").VERB
    return verb
