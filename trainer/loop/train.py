"""The step loop. It knows an engine, batches, hooks and a stop request; it knows no checkpoint and no metric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from trainer.config.plan import RunPlan
from trainer.data.batches import BatchSource
from trainer.engine.face import Engine
from trainer.engine.learning_rate import learning_rate
from trainer.log import say, warn
from trainer.loop.evaluate import evaluate
from trainer.loop.events import Hook, RunEnd, SkippedBatch, StepReport
from trainer.loop.measures import Measures
from trainer.loop.skips import RewindCount, SkipPolicy
from trainer.loop.state import TrainState
from trainer.loop.stop import StopRequest
from trainer.loop.window import StepWindow, WindowReading
from trainer.progress import Progress
from trainer.topology.groups import ParallelGroups


def train(
    engine: Engine,
    source: BatchSource,
    validation: BatchSource | None,
    plan: RunPlan,
    state: TrainState,
    hooks: Sequence[Hook],
    stop: StopRequest,
    groups: ParallelGroups,
    measures: Measures | None = None,
    progress: Progress | None = None,
    on_skip: Callable[[SkippedBatch], None] = lambda batch: None,
    rewinds: RewindCount | None = None,
) -> RunEnd:
    """Train from the step after `state.step` to `train.steps`, or until all ranks agree to stop.

    After each step, in this order: `state` moves on; a step whose update was not applied is counted; the ranks agree
    on stopping; on a step that reports, the loss is read, evaluation, `on_report` of every hook; `on_step` of every
    hook. A step reports when it is the first of the run, when `train.log_every` divides it, when it is evaluated, and
    when the run ends with it.
    A skipped step is a step: its number, learning rate and data are used up, so that all that follows stays in place.
    Hooks get `on_end` exactly once, also after a failure. Collective over the world.
    Until the first step is done there is nothing to save: signals ask `stop` only from then on.

    Args:
        engine: of this rank.
        source: training data.
        validation: what to evaluate on; None for nothing.
        plan: of the run.
        state: where to begin; moved on.
        hooks: called in this order.
        stop: asks all ranks whether the run ends.
        groups: this rank's place.
        measures: what hooks note there goes into the next report.
        progress: where the loop notes what it does; None if nobody looks.
        on_skip: called on every rank with each bad batch.
        rewinds: how often earlier calls of this run ended as `rewound`.

    Returns:
        How the run ended: `finished`; `stopped` (exit with 75); `rewound` (load the last checkpoint, go on from here).

    Raises:
        NumericsError: loss or gradients were not finite too often, or the loss jumped and `train.spike_policy=stop`.
        PeerLostError: a rank died.
    """
    progress, measures = progress or Progress(), measures or Measures()
    skips = SkipPolicy(plan.config.train, state, source, on_skip, rewinds or RewindCount())
    loop = _Loop(engine, source, validation, plan, state, hooks, stop, groups, measures, progress, skips)
    try:
        return _run(loop, hooks, state)
    finally:
        stop.uninstall()


def _run(loop: _Loop, hooks: Sequence[Hook], state: TrainState) -> RunEnd:
    started = time.perf_counter()
    try:
        status = loop.run()
    except BaseException as error:
        _end_failed(hooks, RunEnd("failed", state.step, time.perf_counter() - started, _reason(error)))
        raise
    loop.progress.enter("end")
    end = RunEnd(status, state.step, time.perf_counter() - started)
    _end_all(hooks, end)
    return end


def _end_failed(hooks: Sequence[Hook], end: RunEnd) -> None:
    """Call every hook's `on_end`. The first failure is the one to tell: another one while ending must not hide it."""
    try:
        _end_all(hooks, end)
    except Exception as later:
        warn(f"the run's record is incomplete: {later}")


def _end_all(hooks: Sequence[Hook], end: RunEnd) -> None:
    """Call every hook's `on_end`; after one failed, the others hear that the run failed. Raise the first failure."""
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
    """Where this rank computed in the steps of a window; `bubble_fraction` is the mean over all ranks."""

    own_ms: float
    busy_ms: float = math.nan
    bubble_fraction: float | None = None


@dataclass
class _Loop:
    """One call of `train`: its collaborators under names, and the steps."""

    engine: Engine
    source: BatchSource
    validation: BatchSource | None
    plan: RunPlan
    state: TrainState
    hooks: Sequence[Hook]
    stop: StopRequest
    groups: ParallelGroups
    measures: Measures
    progress: Progress
    skips: SkipPolicy
    window: StepWindow = field(default_factory=StepWindow)

    def run(self) -> str:
        """Start the hooks, run the steps and return the status."""
        for hook in self.hooks:
            hook.on_start(self.state.step + 1)
        status = self._steps()
        self.stop.drain()
        return status

    def _steps(self) -> str:
        last = self.plan.config.train.steps
        if self.plan.uses_pipeline_engine:
            self.engine.take_busy_seconds()
        for step in range(self.state.step + 1, last + 1):
            status = self._step(step, is_last=step == last)
            if status == "stopped":
                say(f"asked to stop: ended after step {step}")
            if status is not None:
                return status
        return "finished"

    def _step(self, step: int, is_last: bool) -> str | None:
        """Run one step and everything that follows it; return the status if the run ends before its last step."""
        config = self.plan.config
        rate = learning_rate(step, config.optimizer, config.schedule, config.train.steps, self.plan.decay_steps)
        goes_back = self._train_step(step, rate)
        self.stop.install()
        self.progress.enter("hooks")
        if goes_back:
            return "rewound"
        stopping = self.stop.agreed() and not is_last
        evaluates = self.validation is not None and _every(config.train.eval_every, step) and not stopping
        reports = step == 1 or is_last or stopping or evaluates or _every(config.train.log_every, step)
        # Also before a save: it would wait for the device anyhow, and that time is the step's.
        if reports or _every(config.checkpoint.every, step):
            self.window.read()
        self.window.stop_step()
        reading = self.window.close() if reports else None
        if reading is not None:
            busy = self._busy(reading)
            report = self._report(step, rate, reading, busy, self._evaluate() if evaluates else None)
            for hook in self.hooks:
                hook.on_report(report)
        # After the report: a step that was saved must have its row, whenever the run is killed.
        for hook in self.hooks:
            hook.on_step(step)
        return "stopped" if stopping else None

    def _train_step(self, step: int, rate: float) -> bool:
        """Train one step, move the state on, and return whether the run must go back to a checkpoint."""
        self.progress.begin_step(step)
        self.window.start_step()
        position, limit = self.state.position, self.skips.spikes.limit()
        batches = self.source.micro_batches(position, step)
        self.window.data_arrived()
        result = self.engine.train_step(batches, rate, limit)
        self.window.add(result)
        self.state.step = step
        self.state.position += self.plan.tokens_per_step
        self.state.tokens_seen += self.plan.tokens_per_step
        if self.groups.is_reporting_rank:
            # After the step is queued: on a GPU the hash runs while the optimizer does.
            self.state.sample_ledger = self.source.ledger(self.state.sample_ledger, position)
        return self.skips.judge(result, limit, position, is_fp16=self.engine.loss_scale() is not None)

    def _busy(self, reading: WindowReading) -> _Busy:
        """Return what of the window was computing. Collective over the world with pp > 1."""
        own_ms = 1000 * self.engine.take_own_seconds()
        if not self.plan.uses_pipeline_engine:
            return _Busy(own_ms)
        seconds = self.engine.take_busy_seconds()
        idle = 1.0 - seconds / max(reading.seconds, 1e-9)
        share = torch.tensor([min(1.0, max(0.0, idle))], device=self.groups.device)
        bubble = float(self.groups.world.all_reduce(share).item()) / self.groups.world.size
        return _Busy(own_ms, 1000 * seconds / reading.steps, bubble)

    def _evaluate(self) -> float:
        assert self.validation is not None
        loss = evaluate(self.engine, self.validation, self.plan.config.train.eval_batches, self.progress)
        self.progress.enter("hooks")
        if self.plan.uses_pipeline_engine:
            # What the evaluation computed must not count as work of the next window.
            self.engine.take_busy_seconds()
        return loss

    def _measured(self) -> dict[str, float]:
        measured = self.measures.take()
        if self.state.sample_ledger:
            measured["data/sample_ledger"] = _ledger_number(self.state.sample_ledger)
        return measured

    def _report(
        self, step: int, rate: float, reading: WindowReading, busy: _Busy, eval_loss: float | None
    ) -> StepReport:
        return StepReport(
            step=step,
            loss=reading.loss,
            grad_norm=reading.grad_norm,
            learning_rate=rate,
            tokens_seen=self.state.tokens_seen,
            window_steps=reading.steps,
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


def _ledger_number(ledger: str) -> int:
    """Return the first 48 bits of a hash in hexadecimal digits: a number that every metrics sink can hold exactly."""
    return int(ledger[:12], 16)


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
