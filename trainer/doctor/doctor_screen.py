"""Findings as text for a person, and as JSON. No torch."""

from __future__ import annotations

import platform
import socket
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from trainer import __version__
from trainer.doctor.finding import Examined, Status, worst

_MARK = 6
_COUNTED = {Status.fail: "failed", Status.warn: "warned", Status.ok: "ok", Status.skip: "not needed"}


def screen(examined: Sequence[Examined], show_all: bool) -> str:
    """Return the findings by topic, each with its fix below it, and a last line that counts them.

    Lines are not wrapped: what is copied from a terminal is whole.

    Args:
        examined: the checks and their findings.
        show_all: show what is not needed, too.
    """
    lines: list[str] = []
    for topic, several in groupby(examined, lambda one: one.check.topic):
        shown = [found for one in several for found in one.findings if show_all or found.status is not Status.skip]
        if not shown:
            continue
        lines.append(topic)
        column = max(len("fix"), *(len(found.name) for found in shown)) + 2
        for found in shown:
            lines.append(f"  {found.status.value:<{_MARK}}{found.name:<{column}}{_plain(found.found)}")
            lines += [f"  {'':<{_MARK}}{'fix':<{column}}{_plain(found.fix)}"] if found.fix else []
    counts = Counter(found.status for one in examined for found in one.findings)
    told = [f"{counts[status]} {word}" for status, word in _COUNTED.items() if counts[status]]
    verdict = {Status.ok: "Ready", Status.warn: "Ready, with warnings", Status.fail: "Not ready"}[worst(examined)]
    return "\n".join([*lines, f"{verdict}: {', '.join(told)}."])


def _plain(text: str) -> str:
    """Return a text in which nothing drives a terminal: other programs' words are shown."""
    return "".join(character if character.isprintable() else " " for character in text)


def as_json(examined: Sequence[Examined]) -> dict[str, object]:
    """Return everything as one object."""
    return {
        "status": worst(examined).value,
        "trident": __version__,
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "findings": [
            {
                "topic": one.check.topic,
                "name": found.name,
                "status": found.status.value,
                "found": found.found,
                "fix": found.fix or None,
            }
            for one in examined
            for found in one.findings
        ],
    }
