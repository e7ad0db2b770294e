"""Descriptions of a key in words: its type and range, its default, its meaning, and the rules about it. No torch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, get_args

from trainer.config.blend import Written
from trainer.config.keys import KEYS, OWNERS, is_list, number_or_word, optional
from trainer.config.keys import shown_value as shown_value
from trainer.config.meanings import SCHEMAS, meanings
from trainer.config.rules_ranges import BELOW_ONE, CLOSED, MINIMA, NOT_NEGATIVE, POSITIVE
from trainer.config.schema import TridentConfig
from trainer.config.validate import ALL_RULES
from trainer.spec import execution, model, parts, rope, stepping


def told_in_schema() -> dict[str, str]:
    """Return `Class.field` -> the schema's text about the field, and `Class` -> its text about the class."""
    return meanings((*SCHEMAS, parts, rope, model, execution, stepping))


def group_of(key: str) -> str:
    """Return the group of a key, or nothing for a key that belongs to none."""
    return key.partition(".")[0] if "." in key else ""


def keys_of(group: str) -> list[str]:
    """Return the keys of a group, in the order of the schema."""
    return [key for key in KEYS if group_of(key) == group]


def type_of(key: str) -> str:
    """Return the type of a key in words, with its range."""
    kind, may_be_null = optional(KEYS[key])
    number, choices = number_or_word(kind)
    words = _list(get_args(kind)[0]) if is_list(kind) else _scalar(number) + _range(key)
    if choices is not None:
        words += f" | {_scalar(choices)}"
    return words + " or null" * may_be_null


def _list(kind: Any) -> str:
    return f"list of {_scalar(kind)}" + "s" * (not issubclass(kind, Enum))


def _scalar(kind: Any) -> str:
    if issubclass(kind, Written):
        return "mapping"
    if issubclass(kind, Enum):
        return " | ".join(f"`{member.value}`" for member in kind)
    names = {bool: "true | false", int: "integer", float: "number", str: "string"}
    return names[kind]


def _range(key: str) -> str:
    if key in CLOSED:
        low, high = CLOSED[key]
        return f" {low} to {high}"
    if key in MINIMA:
        return f" >= {MINIMA[key]}"
    return " > 0" * (key in POSITIVE) + " >= 0" * (key in NOT_NEGATIVE) + " >= 0, < 1" * (key in BELOW_ONE)


def default_of(key: str, defaults: Mapping[str, object]) -> str:
    """Return the default of a key, which is what `trident train` without a word uses."""
    return shown_value(TridentConfig().run_dir if key == "run_dir" else defaults[key])


def meaning_of(key: str, told: Mapping[str, str]) -> str:
    """Return the schema's text about a key, after that about its choices, without saying anything twice."""
    group, _, leaf = key.rpartition(".")
    owner = OWNERS[group].__name__ if group else TridentConfig.__name__
    meaning = told[f"{owner}.{leaf}"]
    kind, _ = optional(KEYS[key])
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return meaning
    rest = meaning.removeprefix(" | ".join(str(member.value) for member in kind) + ".").strip()
    choices = told[kind.__name__]
    return choices if rest.lower() in choices.lower() else f"{choices} {rest}"


def rules_of(key: str) -> Iterator[str]:
    """Yield what the rules between keys demand of a key, one sentence each."""
    words = re.compile(rf"\b{re.escape(key)}\b")
    for rule in ALL_RULES:
        source = inspect.getsource(rule)
        if words.search(source) and rule.__doc__:
            yield " ".join(rule.__doc__.split())
