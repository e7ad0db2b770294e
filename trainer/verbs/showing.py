"""`--cfg` and `--info`: the config and its origin, printed instead of used. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from trainer.config.compose import Composition, composition
from trainer.config.ds_json import deepspeed_json
from trainer.config.keys import GROUPS, KEYS, OWNERS, flatten, unknown_key
from trainer.config.schema import TridentConfig
from trainer.config.searched import options, shown
from trainer.config.validate import validate
from trainer.config.words import EXPERIMENT
from trainer.config.written import as_yaml, plain, to_yaml
from trainer.description import plan_record
from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Takes
from trainer.verbs.parse import Words

CFG, RESOLVE, PACKAGE, INFO = "--cfg", "--resolve", "--package", "--info"
SHOWING = (
    Option(
        CFG,
        "print the config as YAML, the plan as JSON, or what DeepSpeed is given as JSON, and end",
        aliases=("-c",),
        takes=Takes.choice,
        choices=("job", "plan", "deepspeed"),
    ),
    Option(RESOLVE, "with --cfg job: with interpolations resolved", needs=CFG),
    Option(
        PACKAGE,
        "with --cfg: print this part only, a group or a key",
        aliases=("-p",),
        takes=Takes.key,
        metavar="KEY",
        needs=CFG,
    ),
    Option(
        INFO,
        "print where the config is from, and end: the files of each group, the folders that are searched, what was "
        "chosen, or the files in the order in which they are merged",
        takes=Takes.choice,
        choices=("config", "groups", "searchpath", "defaults"),
    ),
)


def shows(words: Words) -> bool:
    """Return whether something is to be printed instead of done."""
    return words.has(CFG) or words.has(INFO)


def show(words: Words) -> int:
    """Print what the words ask for, and return the exit code.

    Raises:
        ConfigError: the words do not compose, or the config breaks a rule; the config is printed before the error.
    """
    if words.has(CFG) and words.has(INFO):
        raise ConfigError(f"{CFG} and {INFO} each print something instead of running; leave one of them out")
    found = composition(words.rest)
    if words.has(INFO):
        _print("\n".join(_INFO[str(words.value(INFO))](found)))
        return 0
    kind, part = words.value(CFG), words.value(PACKAGE)
    if kind != "job" and words.has(RESOLVE):
        raise ConfigError(f"{RESOLVE} belongs to {CFG} job; what {CFG} {kind} prints is always resolved")
    if kind == "job":
        _print(_job(found, words.has(RESOLVE), part))
        validate(found.config)
        return 0
    validate(found.config)
    record = _of_plan(found.config, str(kind))
    _print(json.dumps(record if part is None else _part_of(record, part), indent=1))
    return 0


def _print(text: str) -> None:
    # Not through the log: it is data for another program, on whatever rank.
    from trainer.log import tell

    tell(text)


def _of_plan(config: TridentConfig, kind: str) -> dict[str, Any]:
    from trainer.dry_run import plan_without_data

    plan = plan_without_data(config)
    return plan_record(plan) if kind == "plan" else deepspeed_json(plan)


def _job(found: Composition, resolve: bool, part: str | None) -> str:
    if part is None:
        return (to_yaml(found.config) if resolve else as_yaml(found.unresolved)).rstrip()
    values: Mapping[str, object] = found.unresolved
    if resolve:
        values = {key: plain(value) for key, value in flatten(found.config).items()}
    if part in KEYS:
        return yaml.safe_dump(values[part], allow_unicode=True).removesuffix("...\n").rstrip()
    if part not in OWNERS:
        raise ConfigError(unknown_key(part, list(GROUPS)))
    below = f"{part}."
    return as_yaml({key.removeprefix(below): values[key] for key in KEYS if key.startswith(below)}).rstrip()


def _part_of(record: object, part: str) -> object:
    for name in part.split("."):
        if not isinstance(record, Mapping) or name not in record:
            names = ", ".join(record) if isinstance(record, Mapping) else "nothing below it"
            raise ConfigError(
                f"{PACKAGE} must name a part of what is printed, but there is no '{name}'; there is {names}"
            )
        record = record[name]
    return record


def _config(found: Composition) -> Iterator[str]:
    yield f"primary     {shown(found.primary)}"
    if found.request.file is not None:
        yield f"config      {shown(found.request.file.path)}"
    order = {group: place for place, group in enumerate((*GROUPS, EXPERIMENT))}
    files = {(group, name): shown(file) for group, name, file in found.files()}
    chosen = [(group, name) for group, several in found.choices.items() for name in several.split(",")]
    for group, name in sorted(chosen, key=lambda choice: order[choice[0]]):
        yield f"{group:<12}{name:<20} {files.get((group, name), 'as it is spelled')}"


def _groups(found: Composition) -> Iterator[str]:
    for group, names in options(found.places).items():
        own = {name for place in found.places if place.origin != "trident" for name in place.names(group)}
        yield f"{group:<12}" + " ".join(f"{name}*" if name in own else name for name in names)
    yield "* a file in a folder of your own"


def _searchpath(found: Composition) -> Iterator[str]:
    for place in found.places:
        only = f" (files of {place.group})" if place.group else ""
        yield f"{place.origin:<20} {shown(place.folder)}{only}"


def _defaults(found: Composition) -> Iterator[str]:
    yield from found.merge_order()


_INFO = {"config": _config, "groups": _groups, "searchpath": _searchpath, "defaults": _defaults}
