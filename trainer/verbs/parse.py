"""Parsing of the words after a verb, by the verb's declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.config.arguments import is_setting
from trainer.config.keys import did_you_mean, joined
from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Takes, Verb


@dataclass(frozen=True)
class Words:
    """The words that were given to a verb."""

    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of an option that was given -> its values; of a flag, an empty one each time."""
    rest: tuple[str, ...] = ()
    """Positional words and settings, in their order."""

    def has(self, option: str) -> bool:
        """Return whether an option was given."""
        return option in self.options

    def value(self, option: str) -> str | None:
        """Return the value of an option, the last one if there are several, or None if it was not given."""
        return self.options[option][-1] if option in self.options else None

    def values(self, option: str) -> tuple[str, ...]:
        """Return all values of an option that may be given several times."""
        return self.options.get(option, ())


def parse(verb: Verb, arguments: Sequence[str]) -> Words:
    """Sort the words into options and others. Words with dashes that are no option are kept: a setting may look so.

    Raises:
        ConfigError: every option that is mistyped, lacks its value, has one it cannot have, or has no effect.
    """
    options: dict[str, tuple[str, ...]] = {}
    rest: list[str] = []
    composing: list[str] = []
    problems: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        option = verb.option(name) if word.startswith("-") else None
        if option is None:
            problem = _mistyped(verb, word)
            problems += [problem] if problem else []
            rest += [] if problem else [word]
            continue
        if option.takes is not Takes.nothing and not equals and words and not words[0].startswith("--"):
            equals, value = "=", words.pop(0)
        problem = _wrong(option, name, bool(equals), value, options)
        if problem:
            problems.append(problem)
        elif option.setting:
            rest.append(option.setting)
        elif option.is_for_config:
            composing.append(f"{option.name}={value}")
        else:
            options[option.name] = (*options.get(option.name, ()), value)
    problems += [] if problems else _without_effect(verb, options)
    if problems:
        raise ConfigError(problems, hints=[f"see `trident {verb.name} --help`"])
    return Words(options, (*rest, *composing))


def _mistyped(verb: Verb, word: str) -> str:
    """Return the problem with a word that looks like one of the options and is none."""
    name = word.partition("=")[0]
    if not name.startswith("-") or not name.strip("-") or (verb.takes_settings and is_setting(word)):
        return ""
    is_short = not name.startswith("--")
    if verb.takes_settings and _is_leaf(name):
        return ""  # a setting was meant, which the config tells in full
    # `--prompt -m` of a verb with keys of its own: this is a value.
    elsewhere = "" if is_short and verb.keys else _elsewhere(verb, name)
    if elsewhere or is_short:
        return f"there is no option '{name}' of `trident {verb.name}`; {elsewhere}" if elsewhere else ""
    guess = did_you_mean(name, [option.name for option in verb.options if not option.is_hidden], "{}")
    if guess:
        return f"there is no option '{name}'{guess}"
    return "" if verb.takes_settings or verb.keys else f"there is no option '{name}'"


def _is_leaf(name: str) -> bool:
    """Return whether an option is written like the last part of a key of the config."""
    from trainer.config.keys import KEYS

    return name.removeprefix("--").replace("-", "_") in {key.rpartition(".")[2] for key in KEYS}


def _elsewhere(verb: Verb, name: str) -> str:
    """Return the verb that has an option of exactly this name, as a phrase."""
    from trainer.verbs.table import COMMAND_OPTIONS, NAMES, find_verb

    if any(name in (option.name, *option.aliases) for option in COMMAND_OPTIONS) or name == "-V":
        return f"write `trident {'--version' if name == '-V' else name}`"
    if name.removeprefix("--").replace("-", "_") in [key.name for key in verb.keys]:
        return ""
    having = [
        other
        for other in NAMES
        if other != verb.name and (found := find_verb(other).option(name)) and not found.is_hidden
    ]
    return f"it is an option of {joined([f'`trident {other}`' for other in having], 'and')}" if having else ""


def _wrong(option: Option, name: str, has_value: bool, value: str, given: Mapping[str, object]) -> str:
    if option.takes is Takes.nothing:
        return f"{name} must stand alone, but is given '{value}'" if has_value else ""
    if not value:
        return f"{name} must be followed by {shown_value(option)}, but nothing follows"
    if option.choices and value not in option.choices:
        guess = did_you_mean(value, option.choices)
        return f"{name} must be one of {', '.join(option.choices)}, but is '{value}'{guess}"
    if option.name in given and not option.repeats:
        return f"{name} must be given once, but is given again with '{value}'"
    return ""


def _without_effect(verb: Verb, given: Mapping[str, object]) -> list[str]:
    missing: dict[str, list[str]] = {}
    for option in verb.options:
        if option.name in given and option.needs and option.needs not in given:
            missing.setdefault(option.needs, []).append(option.name)
    return [
        f"{joined(names, 'and')} need{'s' * (len(names) == 1)} {needed}, but it is not there; add it, or leave "
        f"{'them' if len(names) > 1 else 'it'} out"
        for needed, names in missing.items()
    ]


def shown_value(option: Option) -> str:
    """Return the placeholder for the value of an option in a help text."""
    return option.metavar or "|".join(option.choices) or option.takes.value.upper()
