"""Tables of the config: what differs between runs, and what a run's config chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache

from trainer.config.keys import flatten
from trainer.config.schema import TridentConfig
from trainer.config.written import plain
from trainer.records.run_record import RunRecord

_NOT_THE_RUN = ("run_dir", "name")
"""Keys that name a run, and so differ in any two."""
_MISSING = object()


def differing_keys(records: Sequence[RunRecord]) -> list[str]:
    """Return the keys that not all runs have alike, in the order of the first config that has them."""
    keys = list(dict.fromkeys(key for record in records for key in record.config))
    return [
        key
        for key in keys
        if key not in _NOT_THE_RUN
        and not key.startswith("logging.wandb")
        and len({_hashable(record.config.get(key, _MISSING)) for record in records}) > 1
    ]


def _hashable(value: object) -> str:
    return "missing" if value is _MISSING else json.dumps(value, sort_keys=True, default=str)


def shown_value(value: object) -> str:
    """Return a value of the config as YAML has it in a line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str):
        return value if value else "''"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False, default=str)


def difference_table(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return each key, or fact of the environment, that differs, with its value in each run."""
    rows = [
        (key, [shown_value(record.config[key]) if key in record.config else "" for record in records])
        for key in differing_keys(records)
    ]
    names = list(dict.fromkeys(name for record in records for name in record.environment))
    for name in names:
        values = [record.environment.get(name, "") for record in records]
        if len(set(values)) > 1:
            rows.append((f"version of {name}" if name != "commit" else "commit", values))
    return rows


@cache
def _defaults() -> Mapping[str, object]:
    return {key: plain(value) for key, value in flatten(TridentConfig()).items()}


def config_table(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return key, value, and a word where the schema has another default, or does not know the key; those first."""
    defaults = _defaults()
    rows = []
    for key, value in record.config.items():
        if key not in defaults:
            word = "not a key of this version"
        else:
            word = "" if _hashable(value) == _hashable(defaults[key]) else "chosen"
        rows.append((key, shown_value(value), word))
    return sorted(rows, key=lambda row: not row[2])
