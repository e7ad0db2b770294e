"""What was meant by the name of a file that a group does not have: `model=gpt2`, `zero=3`, `data=corpus.txt`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.config.nearness import nearest
from trainer.config.other_values import NOT_HERE, OTHER_FILES, OTHER_WORDS

_PART = re.compile(r"(tp|pp|dp|sp|cp|ep)_?(\d*)")
_AXES = {
    "tp": "layout.tensor_parallel_size",
    "pp": "layout.pipeline_parallel_size",
    "dp": "layout.data_parallel_size",
}
_NUMBERS = {"batch": "batch.global_batch_size", "train": "train.steps", "optimizer": "optimizer.lr"}
_TEXT_FILE = re.compile(r".*\.(txt|jsonl|parquet|json|csv)(\.(gz|zst))?|.*[*]|[.~]?/.*|\.\./.*")


def meant_choice(group: str, value: str, names: Sequence[str]) -> str:
    """Return what was meant where there is no GROUP=VALUE, as a phrase.

    Args:
        group: of the config.
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
    return f"did you mean {group}={close}?" if close else f"choose from {', '.join(names)}"


def _as_settings(group: str, value: str, typed: str, names: Sequence[str]) -> str:
    if group == "layout":
        return _layout(typed, names)
    if group == "data":
        return _data(value)
    if group == "tokenizer" and re.search(r"[/\d]|\.json$", value):
        return f"write tokenizer=pretrained tokenizer.path={value}"
    if group in _NUMBERS and re.fullmatch(r"[\d.]+(e-?\d+)?", typed):
        return f"write {_NUMBERS[group]}={value}"
    if group == "checkpoint" and "/" in value:
        return f"write checkpoint.resume={value}"
    return ""


def _layout(typed: str, names: Sequence[str]) -> str:
    """Return how to write a layout that has no file of its own, such as tp3 or pp2_tp2_dp8."""
    bare = typed.replace("_", "").replace("x", "")
    parts = _PART.findall(bare)
    if not parts or "".join(axis + size for axis, size in parts) != bare:
        return ""
    if any(axis in ("cp", "ep") for axis, _ in parts):
        return "only pp, tp and dp are available, and sp beside tp"
    for name in names:
        if sorted(_PART.findall(name)) == sorted(parts):
            return f"did you mean layout={name}?"
    if any(axis != "sp" and not size for axis, size in parts):
        return ""
    words = [f"{_AXES[axis]}={size}" for axis, size in parts if axis != "sp"]
    words += ["layout.sequence_parallel=true"] if any(axis == "sp" for axis, _ in parts) else []
    return f"write {' '.join(words)}"


def _data(value: str) -> str:
    if _TEXT_FILE.fullmatch(value):
        return f"write data=files data.files=[{value}]"
    return f"write data=hub data.hub_path={value}" if re.fullmatch(r"[\w.-]+/[\w.-]+", value) else ""
