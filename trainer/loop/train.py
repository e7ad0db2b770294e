"""The step loop. It knows an engine, batches, hooks and a stop request; it knows no checkpoint and no metric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from trainer.data.batches import BatchSource, HeldOut
from trainer.data.ledger import short_ledger
from trainer.engine.face import Engine
from trainer.engine.learning_rate import learning_rate
from trainer.log import say, warn
from trainer.loop.evaluate import evaluate, mean_loss
from trainer.loop.events import Hook, RunEnd, SkippedBatch, StepReport
from trainer.loop.session import Session
from trainer.loop.skips import SkipPolicy
from trainer.loop.source_losses import SourceLosses
from trainer.loop.state import TrainState
from trainer.loop.step_data import StepData, StepStart
from trainer.loop.stop import StopRequest
from trainer.loop.window import StepWindow, WindowReading


class Batches(NamedTuple):
    """The data that a rank reads."""

    training: BatchSource
    validation: Sequence[HeldOut] = ()
    """Data of each source to evaluate on; none for no evaluation."""


def _end_failed(hooks: Sequence[Hook], end: RunEnd) -> None:
    """Call every hook's `on_end`. The first failure is reported: a second one while ending must not hide it."""
    try:
        _end_all(hooks, end)
    except Exception as later:
        warn(f"the run's record is incomplete: {later}")


def _end_all(hooks: Sequence[Hook], end: RunEnd) -> None:
    """Call every hook's `on_end`; after one fails, the others hear that the run failed. Raise the first failure."""
    failure: Exception | None = None
    for hook in hooks:
        try:
            hook.on_end(end)
        except Exception as error:
            if failure is None:
                failure = error
                end = replace(end, status="failed", error=_reason(error))
            else:
                warn(f"{type(hook).__name__} could not finish after a failure: {error}")
    if failure is not None:
        raise failure


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class _Busy:
    """Time that this rank computed in the steps of a window; `bubble_fraction` is the mean over all ranks."""

    own_ms: float
    busy_ms: float = math.nan
    bubble_fraction: float | None = None


@dataclass
class Loop:
    """The steps of a run, from the one after `state.step` to `train.steps`, or until all ranks agree to stop.

    After each step, in this order: `state` moves on; a step whose update was not applied is counted; the ranks agree
    on stopping; on a step that reports, the loss is read, evaluation with `on_evaluate` of every hook, `on_report` of
    every hook; `on_step` of every hook. A step reports when it is the first of the run, when `train.log_every` divides
    it, when it is evaluated, and when the run ends with it.
    A skipped step is a step: its number, learning rate and data are used up, so that all that follows stays in place.
    Hooks get `on_end` exactly once, also after a failure. Going back to a checkpoint is an event in between: `state` is
    changed in place, hooks hear `on_rewind`, and the next step is the one after the checkpoint's.
    Until the first step is done there is nothing to save: signals ask `stop` only from then on.
    """

    session: Session
    engine: Engine
    """This rank's engine."""
    batches: Batches
    state: TrainState
    """Progress to start from; updated in place."""
    hooks: Sequence[Hook]
    """Called in this order."""
    stop: StopRequest
    """Asks all ranks whether the run ends."""
    go_back: Callable[[], TrainState]
    """Loads the last checkpoint into the engine and returns its progress; for `spike_policy=rewind`. Collective."""
    _window: StepWindow = field(default_factory=StepWindow, init=False)
    _losses: SourceLosses | None = field(default=None, init=False)
    """Losses of the sources in the step under way, if it is a blend and the step reports."""

    def __post_init__(self) -> None:
        """Begin to judge losses from the saved state on."""
        config = self.session.plan.config
        self._train, self._optimizer, self._schedule = config.train, config.optimizer, config.schedule
        ahead = config.data.prefetch_steps
        self._data = StepData(self.batches.training, self.session.plan, self.session.groups, ahead)
        self._skips = SkipPolicy(self._train, self.state, self.batches.training, self._tell_skip)

    def run(self) -> RunEnd:
        """Run the steps. Collective over the world; once.

        Returns:
            How the run ended: `finished`; `stopped` (exit with 75).

        Raises:
            NumericsError: loss or gradients were not finite too often, or a spike ends the run
                (`train.spike_policy=stop`).
            PeerLostError: a rank died.
        """
        started = time.perf_counter()
        try:
            status = self._run()
        except BaseException as error:
            seconds = time.perf_counter() - started
            _end_failed(self.hooks, RunEnd("failed", self.state.step, seconds, _reason(error)))
            raise
        else:
            self.session.progress.enter("end")
            end = RunEnd(status, self.state.step, time.perf_counter() - started)
            _end_all(self.hooks, end)
            return end
        finally:
            self.stop.uninstall()

    def _run(self) -> str:
        for hook in self.hooks:
            hook.on_start(self.state.step + 1)
        self._begin_window()
        status = None
        try:
            while status is None and self.state.step < self._train.steps:
                status = self._step(self.state.step + 1)
        finally:
            self._data.close()
        self.stop.drain()
        return status or "finished"

    def _step(self, step: int) -> str | None:
        """Run one step and everything that follows it; return the status if the run ends before its last step."""
        is_last = step == self._train.steps
        evaluates = bool(self.batches.validation) and _every(self._train.eval_every, step)
        reports = step == 1 or is_last or evaluates or _every(self._train.log_every, step)
        rate = learning_rate(step, self._optimizer, self._schedule, self._train.steps, self.session.plan.decay_steps)
        goes_back = self._train_step(step, rate, reports)
        self.stop.install()
        self.session.progress.enter("hooks")
        if goes_back:
            self._rewind()
            return None
        stopping = self.stop.agreed() and not is_last
        evaluates, reports = evaluates and not stopping, reports or stopping
        # Also before a save: it would wait for the device anyway, and that time is the step's.
        if reports or any(hook.waits_for_device(step) for hook in self.hooks):
            self._window.read()
        self._window.stop_step()
        reading = self._window.close() if reports else None
        if reading is not None:
            busy = self._busy(reading)
            report = self._report(step, rate, reading, busy, self._evaluate(step) if evaluates else None)
            for hook in self.hooks:
                hook.on_report(report)
        # After the report: a step that was saved must have its row, whenever the run is killed.
        for hook in self.hooks:
            hook.on_step(step)
        if stopping:
            say(f"asked to stop: ended after step {step}")
        return "stopped" if stopping else None

    def _train_step(self, step: int, rate: float, reports: bool) -> bool:
        """Train one step, move the state on, and return whether the run must go back to a checkpoint."""
        plan = self.session.plan
        self.session.progress.begin_step(step)
        self._window.start_step()
        position, limit = self.state.position, self._skips.spikes.limit()
        batch = self._data.take(StepStart(step, position, self.state.sample_ledger))
        self._window.data_arrived()
        micro_batches, names = batch.micro_batches, self.batches.training.names
        self._losses = SourceLosses(names, micro_batches, self.session.groups) if reports and len(names) > 1 else None
        if self._losses is not None:
            micro_batches = self._losses.micro_batches
        result = self.engine.train_step(micro_batches, rate, limit)
        self._window.add(result)
        self.state.step = step
        tokens = plan.tokens_of_step(step)
        self.state.position += tokens
        self.state.tokens_seen += tokens
        # After the step is queued: on a GPU a hash that is not known yet is made while the optimizer runs.
        self.state.sample_ledger = batch.ledger_after()
        return self._skips.judge(result, limit, position, is_fp16=self.engine.loss_scale() is not None)

    def _rewind(self) -> None:
        """Go on from the last checkpoint, with the data that follow those of the step that was too much."""
        before = self.state.step
        self.state.become(self.go_back())
        self._begin_window()
        # Without a checkpoint only the batch is left out: nothing was taken back.
        for hook in self.hooks if self.state.step < before else ():
            hook.on_rewind(self.state.step)

    def _begin_window(self) -> None:
        self._window, self._tokens_before = StepWindow(), self.state.tokens_seen
        if self.session.plan.uses_pipeline_engine:
            self.engine.take_busy_seconds()

    def _tell_skip(self, batch: SkippedBatch) -> None:
        for hook in self.hooks:
            hook.on_skip(batch)

    def _busy(self, reading: WindowReading) -> _Busy:
        """Return how much of the window was computing. Collective over the world with pp > 1."""
        own_ms = 1000 * self.engine.take_own_seconds()
        if not self.session.plan.uses_pipeline_engine:
            return _Busy(own_ms)
        seconds = self.engine.take_busy_seconds()
        idle = 1.0 - seconds / max(reading.seconds, 1e-9)
        share = torch.tensor([min(1.0, max(0.0, idle))], device=self.session.groups.device)
        bubble = float(self.session.groups.world.all_reduce(share).item()) / self.session.groups.world.size
        return _Busy(own_ms, 1000 * seconds / reading.steps, bubble)

    def _evaluate(self, step: int) -> float:
        """Return the mean loss of the sources, each by its weight; note that of each source of a blend."""
        held_out, losses = self.batches.validation, []
        with self.engine.averaged() if self.session.plan.evaluation.ema else nullcontext():
            for one in held_out:
                loss = evaluate(self.engine, one.batches, self._train.eval_batches, self.session, self._data.ahead)
                losses.append(loss)
                if len(self.batches.training.names) > 1:
                    self.session.measures.note(f"eval/loss/{one.name}", loss)
            self.session.progress.enter("hooks")
            if self.session.plan.uses_pipeline_engine:
                # The computation of the evaluation must not count as work of the next window.
                self.engine.take_busy_seconds()
            for hook in self.hooks:
                hook.on_evaluate(step)
        return mean_loss(losses, [one.weight for one in held_out])

    def _measured(self) -> dict[str, float]:
        measured = self.session.measures.take()
        if self._losses is not None:
            measured |= self._losses.read()
            measured |= self.batches.training.epochs(self.state.position)
        if self.state.sample_ledger:
            measured["data/sample_ledger"] = short_ledger(self.state.sample_ledger)
        return measured

    def _report(
        self, step: int, rate: float, reading: WindowReading, busy: _Busy, eval_loss: float | None
    ) -> StepReport:
        step_tokens = (self.state.tokens_seen - self._tokens_before) / reading.steps
        self._tokens_before = self.state.tokens_seen
        return StepReport(
            step=step,
            loss=reading.loss,
            grad_norm=reading.grad_norm,
            learning_rate=rate,
            tokens_seen=self.state.tokens_seen,
            window_steps=reading.steps,
            step_tokens=step_tokens,
            step_ms=reading.step_ms,
            data_wait_ms=reading.data_wait_ms,
            loss_scale=self.engine.loss_scale(),
            skipped_steps=self.state.skipped_batches,
            bubble_fraction=busy.bubble_fraction,
            step_percentiles_ms=reading.percentiles_ms,
            busy_ms=busy.busy_ms,
            own_ms=busy.own_ms,
            eval_loss=eval_loss,
            measures=self._measured(),
        )


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
