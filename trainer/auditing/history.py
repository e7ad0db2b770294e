"""The history of a run: the tokens that its steps read, and the hashes that it wrote down. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import Manifest, read_manifest
from trainer.checkpoint.origin import Use, read_origin
from trainer.checkpoint.store import CheckpointStore
from trainer.config.batch_sizes import batch_sizes
from trainer.config.compose import from_yaml
from trainer.config.schema import TridentConfig
from trainer.data.journal import Stretch, read_journal
from trainer.data.ledger import short_ledger
from trainer.errors import CheckpointError, ConfigError, first_line
from trainer.metrics.jsonl import read_rows
from trainer.run_paths import CONFIG, JOURNAL, METRICS, SUMMARY, RunPaths, run_of_checkpoint

LEDGER = "data/sample_ledger"
"""Name of the first 48 bits of the hash in a row of metrics."""


@dataclass(frozen=True)
class Witness:
    """A hash that the run wrote down when a step was done."""

    step: int
    ledger: str | int
    """All of the hash, or its first 48 bits as a number."""
    where: str
    """File or folder, relative to the run's folder."""

    def agrees(self, ledger: str) -> bool:
        """Return whether it is that of a hash."""
        return self.ledger == (ledger if isinstance(self.ledger, str) else short_ledger(ledger))


@dataclass(frozen=True)
class Span:
    """Steps that one run read one after the other, `stretch.step` to `last`."""

    run: Path
    """Folder of the run: the one that is asked about, or the one that it began from."""
    stretch: Stretch
    last: int
    is_told: bool = True
    """False where the run's folder does not say what was read: it is taken from the config, and may be wrong."""


@dataclass(frozen=True)
class Return:
    """A return to a checkpoint with which a run went on at another place than the checkpoint's."""

    step: int
    """Step of the checkpoint."""
    left_out: int
    """Tokens behind the checkpoint's place that were not read again."""


@dataclass(frozen=True)
class Skip:
    """A batch whose update was not applied."""

    step: int
    position: int
    reason: str
    samples: tuple[int, ...]


@dataclass(frozen=True)
class History:
    """Everything that a run's folder says of what it read."""

    run: Path
    config: TridentConfig
    spans: tuple[Span, ...]
    """Spans of steps in order; each step that counts in the end is in one of them, if it is known."""
    witnesses: tuple[Witness, ...]
    """Hashes in the order of steps, checkpoints before rows of the same step."""
    returns: tuple[Return, ...]
    skips: tuple[Skip, ...]
    notes: tuple[str, ...]
    """Sentences about what is missing."""

    @property
    def last(self) -> int:
        """Last step that the folder knows of; 0: none."""
        return self.spans[-1].last if self.spans else 0

    def span_of(self, step: int) -> Span | None:
        """Return the span that a step is in; None if it is in none."""
        return next((span for span in self.spans if span.stretch.step <= step <= span.last), None)


def read_history(run: Path, later: frozenset[Path] = frozenset()) -> History:
    """Return what a run's folder says.

    Args:
        run: the folder.
        later: folders of runs that went on from this one.

    Raises:
        ConfigError: it is not the folder of a run, or a file in it cannot be read.
    """
    config = run_config(run)
    try:
        return _history(run, config, later | {run.resolve()})
    except OSError as error:
        raise ConfigError(f"RUN must hold files that can be read, but {run} does not: {first_line(error)}") from error


def _history(run: Path, config: TridentConfig, later: frozenset[Path]) -> History:
    manifests = dict(_manifests(run))
    own = _own_witnesses(run, manifests)
    begun = read_journal(RunPaths(run).journal)
    last = max((witness.step for witness in own), default=0)
    begun, unreached = _reached(begun, last)
    before, notes = _before(run, begun, later)
    notes += unreached
    spans, returns = list(before.spans) if before else [], list(before.returns) if before else []
    for index, stretch in enumerate(begun):
        # What came after this step before is not the run's any more.
        spans = _until(spans, stretch.step - 1)
        returns = [one for one in returns if one.step < stretch.step - 1]
        returns += _return(spans[-1].stretch if spans else None, stretch)
        spans.append(Span(run, stretch, begun[index + 1].step - 1 if index + 1 < len(begun) else last))
    if not begun:
        spans += _guessed(run, config, manifests, last) if before is None else []
        notes.append(f"{JOURNAL} is not there, so what was read is taken from the config and the checkpoints")
    spans = [span for span in _with_checkpoints(run, spans, manifests) if span.last >= span.stretch.step]
    witnesses = (*(before.witnesses if before else ()), *own)
    return History(run, config, tuple(spans), witnesses, tuple(returns), _skips(run), tuple(notes))


def _reached(begun: list[Stretch], last: int) -> tuple[list[Stretch], list[str]]:
    """Return the stretches up to whose beginning the run is known to have come, and a sentence if there are others."""
    reached = max(last, begun[0].step - 1 if begun else 0)
    beyond = [stretch.step for stretch in begun if stretch.step > reached + 1]
    if not beyond:
        return begun, []
    told = f"{JOURNAL} also names a start at step {max(beyond):,}, but the run is not known to have come that far"
    return [stretch for stretch in begun if stretch.step <= reached + 1], [told]


def _return(before: Stretch | None, stretch: Stretch) -> list[Return]:
    if before is None or before.stream != stretch.stream:
        return []
    left_out = stretch.position - before.position_of(stretch.step)
    return [Return(stretch.step - 1, left_out)] if left_out else []


def run_config(run: Path) -> TridentConfig:
    """Return the config of the run in a folder.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = run / CONFIG
    inside = run_of_checkpoint(run)
    if inside is not None and inside.config.is_file():
        raise ConfigError(f"RUN must be the folder of a run, but {run} is a checkpoint of one; use {inside.path}")
    try:
        return from_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        found = "holds no config.yaml" if run.is_dir() else "is none"
        raise ConfigError(f"RUN must be the folder of a run, but {run} {found}") from None
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"RUN must hold a run that this version can read, but {path} cannot be read: {first_line(error)}"
        ) from error


def _manifests(run: Path) -> Iterator[tuple[int, Manifest]]:
    store = CheckpointStore(run)
    for step in store.steps():
        # One that is damaged, or that goes while this is read, says nothing.
        with suppress(CheckpointError):
            yield step, read_manifest(store.path(step))


def _own_witnesses(run: Path, manifests: dict[int, Manifest]) -> list[Witness]:
    found = []
    for step, manifest in manifests.items():
        ledger = str(manifest.train_state["sample_ledger"])
        if ledger:
            found.append(Witness(step, ledger, f"checkpoints/step_{step}"))
    rows = read_rows(run / METRICS)
    found += [Witness(int(row["step"]), int(row[LEDGER]), METRICS) for row in rows if isinstance(row.get(LEDGER), int)]
    final = _summary(run)
    # A run that failed may have gone on from an earlier step since, with other batches.
    if final is not None and final.step >= max((one.step for one in found), default=0):
        found.append(final)
    return sorted(found, key=lambda one: (one.step, isinstance(one.ledger, int)))


def _summary(run: Path) -> Witness | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        held = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
        if held["status"] in ("finished", "stopped") and held["sample_ledger"]:
            return Witness(int(held["step"]), str(held["sample_ledger"]), SUMMARY)
    return None


def _before(run: Path, begun: list[Stretch], later: frozenset[Path]) -> tuple[History | None, list[str]]:
    """Return what the run that this one goes on from has read, as far as this one went on from it."""
    origin = read_origin(run)
    if origin is None or origin.key != Use.resumed.value:
        if begun and begun[0].step > 1:
            return None, [f"{JOURNAL} begins with step {begun[0].step}: steps before it are not said"]
        return None, []
    parent = run_of_checkpoint(Path(origin.checkpoint))
    # A fork that was moved to the place of its origin would be its own.
    if parent is None or not parent.config.is_file() or parent.path.resolve() in later:
        return None, [f"steps 1 to {origin.step} are those of {origin.checkpoint}, which is not there any more"]
    earlier = read_history(parent.path, later)
    spans = tuple(_until(list(earlier.spans), origin.step))
    kept = tuple(one for one in earlier.witnesses if one.step <= origin.step)
    kept = tuple(replace(one, where=str(parent.path / one.where)) for one in kept)
    return replace(earlier, spans=spans, witnesses=kept), list(earlier.notes)


def _until(spans: list[Span], last: int) -> list[Span]:
    """Return the spans without steps after `last`."""
    return [replace(span, last=min(span.last, last)) for span in spans if span.stretch.step <= last]


def _guessed(run: Path, config: TridentConfig, manifests: dict[int, Manifest], last: int) -> list[Span]:
    """Return what a run has read that kept no journal, if it has only gone on from step to step."""
    length = config.model.seq_length
    state = next(iter(manifests.values())).train_state if manifests else {}
    sample, stream = state.get("sample_length", length), str(state.get("stream", ""))
    assert isinstance(sample, int)
    return [Span(run, Stretch(1, 0, "", length, sample, stream, batch_sizes(config.batch, length)), last, False)]


def _with_checkpoints(run: Path, spans: list[Span], manifests: dict[int, Manifest]) -> list[Span]:
    """Return the spans, begun anew behind each checkpoint that is at another place than they say."""
    found: list[Span] = []
    for span in spans:
        rest: Span | None = span
        for step, manifest in manifests.items() if span.run == run else ():
            if rest is None or not rest.stretch.step <= step <= rest.last:
                continue
            position = manifest.train_state["position"]
            assert isinstance(position, int)
            if position == rest.stretch.position_of(step + 1):
                continue
            found.append(replace(rest, last=step, is_told=False))
            rest = _after_checkpoint(rest, step, manifest) if step < rest.last else None
        found += [rest] if rest is not None else []
    return found


def _after_checkpoint(span: Span, step: int, manifest: Manifest) -> Span:
    state = manifest.train_state
    position, sample = state["position"], state["sample_length"]
    assert isinstance(position, int)
    assert isinstance(sample, int)
    stretch = replace(
        span.stretch,
        step=step + 1,
        position=position,
        ledger=str(state["sample_ledger"]),
        sample_length=sample,
        stream=str(state["stream"]),
    )
    return Span(span.run, stretch, span.last, is_told=False)


def segments_of(run: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the plan of the stream that a run reads by now, if its data changed on the way; none otherwise."""
    begun = read_journal(RunPaths(run).journal)
    # A change that the run did not go on with is in a line before the last one. A kill may have cut off the last one.
    found = begun[-1].segments if begun else ()
    for step, manifest in sorted(_manifests(run), key=lambda one: one[0]):
        saved = manifest.train_state["segments"]
        if isinstance(saved, list) and (not begun or step >= begun[-1].step):
            found = tuple(saved)
    return found if len(found) > 1 else ()


def _skips(run: Path) -> tuple[Skip, ...]:
    try:
        lines = RunPaths(run).skipped_batches.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            held = json.loads(line)
            samples = tuple(int(sample) for sample in held["samples"])
            found.append(Skip(int(held["step"]), int(held["position"]), str(held["reason"]), samples))
    return tuple(found)
