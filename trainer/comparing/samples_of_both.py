"""The samples that two runs read: the first step at which they differ, by what their folders say. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.auditing.history import read_history
from trainer.auditing.two_runs import compare
from trainer.errors import ConfigError, DataError, TridentError, first_line
from trainer.records.run_record import RunRecord
from trainer.records.signs import is_regular
from trainer.run_paths import RunPaths

if TYPE_CHECKING:
    from trainer.auditing.tokens import RunTokens


@dataclass(frozen=True)
class SameSamples:
    """Verdict on the samples of two runs."""

    last: int
    """Last step that both have read; 0: it is not known."""
    first_difference: int | None
    """First step whose samples differ, or before which they already did (see `is_exact`); None: none is known."""
    is_exact: bool
    same_hash: int
    """Last step behind which both wrote down the same hash; 0: none."""
    reasons: tuple[str, ...]
    why_unknown: str = ""
    """Reason why nothing can be said; empty: something can."""


def same_samples(a: RunRecord, b: RunRecord) -> SameSamples:
    """Compare what two runs read by their journals and hashes. Reads no tokens: `trident data audit` does."""
    for record in (a, b):
        if record.typed_config is None:
            return _unknown(f"this version cannot read the config of {record.path}")
        paths = RunPaths(record.path)
        if any(path.exists() and not is_regular(path) for path in (paths.metrics, paths.journal, paths.summary)):
            return _unknown(f"a file in {record.path} is none that can be read to its end")
    try:
        one, other = read_history(a.path), read_history(b.path)
        if not (one.last and other.last):
            return _unknown("a run wrote down nothing of what it read")
        found = compare(one, other, _tokens_are_not_read)
    except DataError:
        return _unknown(
            "their streams are others, and there is no step behind which both wrote down a hash; "
            f"`trident data audit {a.path} {b.path}` reads the tokens"
        )
    except (ConfigError, ValueError, KeyError, TypeError, OverflowError) as error:
        # Journals and checkpoints may be damaged in any way.
        return _unknown(first_line(error) if isinstance(error, TridentError) else f"a journal is damaged ({error})")
    first = found.first_difference
    is_exact = found.is_exact or first == found.same_hash + 1
    return SameSamples(found.last, first, is_exact, found.same_hash, found.reasons)


def _tokens_are_not_read(run: Path) -> RunTokens:
    raise DataError(f"the tokens of {run} are not looked at")


def _unknown(why: str) -> SameSamples:
    return SameSamples(0, None, is_exact=False, same_hash=0, reasons=(), why_unknown=why)
