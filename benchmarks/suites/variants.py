"""Trident against itself."""

from __future__ import annotations

from pathlib import Path

from benchmarks.arena import Contender
from benchmarks.contest import held
from benchmarks.settings import Settings, UsageError


def variants(settings: Settings) -> Path:
    """Trident against itself with other settings, or another revision (`root=FOLDER`), ratios to the first.

    `ranks=N` and `threads=N` say how a variant is started.
    """
    case = settings.case
    contenders = []
    for words in settings.variants or ("",):
        given = dict(word.partition("=")[::2] for word in words.split() if word.startswith(_START))
        overrides = [word for word in words.split() if not word.startswith(_START)]
        contenders.append(
            Contender(
                words.strip() or "defaults",
                "trident",
                case,
                {"overrides": overrides},
                ranks=_count(given, "ranks", 1),
                threads=_count(given, "threads", settings.threads),
                root=given.get("root"),
            )
        )
    return held("variants", settings, contenders, contenders[0].name)


_START = ("ranks=", "threads=", "root=")


def _count(given: dict[str, str], key: str, default: int) -> int:
    text = given.get(key, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--variant: {key} must be a whole number from 1, but is {text!r}")
    return int(text)
