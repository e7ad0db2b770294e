"""The experiment file: keys by group, each with the foreign settings that it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import yaml

from trainer.config.keys import KEYS
from trainer.config.written import literal
from trainer.migration.draft import Draft, Dropped, Entry, Why

_WIDTH = 118


def as_text(name: str, title: str, draft: Draft, told: Sequence[str]) -> str:
    """Return the file's text.

    Args:
        name: name of the experiment.
        title: first line, what it was made of.
        draft: keys and what has none.
        told: further lines of its head.
    """
    lines = ["# @package _global_", *_wrapped(title), *(line for text in told for line in _wrapped(text)), ""]
    entries = {key: draft.entries[key] for key in KEYS if key in draft.entries}
    if "name" not in entries:
        lines += [f"name: {_plain(name)}"]
    lines += _tree(entries)
    lines += ["", *_lists(draft.dropped)] if draft.dropped else []
    return "\n".join([*lines, ""])


def _tree(entries: Mapping[str, Entry]) -> list[str]:
    lines: list[str] = []
    before: list[str] = []
    for key, entry in entries.items():
        *owners, leaf = key.split(".")
        shared = next((at for at, (one, two) in enumerate(zip(owners, before, strict=False)) if one != two), None)
        start = min(len(owners), len(before)) if shared is None else shared
        lines += [f"{'  ' * depth}{owners[depth]}:" for depth in range(start, len(owners))]
        before = owners
        indent = "  " * len(owners)
        if entry.note:
            lines += _wrapped(f"{entry.origin}: {entry.note}", indent)
        comment = "" if entry.note else f"  # {_line(entry.origin)}"
        text = f"{indent}{leaf}: {_plain(entry.value)}"
        lines.append(text + comment if len(text + comment) <= 2 * _WIDTH else text)
    return lines


def _plain(value: object) -> str:
    """Return a value as YAML on one line, which holds interpolations as they are."""
    held = value if isinstance(value, list) and all(map(_is_variable, value)) else literal(value)
    text: str = yaml.safe_dump(held, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10_000_000)
    return text.removesuffix("\n").removesuffix("...").strip().replace("\x85", " ")


def _is_variable(value: object) -> bool:
    """Return whether a text is a variable of the environment that a migration itself put there."""
    return isinstance(value, str) and re.fullmatch(r"\$\{oc\.env:\w+,\w+\}", value) is not None


def _line(text: str) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text).split())


def _wrapped(text: str, indent: str = "") -> list[str]:
    words, lines, line = _line(text).split(" "), [], f"{indent}#"
    for word in words:
        if len(line) + 1 + len(word) > _WIDTH and line != f"{indent}#":
            lines.append(line)
            line = f"{indent}#"
        line += f" {word}"
    return [*lines, line]


def _lists(dropped: Iterable[Dropped]) -> list[str]:
    lines = ["# Settings without a key here:"]
    for why in Why:
        for one in (one for one in dropped if one.why is why):
            lines += _wrapped(f"{why.value}: {one.written}={one.shown}: {one.reason}")
    return lines
