"""`trident data audit`: reads, proves, compares, and says what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

from trainer.auditing.history import History, read_history, run_config, segments_of
from trainer.auditing.proof import Proof, Verdict, joined, prove
from trainer.auditing.step_documents import BOUNDARY, SeenSequence, seen_sequences
from trainer.auditing.tokens import RunTokens
from trainer.auditing.two_runs import Comparison, compare
from trainer.config.places import absolute_path
from trainer.errors import ConfigError, DataError
from trainer.log import say, tell
from trainer.picture_file import check_picture

FEW_SEQUENCES = 8
"""Number of sequences of a step that are shown; --json has all."""
TOLD_S = 5.0
"""Seconds between two words on how far it is."""
_VERDICTS = {
    Verdict.proven: "proven, since {where} has the hash of the tokens that config and data give",
    Verdict.differs: "NOT WHAT WAS READ, since {where} has another hash than the tokens that config and data give",
    Verdict.unsaid: "not known, since {where} has another hash, and nothing says where the run read: it went back, or "
    "its batch changed",
    Verdict.open: "not proven: no hash was written down behind them",
    Verdict.replaced: "not proven: the run has replaced the data that they read",
}


@dataclass(frozen=True)
class Asked:
    """The words of the verb."""

    run: str
    other: str | None = None
    step: int | None = None
    """Step whose documents are shown; proofs end with it."""
    as_json: bool = False
    picture: str | None = None


@dataclass(frozen=True)
class Found:
    """Everything that came of an audit."""

    histories: Sequence[History]
    proofs: Sequence[Sequence[Proof]]
    comparison: Comparison | None
    sequences: Sequence[SeenSequence]
    """Sequences of the step that was asked for."""
    missing: DataError | None = None
    """Says why nothing can be proven; None: nothing is missing."""

    @property
    def is_good(self) -> bool:
        """True if no hash differs, and no step of two runs does."""
        differs = any(proof.verdict in (Verdict.differs, Verdict.unsaid) for proofs in self.proofs for proof in proofs)
        return not differs and (self.comparison is None or self.comparison.first_difference is None)


def audit_verb(asked: Asked) -> int:
    """Audit, print, and return the exit code: 0, or 1 if a hash or a step differs.

    Raises:
        ConfigError: a folder is not a run's, or a word cannot be.
        DataError: the tokens are gone, or they are not those that the run read.
    """
    picture = None if asked.picture is None else absolute_path(asked.picture, "--picture")
    if picture is not None:
        check_picture(picture)
    if asked.step is not None and asked.step < 1:
        raise ConfigError(f"--step must be at least 1, but is {asked.step}")
    runs = [absolute_path(word, "RUN") for word in (asked.run, asked.other) if word is not None]
    histories = [read_history(run) for run in runs]
    for history in histories:
        if not history.last:
            raise ConfigError(
                f"{history.run} must have read a step, but no row, checkpoint or summary there has a hash"
            )
    if not asked.as_json:
        for history in histories:
            for line in _told(history):
                say(line)
    found = _audit(histories, asked.step, says=not asked.as_json)
    if asked.as_json:
        say(json.dumps(_as_json(found, asked.step), indent=1))
    else:
        for line in _results(found, asked.step):
            say(line)
    if picture is not None:
        from trainer.auditing.audit_picture import write_picture

        write_picture(found.histories, found.proofs, found.comparison, picture)
    if found.missing is not None:
        raise found.missing
    return 0 if found.is_good else 1


def _audit(histories: Sequence[History], step: int | None, says: bool) -> Found:
    @cache
    def tokens_of(run: Path) -> RunTokens:
        return RunTokens(run, run_config(run), segments_of(run))

    sequences: list[SeenSequence] = []
    if step is not None:
        history = histories[0]
        span = history.span_of(step)
        sequences = seen_sequences(history, tokens_of(span.run if span else history.run), step)
    comparison = None
    if len(histories) > 1:
        comparison = compare(histories[0], histories[1], tokens_of)
    last = step
    if comparison is not None and comparison.first_difference is not None and last is None:
        # What follows the first difference is another story.
        last = comparison.first_difference
    last = None if last is None else _enough(histories, last)
    proofs: list[list[Proof]] = []
    missing = None
    for history in histories:
        try:
            proofs.append(prove(history, tokens_of, last, _Teller(history, last, says)))
        except DataError as error:
            # What two folders have in common can be said without the tokens.
            missing = missing or error
            proofs.append([])
    return Found(histories, proofs, comparison, sequences, missing)


def _enough(histories: Sequence[History], step: int) -> int:
    """Return a step at or behind `step`, behind which each run wrote down a hash, if it did."""
    behind = [min((one.step for one in history.witnesses if one.step >= step), default=step) for history in histories]
    return max(behind)


class _Teller:
    """Says now and then how far the reading is."""

    def __init__(self, history: History, last: int | None, says: bool) -> None:
        self._says = says
        self._run, self._last = history.run, min(history.last, last or history.last)
        self._at = monotonic()

    def __call__(self, step: int) -> None:
        if self._says and monotonic() - self._at > TOLD_S:
            self._at = monotonic()
            tell(f"{self._run}: step {step} of {self._last}")


def _told(history: History) -> Iterator[str]:
    yield f"run     {history.run}, steps 1 to {history.last}"
    for span in history.spans:
        stretch = span.stretch
        whose = "" if span.run == history.run else f", read by {span.run}"
        end = stretch.position_of(span.last + 1) - 1
        sizes = {stretch.sizes.at(step) for step in (stretch.step, span.last)}
        batch = " to ".join(map(str, sorted(sizes)))
        yield (
            f"read    steps {stretch.step} to {span.last}: tokens {stretch.position:,} to {end:,} of the stream, "
            f"{batch} sequences of {stretch.seq_length} tokens a step{whose}"
        )
        for before, segment in pairwise(stretch.segments):
            yield f"data    changed at sample {segment['first']:,} of the stream: {_changed(before, segment)}"
    for back in history.returns:
        yield f"back    to step {back.step}; {back.left_out:,} tokens behind it were left out"
    for skip in history.skips:
        yield f"skipped step {skip.step} ({skip.reason}), at token {skip.position:,}: read, but not learned from"
    for note in history.notes:
        yield f"note    {note}"


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the sources of a segment beside those of the one before it."""
    sides = [{one["name"]: one["samples"] for one in segment["sources"]} for segment in (before, after)]
    parts = [
        f"{samples:,} samples of {name or 'the data'}, before {sides[0].get(name, 0):,}"
        for name, samples in sides[1].items()
    ]
    return "; ".join(parts)


def _results(found: Found, step: int | None) -> Iterator[str]:
    for sequence in found.sequences[:FEW_SEQUENCES]:
        yield from _shown(sequence, step or 0)
    if len(found.sequences) > FEW_SEQUENCES:
        yield f"...     {len(found.sequences) - FEW_SEQUENCES} more sequences; --json has all"
    for history, proofs in zip(found.histories, found.proofs, strict=True):
        whose = f" of {history.run}" if len(found.histories) > 1 else ""
        for proof in joined(list(proofs)):
            where = proof.witness.where if proof.witness is not None else ""
            steps = f"step {proof.last}" if proof.first == proof.last else f"steps {proof.first} to {proof.last}"
            yield f"{steps}{whose}: {_VERDICTS[proof.verdict].format(where=where)}"
    if found.comparison is not None:
        yield from _compared(found.comparison)


def _shown(sequence: SeenSequence, step: int) -> Iterator[str]:
    named = zip(sequence.sources, sequence.samples, strict=True)
    samples = ", ".join(f"{sample} of {source}" if source else str(sample) for source, sample in named)
    many = "s" if len(sequence.samples) > 1 else ""
    place = f"from token {sequence.first_token:,} of the data"
    yield f"step {step}, sequence {sequence.row}: sample{many} {samples}, {place}"
    for part in sequence.parts:
        mark = "…" if part.is_begun_before else BOUNDARY
        yield f"  {mark} {part.tokens:>5} tokens  {part.text}"


def _compared(comparison: Comparison) -> Iterator[str]:
    if comparison.same_hash:
        yield f"both runs wrote down the same hash behind step {comparison.same_hash}: up to it they read the same"
    if comparison.first_difference is None:
        yield f"the runs read the same samples in all {comparison.last} steps that both have done"
        return
    if comparison.is_exact:
        yield f"step {comparison.first_difference} is the first whose samples differ:"
    else:
        yield (
            f"the first step whose samples differ is one of {comparison.same_hash + 1} to "
            f"{comparison.first_difference}; which one cannot be said without the tokens of both runs:"
        )
    yield from (f"  {reason}" for reason in comparison.reasons)


def _as_json(found: Found, step: int | None) -> dict[str, Any]:
    runs = []
    for history, proofs in zip(found.histories, found.proofs, strict=True):
        spans = [
            {**asdict(span), "run": str(span.run), "end_position": span.stretch.position_of(span.last + 1)}
            for span in history.spans
        ]
        runs.append(
            {
                "run": str(history.run),
                "last_step": history.last,
                "spans": spans,
                "returns": [asdict(one) for one in history.returns],
                "skips": [asdict(one) for one in history.skips],
                "notes": list(history.notes),
                "proofs": [{**asdict(proof), "verdict": proof.verdict.value} for proof in proofs],
            }
        )
    return {
        "runs": runs,
        "comparison": None if found.comparison is None else asdict(found.comparison),
        "step": step,
        "sequences": [asdict(sequence) for sequence in found.sequences],
        "is_good": found.is_good,
    }
