"""Suggestions for the name of a file that a group does not have: `model=gpt2`, `zero=3`, `data=corpus.txt`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.config.layout_words import LAYOUT, RULE, near_spelling
from trainer.config.nearness import nearest
from trainer.config.other_values import NOT_HERE, OTHER_FILES, OTHER_WORDS

_NUMBERS = {"batch": "batch.global_batch_size", "train": "train.steps", "optimizer": "optimizer.lr"}
_TEXT_FILE = re.compile(r".*\.(txt|jsonl|parquet|json|csv)(\.(gz|zst))?|.*[*]|[.~]?/.*|\.\./.*")


def meant_choice(group: str, value: str, names: Sequence[str]) -> str:
    """Return what was meant by a GROUP=VALUE that does not exist, as a phrase.

    Args:
        group: name of a group of the config.
        value: as it was typed.
        names: the group's files.
    """
    typed = value.strip().lower().replace("-", "_").replace(" ", "_")
    bare = typed.rpartition("/")[2]
    if f"{group}={bare}" in OTHER_WORDS:
        return f"write {OTHER_WORDS[f'{group}={bare}']}"
    for name, others in OTHER_FILES.get(group, {}).items():
        if name in names and (bare in others.split() or bare.replace(".", "_") in (name, *others.split())):
            return f"did you mean {group}={name}?"
    if bare in NOT_HERE.get(group, ("", ""))[0].split():
        return NOT_HERE[group][1]
    setting = _as_settings(group, value, typed, names)
    if setting:
        return setting
    close = nearest(bare, names)
    if group == LAYOUT and not close:
        return RULE
    return f"did you mean {group}={close}?" if close else f"choose from {', '.join(names)}"


def _as_settings(group: str, value: str, typed: str, names: Sequence[str]) -> str:
    if group == LAYOUT:
        return near_spelling(typed)
    if group == "data":
        return _data(value)
    if group == "tokenizer" and re.search(r"[/\d]|\.json$", value):
        return f"write tokenizer=pretrained tokenizer.path={value}"
    if group in _NUMBERS and re.fullmatch(r"[\d.]+(e-?\d+)?", typed):
        return f"write {_NUMBERS[group]}={value}"
    if group == "checkpoint" and "/" in value:
        return f"write checkpoint.resume={value}"
    return ""


def _data(value: str) -> str:
    if _TEXT_FILE.fullmatch(value):
        return f"write data=files data.files=[{value}]"
    return f"write data=hub data.hub_path={value}" if re.fullmatch(r"[\w.-]+/[\w.-]+", value) else ""
