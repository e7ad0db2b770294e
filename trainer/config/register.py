"""Hydra's view of the schema: a mutable twin of every frozen dataclass, in the ConfigStore.

Hydra 1.3 cannot compose `frozen=True` structured configs, and OmegaConf reads an enum by the *name* of its member
while people write its value (`1f1b`). So each dataclass gets a twin that is mutable, holds lists for tuples, and whose
enum members are named after their values. With the twin of `TridentConfig` first in the defaults list of train.yaml,
a mistyped key, a wrong type or an unknown choice in any YAML file fails while it is composed.
"""

from __future__ import annotations

import dataclasses
import functools
from enum import Enum
from typing import Any, Optional, Union, cast, get_args, get_type_hints

from hydra.core.config_store import ConfigStore

from trainer.config.blend import Written
from trainer.config.keys import is_list, number_or_word, optional
from trainer.config.schema import TridentConfig
from trainer.config.searched import SCHEMA_NAME as SCHEMA_NAME


@functools.cache
def enum_twin(kind: type[Enum]) -> type[Enum]:
    """Return an enum with the same values, whose member names are the values."""
    return cast(type[Enum], Enum(kind.__name__, {str(member.value): member.value for member in kind}))


def _twin_annotation(kind: Any) -> Any:
    inner, may_be_none = optional(kind)
    if isinstance(inner, type) and issubclass(inner, Written):
        # OmegaConf holds the mapping; what may be in it is checked when the config is built.
        return dict[str, Any]
    if dataclasses.is_dataclass(inner):
        twin: Any = mutable_twin(cast(type, inner))
    elif is_list(inner):
        twin = list[_twin_annotation(get_args(inner)[0])]  # type: ignore[misc]
    elif isinstance(inner, type) and issubclass(inner, Enum):
        twin = enum_twin(inner)
    elif number_or_word(inner)[1] is not None:
        # OmegaConf has no union with an enum; which words there are is checked when the config is built.
        twin = Union[int, str]  # noqa: UP007
    else:
        twin = inner
    return Optional[twin] if may_be_none else twin  # noqa: UP045 - built at run time


def _twin_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is dataclasses.MISSING:
        return dataclasses.field(default_factory=mutable_twin(cast(type, field.default_factory)))
    if isinstance(field.default, tuple):
        return dataclasses.field(default_factory=functools.partial(list, tuple(map(_twin_value, field.default))))
    if isinstance(field.default, Written):
        return dataclasses.field(default_factory=field.default.plain)
    return dataclasses.field(default=_twin_value(field.default))


def _twin_value(value: Any) -> Any:
    return enum_twin(type(value))(value.value) if isinstance(value, Enum) else value


@functools.cache
def mutable_twin(kind: type) -> type:
    """Return a dataclass with the fields and defaults of `kind` in a form that Hydra composes. Same twin every call."""
    hints = get_type_hints(kind)
    fields = [
        (field.name, _twin_annotation(hints[field.name]), _twin_default(field)) for field in dataclasses.fields(kind)
    ]
    return dataclasses.make_dataclass(kind.__name__, fields)


@functools.cache
def register() -> None:
    """Put the schema into Hydra's ConfigStore. May be called again; only the first call works."""
    ConfigStore.instance().store(name=SCHEMA_NAME, node=mutable_twin(TridentConfig))
