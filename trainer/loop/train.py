"""The step loop. It knows an engine, batches, hooks and a stop request; it knows no checkpoint and no metric."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from trainer.config.plan import RunPlan
from trainer.data.batches import BatchSource
from trainer.engine.face import Engine
from trainer.engine.schedule import learning_rate
from trainer.errors import NumericsError
from trainer.log import say, warn
from trainer.loop.evaluate import evaluate
from trainer.loop.events import Hook, RunEnd, StepReport
from trainer.loop.measures import Measures
from trainer.loop.state import TrainState
from trainer.loop.stop import StopRequest
from trainer.loop.window import StepWindow, WindowReading
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
) -> RunEnd:
    """Train from the step after `state.step` to `train.steps`, or until all ranks agree to stop.

    After each step, in this order: `state` moves on; the ranks agree on stopping; on a step that reports, the loss
    is read and checked (the only host sync); `on_step` of every hook; evaluation; `on_report` of every hook.
    A step reports when it is the first of the run, when `train.log_every` divides it, when it is evaluated, and when
    the run ends with it.
    Hooks get `on_end` exactly once, also after a failure. What hooks note in `measures` goes into the next report.
    Collective over the world.

    Returns:
        How the run ended: `finished`, or `stopped` (the caller saves and exits with 75).

    Raises:
        NumericsError: loss or gradients are not finite.
        PeerLostError: a rank died.
    """
    started = time.perf_counter()
    try:
        for hook in hooks:
            hook.on_start(state.step + 1)
        status = _Loop(engine, source, validation, plan, state, hooks, stop, groups, measures or Measures()).run()
        stop.drain()
    except BaseException as error:
        end = RunEnd("failed", state.step, time.perf_counter() - started, _reason(error))
        # The first failure is the one to tell; another one while ending must not hide it.
        try:
            _end_all(hooks, end)
        except Exception as later:
            warn(f"the run's record is incomplete: {later}")
        raise
    end = RunEnd(status, state.step, time.perf_counter() - started)
    _end_all(hooks, end)
    return end


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
    window: StepWindow = field(default_factory=StepWindow)

    def run(self) -> str:
        """Run the steps and return the status."""
        last = self.plan.config.train.steps
        if self.plan.uses_pipeline_engine:
            self.engine.take_busy_seconds()
        for step in range(self.state.step + 1, last + 1):
            if self._step(step, is_last=step == last):
                say(f"asked to stop: ended after step {step}")
                return "stopped"
        return "finished"

    def _step(self, step: int, is_last: bool) -> bool:
        """Run one step and everything that follows it; return whether the ranks agreed to stop before the last one."""
        config = self.plan.config
        rate = learning_rate(step, config.optimizer, config.schedule, config.train.steps, self.plan.decay_steps)
        self._train_step(step, rate)
        stopping = self.stop.agreed() and not is_last
        evaluates = self.validation is not None and _every(config.train.eval_every, step) and not stopping
        reports = step == 1 or is_last or stopping or evaluates or _every(config.train.log_every, step)
        # Also before a save: it syncs the device anyhow, and what is not finite must not be kept.
        if reports or _every(config.checkpoint.every, step):
            self._check_numerics(step)
        self.window.stop_step()
        reading = self.window.close() if reports else None
        bubble = self._bubble_fraction(reading.seconds) if reading else None
        for hook in self.hooks:
            hook.on_step(step)
        if reading is not None:
            report = self._report(step, rate, reading, bubble, self._evaluate() if evaluates else None)
            for hook in self.hooks:
                hook.on_report(report)
        return stopping

    def _train_step(self, step: int, rate: float) -> None:
        self.window.start_step()
        position = self.state.position
        batches = self.source.micro_batches(position)
        self.window.data_arrived()
        self.window.add(self.engine.train_step(batches, step, rate))
        self.state.step = step
        self.state.position += self.plan.tokens_per_step
        self.state.tokens_seen += self.plan.tokens_per_step
        if self.groups.is_reporting_rank:
            # After the step is queued: on a GPU the hash runs while the device works.
            self.state.sample_ledger = self.source.ledger(self.state.sample_ledger, position)

    def _check_numerics(self, step: int) -> None:
        """Raise if the run has gone bad. Syncs the host with the device.

        The numbers are the same on all ranks, so all raise or none does.
        """
        losses, grad_norm = self.window.read()
        hints = (
            "lower optimizer.lr, raise schedule.warmup_steps, or set optimizer.grad_clip=1.0",
            "with precision.dtype=fp16 try bf16 (or fp32): its range is that of fp32",
            "resume from a checkpoint before that step with checkpoint.resume=PATH",
        )
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                bad_step = step - len(losses) + 1 + index
                raise NumericsError(f"the loss must be finite, but was {loss} at step {bad_step}", hints)
        # Under fp16 an overflow is expected now and then: the engine skips that step and lowers the loss scale.
        if not math.isfinite(grad_norm) and self.engine.loss_scale() is None:
            found = f"was {grad_norm} at step {step} (loss {losses[-1]:.4f})"
            raise NumericsError(f"the gradient norm must be finite, but {found}", hints)

    def _bubble_fraction(self, seconds: float) -> float | None:
        """Return the idle share of the window, mean over ranks. Collective over the world with pp > 1."""
        if not self.plan.uses_pipeline_engine:
            return None
        idle = 1.0 - self.engine.take_busy_seconds() / max(seconds, 1e-9)
        share = torch.tensor([min(1.0, max(0.0, idle))], device=self.groups.device)
        return float(self.groups.world.all_reduce(share).item()) / self.groups.world.size

    def _evaluate(self) -> float:
        assert self.validation is not None
        loss = evaluate(self.engine, self.validation, self.plan.config.train.eval_batches)
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
        self, step: int, rate: float, reading: WindowReading, bubble: float | None, eval_loss: float | None
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
            skipped_steps=self.engine.skipped_steps(),
            bubble_fraction=bubble,
            eval_loss=eval_loss,
            measures=self._measured(),
        )


def _ledger_number(ledger: str) -> int:
    """Return the first 48 bits of a hash in hexadecimal digits: a number that every metrics sink can hold exactly."""
    return int(ledger[:12], 16)


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
