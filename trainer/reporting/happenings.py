"""Events of the runs of a page: on the time axis of the loss, and as a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.records.happened import Event
from trainer.records.run_record import RunRecord
from trainer.reporting.thinning import evenly

LANES = ("save", "evaluation", "skip", "spike", "rewind", "restart", "save_failed")
"""Kinds on the axis, in order; others that a later version writes follow. Starts and ends are in the list alone."""
BREAKS = ("rewind", "restart")
"""Kinds that go through all charts as a line."""
MOST_DRAWN, MOST_LISTED = 1000, 300
_ALONE_IN_LIST = ("start", "end", "stop")


@dataclass(frozen=True)
class Happenings:
    """Events as they are drawn and listed."""

    lanes: list[str]
    drawn: list[dict[str, Any]]
    breaks: list[dict[str, Any]]
    listed: list[tuple[int, Event]]
    """Number of the run, and the event."""
    notes: list[str]


def happenings(records: Sequence[RunRecord]) -> Happenings:
    """Return the events of runs; of many of one kind, only some are drawn and listed, the page says so."""
    found = [(run, event) for run, record in enumerate(records) for event in record.events]
    kinds = list(dict.fromkeys(event.kind for _, event in found))
    lanes = [kind for kind in LANES if kind in kinds]
    lanes += [kind for kind in kinds if kind not in (*LANES, *_ALONE_IN_LIST)]
    notes, drawn = [], []
    for kind in lanes:
        of_kind = [(run, event) for run, event in found if event.kind == kind and event.step is not None]
        kept = evenly(len(of_kind), MOST_DRAWN // len(lanes))
        if len(kept) < len(of_kind):
            notes.append(f"{len(kept)} of {len(of_kind):,} events of the kind {kind} are drawn.")
        drawn += [_drawn(*of_kind[place]) for place in kept]
    listed = _listed(found, notes)
    breaks = [
        {"run": run, "step": event.step, "kind": event.kind}
        for run, event in found
        if event.kind in BREAKS and event.step is not None
    ]
    return Happenings(lanes, drawn, breaks[:MOST_DRAWN], listed, notes)


def _listed(found: Sequence[tuple[int, Event]], notes: list[str]) -> list[tuple[int, Event]]:
    """Return what is listed: of saves and evaluations, of which there are many, only as many as there is room for."""
    often = ("save", "evaluation")
    rare = [place for place, (_, event) in enumerate(found) if event.kind not in often]
    many = [place for place, (_, event) in enumerate(found) if event.kind in often]
    kept = [rare[place] for place in evenly(len(rare), MOST_LISTED)]
    kept += [many[place] for place in evenly(len(many), max(MOST_LISTED - len(kept), 20))]
    if len(kept) < len(found):
        notes.append(f"{len(kept)} of {len(found):,} events are listed.")
    return [found[place] for place in sorted(kept)]


def _drawn(run: int, event: Event) -> dict[str, Any]:
    when = f"{event.time:%Y-%m-%d %H:%M} UTC" if event.time else ""
    text = f"{event.text}{f', {when}' if when else ''}"
    return {"run": run, "kind": event.kind, "step": event.step, "text": text[:300]}
