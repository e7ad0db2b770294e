"""The keys of the config as a catalogue: which exist, what value each takes, what a mistyped one may have meant.

Every way into a config (command line, YAML text, composed groups) goes through `coerce`, so a value is refused in the
same words wherever it comes from.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from trainer.config.schema import TridentConfig
from trainer.errors import ConfigError


def _groups() -> dict[str, type]:
    hints = get_type_hints(TridentConfig)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)}


def _keys() -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(TridentConfig).items():
        if name in GROUPS:
            keys |= {f"{name}.{field}": kind for field, kind in get_type_hints(hint).items()}
        else:
            keys[name] = hint
    return keys


GROUPS: dict[str, type] = _groups()
"""Group name -> its frozen dataclass."""
KEYS: dict[str, Any] = _keys()
"""Dotted key -> its annotation."""

OTHER_NAMES: dict[str, str] = {
    "batch_size": "batch.global_batch_size",
    "gbs": "batch.global_batch_size",
    "mbs": "batch.micro_batch_size",
    "gradient_accumulation_steps": "batch.global_batch_size",
    "num_micro_batches": "batch.global_batch_size",
    "tp": "layout.tensor_parallel_size",
    "tp_size": "layout.tensor_parallel_size",
    "model_parallel_size": "layout.tensor_parallel_size",
    "pp": "layout.pipeline_parallel_size",
    "pp_size": "layout.pipeline_parallel_size",
    "dp": "layout.data_parallel_size",
    "dp_size": "layout.data_parallel_size",
    "learning_rate": "optimizer.lr",
    "gradient_clipping": "optimizer.grad_clip",
    "max_grad_norm": "optimizer.grad_clip",
    "max_steps": "train.steps",
    "train_iters": "train.steps",
    "n_layer": "model.num_layers",
    "n_head": "model.num_attention_heads",
    "n_embd": "model.hidden_size",
    "d_model": "model.hidden_size",
    "block_size": "model.seq_length",
    "max_seq_len": "model.seq_length",
    "output_dir": "run_dir",
    "save_every": "checkpoint.every",
    "wandb": "logging.wandb",
}
"""What other trainers call a key -> what it is called here."""


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
    close = difflib.get_close_matches(word, list(choices), 1, 0.6)
    return f"; did you mean {template.format(close[0])}?" if close else ""


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


def _as_scalar(value: object, kind: Any) -> object:
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
        return _as_scalar(value, inner)
    except ValueError as error:
        guess = ""
        if isinstance(inner, type) and issubclass(inner, Enum):
            guess = did_you_mean(str(value), [str(member.value) for member in inner])
        raise ConfigError(f"{key} {error}, but is {_shown(value)}{guess}") from None


def _similar_keys(name: str) -> list[str]:
    group, _, leaf = name.rpartition(".")
    if leaf in OTHER_NAMES and group in ("", OTHER_NAMES[leaf].partition(".")[0], "trainer", "training"):
        return [OTHER_NAMES[leaf]]
    same_leaf = [key for key in KEYS if key.rpartition(".")[2] == leaf]
    if same_leaf:
        near = difflib.get_close_matches(name, same_leaf, 1, 0.8)
        return near or same_leaf[:3]
    if group in GROUPS:
        near = difflib.get_close_matches(name, [key for key in KEYS if key.startswith(f"{group}.")], 1, 0.75)
        if near:
            return near
    near_leaves = difflib.get_close_matches(leaf, {key.rpartition(".")[2] for key in KEYS}, 1, 0.75)
    if near_leaves:
        return [key for key in KEYS if key.rpartition(".")[2] == near_leaves[0]][:3]
    return difflib.get_close_matches(name, [*KEYS, *GROUPS], 1, 0.75)


def _first_key(group: str) -> str:
    return next(key for key in KEYS if key.startswith(f"{group}."))


def unknown_key(name: str, groups: Sequence[str] = ()) -> str:
    """Return the problem text for a key that does not exist, with what may have been meant."""
    if name in GROUPS:
        return f"'{name}' is a group of keys and takes no value itself; set for example {_first_key(name)}"
    close = difflib.get_close_matches(name, list(groups), 1, 0.7) if "." not in name else []
    close = close or _similar_keys(name)
    if close:
        return f"there is no key '{name}'; did you mean {joined(repr(key) for key in close)}?"
    group = name.partition(".")[0]
    if group in GROUPS:
        return f"there is no key '{name}'; {group} has {joined(get_type_hints(GROUPS[group]), 'and')}"
    return f"there is no key '{name}'; keys start with {joined(groups or GROUPS)}"


def flatten(config: TridentConfig) -> dict[str, object]:
    """Return dotted key -> value, in the order of the schema."""
    flat: dict[str, object] = {}
    for key in KEYS:
        group, _, leaf = key.rpartition(".")
        flat[key] = getattr(getattr(config, group) if group else config, leaf)
    return flat


def build(values: Mapping[str, object]) -> TridentConfig:
    """Make the frozen config from dotted key -> plain value; what is left out takes its default.

    Raises:
        ConfigError: every key that does not exist and every value of the wrong type.
    """
    problems: list[str] = []
    arguments: dict[str, dict[str, object]] = {group: {} for group in (*GROUPS, "")}
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
    top = arguments.pop("")
    built = {group: GROUPS[group](**fields) for group, fields in arguments.items()}
    return TridentConfig(**cast(dict[str, Any], {**built, **top}))
