"""The rolling hash computed once more from the tokens, and compared with what the run wrote down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from pathlib import Path

from trainer.auditing.history import History, Span, Witness
from trainer.auditing.tokens import RunTokens
from trainer.data.ledger import ledger_after
from trainer.run_paths import JOURNAL

TokensOf = Callable[[Path], RunTokens]
"""Returns the tokens of the run in a folder."""


class Verdict(Enum):
    """Outcome for some steps."""

    proven = "proven"
    """The run wrote down the hash of the tokens that config and data give."""
    differs = "differs"
    """It wrote down another one: it read something else."""
    unsaid = "unsaid"
    """It wrote down another one, and its folder does not say where it read."""
    open = "open"
    """It wrote down no hash behind these steps."""
    replaced = "replaced"
    """It read data that it replaced by others since."""


@dataclass(frozen=True)
class Proof:
    """Outcome for the steps `first` to `last`."""

    first: int
    last: int
    verdict: Verdict
    position: int
    """Place in the stream behind the last step, in tokens."""
    ledger: str
    """Hash behind it, as computed here."""
    witness: Witness | None = None
    """The hash that the run wrote down behind the last step."""


def prove(
    history: History, tokens_of: TokensOf, last: int | None = None, tell: Callable[[int], None] = lambda step: None
) -> list[Proof]:
    """Return the outcome for all steps, or for those up to `last`, in order. Reads every token of them.

    Args:
        history: what the run's folder says.
        tokens_of: returns the tokens of a run.
        last: last step that is looked at; None: all.
        tell: called with each step before it is read.

    Raises:
        DataError: the tokens are gone, or they are not those that the run read.
    """
    spoken = {step: list(found) for step, found in groupby(history.witnesses, key=lambda one: one.step)}
    proofs: list[Proof] = []
    ledger, done = "", 0
    for span in history.spans:
        if last is not None and span.stretch.step > last:
            break
        begins = span.stretch.ledger
        is_known = bool(proofs) and proofs[-1].verdict is not Verdict.replaced
        if done == span.stretch.step - 1 and begins != ledger and span.is_told and is_known:
            proofs.append(_judged(span, done, done, ledger, [Witness(done, begins, JOURNAL)]))
        end = span.last if last is None else min(span.last, last)
        for proof in _of_span(span, end, tokens_of(span.run), spoken, tell):
            proofs.append(proof)
            ledger, done = proof.ledger, proof.last
    return proofs


def _of_span(
    span: Span, last: int, tokens: RunTokens, spoken: dict[int, list[Witness]], tell: Callable[[int], None]
) -> Iterator[Proof]:
    stretch = span.stretch
    tokens.check(stretch)
    ledger, first = stretch.ledger, stretch.step
    for step in range(stretch.step, last + 1):
        tell(step)
        if not tokens.has(stretch, step):
            # Where data change a span ends, and the next one has the hash before it.
            yield Proof(first, last, Verdict.replaced, stretch.position_of(last + 1), ledger)
            return
        rows, changes = tokens.rows(stretch, step), tokens.changes(stretch, step)
        ledger = ledger_after(ledger, stretch.position_of(step), rows, changes)
        said = spoken.get(step)
        if said:
            proof = _judged(span, first, step, ledger, said)
            yield proof
            first = step + 1
            whole = [one.ledger for one in said if isinstance(one.ledger, str)]
            if proof.verdict is not Verdict.proven and whole:
                # What comes behind it is judged on its own.
                ledger = whole[0]
        elif step == last:
            yield Proof(first, step, Verdict.open, stretch.position_of(step + 1), ledger)


def _judged(span: Span, first: int, step: int, ledger: str, said: list[Witness]) -> Proof:
    wrong = next((one for one in said if not one.agrees(ledger)), None)
    verdict = Verdict.proven if wrong is None else Verdict.differs if span.is_told else Verdict.unsaid
    return Proof(first, step, verdict, span.stretch.position_of(step + 1), ledger, wrong or said[0])


def joined(proofs: list[Proof]) -> list[Proof]:
    """Return the outcomes with those of one kind that follow each other as one: the last one's hash vouches for all."""
    found: list[Proof] = []
    for proof in proofs:
        before = found[-1] if found else None
        if before is not None and before.verdict is proof.verdict is Verdict.proven and before.last + 1 == proof.first:
            found[-1] = Proof(before.first, *_rest(proof))
        else:
            found.append(proof)
    return found


def _rest(proof: Proof) -> tuple[int, Verdict, int, str, Witness | None]:
    return proof.last, proof.verdict, proof.position, proof.ledger, proof.witness
