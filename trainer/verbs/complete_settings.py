"""Settings at the cursor: groups and their files, keys and their values."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import get_args

from trainer.config.arguments import read_arguments
from trainer.config.keys import GROUPS, KEYS, OWNERS, is_list, number_or_word, optional
from trainer.config.layout_words import LAYOUT, continuations
from trainer.config.meanings import SCHEMAS, meanings
from trainer.config.places import PATHS, PLAIN
from trainer.config.schema import TridentConfig
from trainer.config.searched import options, places
from trainer.config.words import CONFIG, EXPERIMENT, SEARCHPATH
from trainer.devices import NAMES
from trainer.errors import ConfigError
from trainer.spec import rope
from trainer.verbs.complete_paths import folders, paths, runs
from trainer.verbs.found import Found

_RUNS = ("checkpoint.resume", "checkpoint.init_from", "run_dir")
_FOLDERS = ("data.cache_dir", "zero.nvme_path", "logging.wandb_dir", SEARCHPATH)
_ENDINGS = {
    "data.files": (
        *(".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".tar", ".tgz"),
        *(".gz", ".zst", ".bz2", ".xz", ".bin"),
    ),
    "tokenizer.path": (".json",),
    "data.chat_template": (".jinja",),
    CONFIG: (".yaml", ".yml"),
    EXPERIMENT: (".yaml", ".yml"),
}
_WORDS = {"checkpoint.resume": ("auto", "never"), "data.chat_template": (PLAIN,), "cluster.device": NAMES}
"""Values that the type of a key does not tell."""


def settings(current: str, words: Sequence[str]) -> Iterator[Found]:
    """Yield the settings that a `key=value` can become.

    Args:
        current: the part of it that is typed.
        words: the other words of the verb, which may name further folders with config files.
    """
    name, equals, value = current.partition("=")
    if equals:
        # `a=1,2` is a sweep or, in brackets, a list: its last item is being typed.
        start = max(value.rfind(","), value.rfind("[")) + 1
        found = _values(name, value[start:], words)
        yield from (replace(one, text=f"{name}={value[:start]}{one.text}") for one in found)
        return
    names = list(_names(current))
    yield from names
    if len(current) > 1 and "." not in current and not any(one.text.startswith(current) for one in names):
        # Nothing begins like this, but keys may end like it.
        ends = (key for key in KEYS if key.rpartition(".")[2].startswith(current))
        yield from (Found(f"{key}=", _told(key), is_open=True, is_guess=True) for key in ends)


def _names(current: str) -> Iterator[Found]:
    if "." in current:
        yield from (Found(f"{key}=", _told(key), is_open=True) for key in KEYS if "." in key)
        yield Found(f"{SEARCHPATH}=", "further config folders", is_open=True)
        return
    for group, kind in GROUPS.items():
        yield Found(f"{group}=", f"a file of the group: {_meanings()[kind.__name__]}", is_open=True)
        yield Found(f"{group}.", "a key of the group", is_open=True)
    yield Found(f"{EXPERIMENT}=", "a recipe: files of groups, and keys", is_open=True)
    yield Found(f"{CONFIG}=", "start from the config of a run", is_open=True)
    yield from (Found(f"{key}=", _told(key), is_open=True) for key in KEYS if "." not in key)


def _values(name: str, value: str, words: Sequence[str]) -> Iterator[Found]:
    if name in (*GROUPS, EXPERIMENT):
        yield from (Found(file) for file in _files(words)[name])
        if name == LAYOUT:
            yield from (Found(spelling) for spelling in continuations(value))
        if name == EXPERIMENT or value.startswith((".", "/", "~")):
            yield from paths(value, _ENDINGS.get(EXPERIMENT, ()))
    elif name in KEYS:
        yield from _plain_values(name)
    if name in _RUNS:
        yield from runs(value)
    elif name in _FOLDERS:
        yield from folders(value)
    elif name in PATHS or name == CONFIG:
        yield from paths(value, _ENDINGS.get(name, ()))


def _plain_values(key: str) -> Iterator[Found]:
    """Yield the values of a key, if they can be listed."""
    kind, may_be_null = optional(KEYS[key])
    kind = get_args(kind)[0] if is_list(kind) else kind
    number, words = number_or_word(kind)
    choices = words or number
    if isinstance(choices, type) and issubclass(choices, Enum):
        yield from (Found(str(member.value)) for member in choices)
    elif kind is bool:
        yield from (Found("true"), Found("false"))
    yield from (Found(word) for word in _WORDS.get(key, ()))
    if may_be_null:
        yield Found("null")


def _files(words: Sequence[str]) -> Mapping[str, list[str]]:
    """Return the files of each group, those in the user's own folders included."""
    arguments = read_arguments(words)
    paths_of = [word.partition("=")[2] for word in arguments.settings if word.startswith(f"{SEARCHPATH}=")]
    named = [folder.strip(" '\"") for text in paths_of for folder in text.strip("[]").split(",")]
    try:
        return options(places(arguments.config_dirs, [folder for folder in named if folder]))
    except ConfigError:
        return options()


@functools.cache
def _meanings() -> Mapping[str, str]:
    return meanings((*SCHEMAS, rope))


def _told(key: str) -> str:
    group, _, leaf = key.rpartition(".")
    owner = OWNERS[group].__name__ if group else TridentConfig.__name__
    return _meanings().get(f"{owner}.{leaf}", "").partition(". ")[0].removesuffix(".")
