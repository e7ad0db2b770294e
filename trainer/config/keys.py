"""The catalogue of config keys: which exist, what values each takes, and what a mistyped one may have meant.

Every way into a config (command line, YAML text, composed groups) goes through `coerce`, so a value is refused in the
same words wherever it comes from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from trainer.config.blend import OF_ALL, Written
from trainer.config.nearness import nearest
from trainer.config.other_names import known_elsewhere, near_elsewhere, value_here
from trainer.config.other_values import NOT_HERE
from trainer.config.schema import TridentConfig
from trainer.errors import ConfigError


def _parts(kind: type, prefix: str = "") -> dict[str, type]:
    """Return the dotted name of each field of `kind` that has keys of its own, from the outside in."""
    found: dict[str, type] = {}
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not issubclass(hint, Written):
            found |= {f"{prefix}{name}": hint, **_parts(hint, f"{prefix}{name}.")}
    return found


def _keys(kind: type, prefix: str = "") -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        full = f"{prefix}{name}"
        keys |= _keys(OWNERS[full], f"{full}.") if full in OWNERS else {full: hint}
    return keys


OWNERS: dict[str, type] = _parts(TridentConfig)
"""Dotted name of a group, or of a part of one -> its frozen dataclass."""
GROUPS: dict[str, type] = {name: kind for name, kind in OWNERS.items() if "." not in name}
"""Group name -> its frozen dataclass."""
KEYS: dict[str, Any] = _keys(TridentConfig)
"""Dotted key -> its annotation."""


def optional(kind: Any) -> tuple[Any, bool]:
    """Split `X | None` into (X, True); anything else is (kind, False)."""
    if get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind):
        inner = tuple(part for part in get_args(kind) if part is not NoneType)
        return Union[inner], True  # noqa: UP007 - built at run time
    return kind, False


def number_or_word(kind: Any) -> tuple[Any, type[Enum] | None]:
    """Split `int | Words`, where `Words` is an enum, into (int, Words); anything else is (kind, None)."""
    if get_origin(kind) not in (Union, UnionType):
        return kind, None
    number, words = get_args(kind)
    assert number is int, f"a field of several types is an integer or a word, not {kind}"
    assert issubclass(words, Enum), f"a field of several types is an integer or a word, not {kind}"
    return number, words


def is_list(kind: Any) -> bool:
    """Return whether a key of this annotation holds several values."""
    return get_origin(optional(kind)[0]) is tuple


def joined(words: Iterable[object], last: str = "or") -> str:
    """Return `a, b or c`."""
    texts = [str(word) for word in words]
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} {last} {texts[-1]}"


def did_you_mean(word: str, choices: Iterable[str], template: str = "'{}'") -> str:
    """Return `; did you mean ...?` for the choice nearest to `word`, or nothing."""
    close = nearest(word, choices)
    return f"; did you mean {template.format(close)}?" if close else ""


def shown_value(value: object) -> str:
    """Return a value of the config as it is written on a command line."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Written):
        value = value.plain()
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {shown_value(held)}' for key, held in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(shown_value, value))}]"
    return str(value)


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _as_bool(value: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError("must be true or false")


def _as_number(value: object, kind: type[int] | type[float]) -> int | float:
    what = "an integer" if kind is int else "a number"
    try:
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return kind(value)
        if isinstance(value, float):
            if kind is float:
                return value
            if value.is_integer():
                what = f"an integer (write {int(value)})"
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"must be {what}")


def _as_choice(value: object, kind: type[Enum]) -> Enum:
    choices = [str(member.value) for member in kind]
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value in choices:
        return kind(value)
    raise ValueError(f"must be one of {', '.join(choices)}")


def _as_number_or_word(value: object, words: type[Enum]) -> int | float | Enum:
    try:
        return _as_choice(value, words)
    except ValueError:
        pass
    try:
        return _as_number(value, int)
    except ValueError:
        raise ValueError(f"must be an integer or {joined(member.value for member in words)}") from None


def _of_source(key: str, value: object) -> object:
    """Return the value of a key of one source of a blend, such as data.blend.web.files."""
    name = f"data.{key.rpartition('.')[2]}"
    if name in OF_ALL:
        raise ConfigError(f"{key} cannot be that of one source: all sources of a blend have one {name}")
    if name not in KEYS:
        own = (other.rpartition(".")[2] for other in KEYS if other.startswith("data.") and other not in OF_ALL)
        raise ConfigError(f"there is no key '{key}'{did_you_mean(name.rpartition('.')[2], own)}")
    return coerce(key, KEYS[name], value)


def _as_scalar(key: str, value: object, kind: Any) -> object:
    if isinstance(kind, type) and issubclass(kind, Written):
        return kind.read(key, value, _of_source)
    _, words = number_or_word(kind)
    if words is not None:
        return _as_number_or_word(value, words)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _as_choice(value, kind)
    if kind is bool:
        return _as_bool(value)
    if kind in (int, float):
        return _as_number(value, kind)
    assert kind is str, f"no rule for a field of type {kind}"
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError("must be a string")


def coerce(key: str, kind: Any, value: object) -> object:
    """Return `value` as the type that `key` is declared with.

    Args:
        key: dotted name, for the message.
        kind: annotation of the field.
        value: plain: None, bool, int, float, str, list, or an enum member.

    Raises:
        ConfigError: the value is of the wrong type, e.g. "optimizer.lr must be a number, but is 'abc'".
    """
    inner, may_be_none = optional(kind)
    if value is None and may_be_none:
        return None
    if is_list(inner):
        if value is None or isinstance(value, Mapping):
            raise ConfigError(f"{key} must be a list such as [a, b], but is {_shown(value)}")
        items = value if isinstance(value, (list, tuple)) else [] if value == "" else [value]
        return tuple(coerce(f"{key}[{index}]", get_args(inner)[0], item) for index, item in enumerate(items))
    try:
        return _as_scalar(key, value, inner)
    except ValueError as error:
        guess = ""
        if isinstance(inner, type) and issubclass(inner, Written):
            raise ConfigError(f"{key} {error}") from None
        if isinstance(inner, type) and issubclass(inner, Enum):
            guess = _meant_value(key, value, [str(member.value) for member in inner])
        raise ConfigError(f"{key} {error}, but is {_shown(value)}{guess}") from None


def _meant_value(key: str, value: object, choices: Sequence[str]) -> str:
    typed = _shown(value).strip("'")
    if typed in NOT_HERE.get(key, ("", ""))[0].split():
        return ""
    known = value_here(key, typed)
    return f"; did you mean '{known}'?" if known else did_you_mean(typed, choices)


def _similar_keys(name: str) -> list[str]:
    """Return the keys whose spelling is near."""
    group, _, leaf = name.rpartition(".")
    if group in GROUPS:
        near = nearest(leaf, (key.rpartition(".")[2] for key in KEYS if key.startswith(f"{group}.")))
        if near:
            return [f"{group}.{near}"]
    near = nearest(leaf, {key.rpartition(".")[2] for key in KEYS})
    return _with_leaf(near, group) if near else []


def _holder(name: str) -> list[str]:
    """Return the key of a list or mapping that `data.files[0]` or `data.blend.web.weight` would be a part of."""
    holder = name.replace("[", ".").rpartition(".")[0]
    while holder and holder not in KEYS:
        holder = holder.rpartition(".")[0]
    return [holder] if holder else []


def _with_leaf(leaf: str, group: str) -> list[str]:
    """Return the keys that end in `leaf`; only those of `group`, if it has any."""
    same = [key for key in KEYS if key.rpartition(".")[2] == leaf]
    close = nearest(group, {key.partition(".")[0] for key in same}) if group else None
    return [key for key in same if key.partition(".")[0] == close] if close else same[:3]


def _first_key(group: str) -> str:
    return next(key for key in KEYS if key.startswith(f"{group}."))


def unknown_key(name: str, groups: Sequence[str] = (), value: str = "") -> str:
    """Return the problem text for a key that does not exist, with what may have been meant.

    Args:
        name: as it was typed.
        groups: names of groups; without them, those of the schema.
        value: the value that it was set to, if that is known.
    """
    if name in OWNERS:
        return f"'{name}' is a group of keys and takes no value itself; set for example {_first_key(name)}"
    meant = meant_key(name, groups, value)
    group = name.partition(".")[0]
    if not meant and group in GROUPS:
        meant = f"{group} has {joined(get_type_hints(GROUPS[group]), 'and')}"
    return f"there is no key '{name}'; {meant or f'keys start with {joined(groups or GROUPS)}'}"


def meant_key(name: str, groups: Sequence[str] = (), value: str = "") -> str:
    """Return which key is meant by a name that is none, or why there is none, as a phrase; empty if nobody knows."""
    known = [*KEYS, *(groups or GROUPS)]
    plain = name.strip("-+~").replace("-", "_").lower()
    meaning = known_elsewhere(name, with_group=True)
    if meaning is not None and plain not in known:
        return meaning.told(value)
    near = nearest(plain, groups or GROUPS) if "." not in plain else None
    group, _, leaf = plain.rpartition(".")
    found = [plain] if plain in known else [near] if near else _holder(plain) or _with_leaf(leaf, group)
    if not found:
        meaning = known_elsewhere(name, with_group=False)
        if meaning is not None:
            return meaning.told(value)
        found = _similar_keys(plain)
    if found:
        return f"did you mean {joined(map(repr, found))}?"
    close = near_elsewhere(name)
    return f"if {close[0]} is meant, {close[1].told(value)}" if close else ""


def flatten(config: TridentConfig) -> dict[str, object]:
    """Return dotted key -> value, in the order of the schema."""
    return {key: attrgetter(key)(config) for key in KEYS}


def build(values: Mapping[str, object]) -> TridentConfig:
    """Make the frozen config from dotted key -> plain value; what is left out takes its default.

    Raises:
        ConfigError: every key that does not exist and every value of the wrong type.
    """
    problems: list[str] = []
    arguments: dict[str, dict[str, object]] = {owner: {} for owner in (*OWNERS, "")}
    for key, value in values.items():
        if key not in KEYS:
            problems.append(unknown_key(key))
            continue
        group, _, leaf = key.rpartition(".")
        try:
            arguments[group][leaf] = coerce(key, KEYS[key], value)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    # From the inside out.
    for owner in reversed(OWNERS):
        outer, _, leaf = owner.rpartition(".")
        arguments[outer][leaf] = OWNERS[owner](**arguments[owner])
    return TridentConfig(**cast(dict[str, Any], arguments[""]))
