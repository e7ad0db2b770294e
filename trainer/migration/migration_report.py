"""The answer of `trident migrate`: numbers of both, differences, what has no key, and the next command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config.schema import TridentConfig
from trainer.config.searched import shown
from trainer.migration.draft import Draft, Why
from trainer.migration.foreign import Foreign
from trainer.migration.side_by_side import Compared

_TOLD = (Why.unsupported, Why.by_hand, Why.unknown)
"""Reasons that a person should read one by one; the others are in the file."""


@dataclass(frozen=True)
class Migration:
    """An experiment that was made of foreign files, and what is known about it."""

    foreign: Foreign
    draft: Draft
    text: str
    config: TridentConfig
    compared: Sequence[Compared]
    path: Path


def report(done: Migration) -> Iterator[str]:
    """Yield the lines that a person reads."""
    draft = done.draft
    said = [entry for entry in draft.entries.values() if any(name in draft.settings for name in entry.names)]
    yield (
        f"{shown(done.path)}: {len(draft.entries)} keys from {done.foreign.trainer.value}, {len(said)} of them said in "
        f"the files, {len(draft.entries) - len(said)} its defaults or given here"
    )
    for one in done.compared:
        yield f"  {_line(one)}"
    notes = [(key, entry) for key, entry in draft.entries.items() if entry.note]
    if notes:
        yield "not quite the same:"
        for key, entry in notes:
            yield f"  {key} ({entry.origin}): {entry.note}"
    for why in _TOLD:
        found = [one for one in draft.dropped if one.why is why]
        if found:
            yield f"{why.value}:"
            for lost in found:
                yield f"  {lost.place}: {lost.written}={lost.shown}: {lost.reason}"
    rest = [one for one in draft.dropped if one.why not in _TOLD]
    if rest:
        yield f"{len(rest)} more have no key and need none; the end of the file lists them with their reasons"
    for note in done.foreign.notes:
        yield f"not read: {note}"
    yield f"next: trident plan experiment={_choice(done.path)}"


def _line(one: Compared) -> str:
    here = "unknown" if one.here is None else f"{one.here:,}"
    if one.there is None:
        return f"{one.name}: {here} here{f' ({one.note})' if one.note else ''}"
    if not one.agrees:
        verdict = "DIFFERENT"
    elif one.changed_by and one.there != one.here:
        verdict = f"changed by {one.changed_by}"
    elif one.expected:
        verdict = f"{one.expected:,} fewer, as expected"
    else:
        verdict = "equal"
    return f"{one.name}: {one.there:,} there, {here} here: {verdict}{f' ({one.note})' if one.note else ''}"


def _choice(path: Path) -> str:
    folder = Path.cwd() / "conf" / "experiment"
    if path.parent == folder:
        return path.stem
    text = shown(path)
    return text if text.startswith(("/", ".", "~")) else f"./{text}"
