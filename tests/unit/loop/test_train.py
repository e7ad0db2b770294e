from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    BatchConfig,
    OptimizerConfig,
    ScheduleConfig,
    ScheduleKind,
    TrainConfig,
    TridentConfig,
)
from trainer.data.batches import BatchSource
from trainer.engine.face import Evaluation, Fragment, ReadShard, Recorded, StepResult
from trainer.errors import NumericsError, StorageError
from trainer.loop.evaluate import evaluate
from trainer.loop.events import Hook, RunEnd, SkippedBatch, StepReport
from trainer.loop.measures import Measures
from trainer.loop.session import Session
from trainer.loop.state import TrainState
from trainer.loop.stop import StopRequest
from trainer.loop.train import Batches, Loop
from trainer.mesh import Mesh
from trainer.micro_batch import MicroBatch, Place
from trainer.tensor_parallel.shard import ShardSpec
from trainer.topology.groups import ParallelGroups, SingleGroup, single_process_groups

TOKENS = 256
"""Of a step."""


def after(step: int = 0) -> TrainState:
    """The state after a step of a run that was never interrupted."""
    ledger = "".join(f"{number:012x}," for number in range(1, step + 1))
    return TrainState(step, step * TOKENS, step * TOKENS, ledger, sample_length=128)


class FakeEngine:
    def __init__(
        self,
        losses: Mapping[int, float] | None = None,
        norms: Mapping[int, float] | None = None,
        any_data: bool = False,
    ) -> None:
        self.losses, self.norms, self.any_data = dict(losses or {}), norms or {}, any_data
        self.scale: float | None = None
        self.busy_s = 0.0
        self.seconds_per_step = 0.0
        self.seconds_per_evaluation = 0.0
        self.calls: list[tuple[int, float]] = []
        self.evaluated: list[float] = []
        # One buffer for all steps, as an engine may have.
        self.loss = torch.zeros(())

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        place = micro_batches[0].place
        assert place is not None
        step = place.step
        assert self.any_data or float(micro_batches[0].input_ids[0, 0]) == step
        self.calls.append((step, learning_rate))
        time.sleep(self.seconds_per_step)
        loss, norm = self.losses.get(step, 10.0 - step), self.norms.get(step, 1.0)
        self.loss.fill_(loss)
        applied = math.isfinite(loss) and loss <= loss_limit and math.isfinite(norm)
        return StepResult(self.loss, torch.tensor(norm), skipped=not applied)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
        assert micro_batches[0].place is None
        time.sleep(self.seconds_per_evaluation)
        self.busy_s += 1000.0
        self.evaluated.append(float(micro_batches[0].input_ids[0, 0]))
        return Evaluation(torch.tensor(self.evaluated[-1]), torch.tensor(4.0, dtype=torch.float64))

    def loss_scale(self) -> float | None:
        return self.scale

    def record(self, micro_batches: Sequence[MicroBatch]) -> list[Recorded]:
        raise AssertionError

    def take_own_seconds(self) -> float:
        return 0.002

    def take_busy_seconds(self) -> float:
        taken, self.busy_s = self.busy_s, 0.0
        return taken

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        return {}

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        return {}

    def fragments(self) -> Iterator[Fragment]:
        raise AssertionError("the loop does not save")

    def scalars(self) -> dict[str, float]:
        raise AssertionError("the loop does not save")

    def restore(self, read: ReadShard, scalars: Mapping[str, float]) -> None:
        raise AssertionError("the loop does not load")


class FakeSource:
    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    tokens = TOKENS

    def micro_batches(self, position: int, step: int | None = None) -> list[MicroBatch]:
        time.sleep(self.seconds)
        ids = torch.full((1, 4), 1 + position // TOKENS)
        return [MicroBatch.of(ids, ids, place=None if step is None else Place(0, step, 0))]

    def sample_ids(self, position: int) -> list[int]:
        return [10 * (1 + position // TOKENS), 10 * (1 + position // TOKENS) + 1]

    def ledger(self, previous: str, position: int) -> str:
        return f"{previous}{1 + position // TOKENS:012x},"


class Recorder(Hook):
    def __init__(self, name: str = "", events: list[str] | None = None) -> None:
        self.name = name
        self.events: list[str] = [] if events is None else events
        self.reports: list[StepReport] = []
        self.ends: list[RunEnd] = []
        self.seconds_on_step = 0.0

    def on_start(self, first_step: int) -> None:
        self.events.append(f"{self.name}start {first_step}")

    def on_step(self, step: int) -> None:
        time.sleep(self.seconds_on_step)
        self.events.append(f"{self.name}step {step}")

    def on_report(self, report: StepReport) -> None:
        self.events.append(f"{self.name}report {report.step}")
        self.reports.append(report)

    def on_rewind(self, step: int) -> None:
        self.events.append(f"{self.name}rewind {step}")

    def on_end(self, end: RunEnd) -> None:
        self.events.append(f"{self.name}end {end.status}")
        self.ends.append(end)


def make(
    steps: int = 4,
    log_every: int = 1,
    eval_every: int = 0,
    eval_batches: int = 2,
    max_skipped_in_row: int = 0,
) -> RunPlan:
    config = TridentConfig(
        train=TrainConfig(
            steps=steps,
            log_every=log_every,
            eval_every=eval_every,
            eval_batches=eval_batches,
            max_skipped_in_row=max_skipped_in_row,
        ),
        batch=BatchConfig(global_batch_size=2),
        optimizer=OptimizerConfig(lr=1.0),
        schedule=ScheduleConfig(kind=ScheduleKind.constant, warmup_steps=2),
    )
    return make_plan(config, vocab_size=16)


def no_checkpoint() -> TrainState:
    raise AssertionError("the loop must not go back")


def run(
    engine: FakeEngine,
    plan: RunPlan,
    hooks: Sequence[Hook],
    state: TrainState | None = None,
    stop: StopRequest | None = None,
    source: FakeSource | None = None,
    groups: ParallelGroups | None = None,
    validation: bool = True,
    measures: Measures | None = None,
    on_skip: Callable[[SkippedBatch], None] = lambda batch: None,
    go_back: Callable[[], TrainState] = no_checkpoint,
) -> RunEnd:
    class Skips(Hook):
        def on_skip(self, batch: SkippedBatch) -> None:
            on_skip(batch)

    batches = Batches(
        cast(BatchSource, source or FakeSource()), cast(BatchSource, FakeSource()) if validation else None
    )
    session = Session(
        plan=plan,
        groups=groups or single_process_groups(),
        hosts=["here"],
        measures=measures or Measures(),
    )
    state, stop = state if state is not None else after(), stop or StopRequest(SingleGroup())
    return Loop(session, engine, batches, state, [*hooks, Skips()], stop, go_back).run()


def test_every_step_gets_its_batch_and_its_learning_rate() -> None:
    engine = FakeEngine()
    end = run(engine, make(steps=4), [])
    assert engine.calls == [(1, 0.5), (2, 1.0), (3, 1.0), (4, 1.0)]
    assert (end.status, end.step) == ("finished", 4)


def test_state_moves_on_before_the_hooks_see_the_step() -> None:
    state = after()
    seen: list[tuple[int, int, str]] = []

    class Look(Recorder):
        def on_step(self, step: int) -> None:
            seen.append((state.step, state.tokens_seen, state.sample_ledger))

    run(FakeEngine(), make(steps=2), [Look()], state)
    assert seen == [(1, 256, after(1).sample_ledger), (2, 512, after(2).sample_ledger)]


def test_only_the_reporting_rank_keeps_the_ledger() -> None:
    state = after()
    run(FakeEngine(), make(steps=2), [], state, groups=replace(single_process_groups(), rank=1))
    assert (state.step, state.sample_ledger) == (2, "")


def test_reports_come_at_the_first_step_every_log_every_and_at_the_last_step() -> None:
    hook = Recorder()
    run(FakeEngine(), make(steps=7, log_every=3), [hook])
    assert [(r.step, r.loss, r.window_steps) for r in hook.reports] == [
        (1, 9.0, 1),
        (3, 7.0, 2),
        (6, 4.0, 3),
        (7, 3.0, 1),
    ]
    assert [r.tokens_seen for r in hook.reports] == [256, 768, 1536, 1792]


def test_hooks_run_in_order_and_a_step_that_may_be_saved_has_its_row_first() -> None:
    events: list[str] = []
    state = after(1)
    run(FakeEngine(), make(steps=3, log_every=3), [Recorder("a ", events), Recorder("b ", events)], state)
    assert events == [
        *("a start 2", "b start 2"),
        *("a step 2", "b step 2"),
        *("a report 3", "b report 3"),
        *("a step 3", "b step 3"),
        *("a end finished", "b end finished"),
    ]


def test_resume_goes_on_from_the_next_step() -> None:
    engine, hook, state = FakeEngine(), Recorder(), after(2)
    run(engine, make(steps=4), [hook], state)
    assert [step for step, _ in engine.calls] == [3, 4]
    assert hook.events[0] == "start 3"
    assert state == after(4)


def test_a_run_that_is_done_trains_nothing_more() -> None:
    engine, hook = FakeEngine(), Recorder()
    end = run(engine, make(steps=4), [hook], after(4))
    assert engine.calls == []
    assert hook.events == ["start 5", "end finished"]
    assert (end.status, end.step) == ("finished", 4)


def test_what_hooks_measure_goes_into_the_next_report() -> None:
    measures, hook = Measures(), Recorder()

    class Saver(Recorder):
        def on_step(self, step: int) -> None:
            measures.note("checkpoint/stall_ms", float(step))
            if step == 2:
                measures.note("checkpoint/write_ms", 7.0)

    run(FakeEngine(), make(steps=5, log_every=2), [Saver(), hook], measures=measures)
    measured = [(report.step, dict(report.measures)) for report in hook.reports]
    # The fake ledger begins with the first step's number for ever.
    assert [values.pop("data/sample_ledger") for _, values in measured] == [1] * 4
    assert measured == [
        (1, {}),
        (2, {"checkpoint/stall_ms": 1.0}),
        (4, {"checkpoint/stall_ms": 3.0, "checkpoint/write_ms": 7.0}),
        (5, {"checkpoint/stall_ms": 4.0}),
    ]


def test_evaluation_reports_its_mean_even_between_logged_steps() -> None:
    engine, hook = FakeEngine(), Recorder()
    run(engine, make(steps=4, log_every=4, eval_every=2, eval_batches=3), [hook])
    assert engine.evaluated == [1, 2, 3, 1, 2, 3]
    assert [(r.step, r.eval_loss) for r in hook.reports] == [(1, None), (2, 2.0), (4, 2.0)]


@pytest.mark.parametrize(("eval_every", "validation"), [(0, True), (2, False)])
def test_no_evaluation_when_none_is_asked_for_or_there_is_nothing_to_evaluate(
    eval_every: int, validation: bool
) -> None:
    engine, hook = FakeEngine(), Recorder()
    run(engine, make(steps=4, eval_every=eval_every), [hook], validation=validation)
    assert engine.evaluated == []
    assert [r.eval_loss for r in hook.reports] == [None] * 4


def test_evaluate_alone() -> None:
    assert evaluate(FakeEngine(), cast(BatchSource, FakeSource()), num_batches=4) == 2.5


def test_batches_of_an_evaluation_weigh_by_their_counted_tokens() -> None:
    counts = (1.0, 0.0, 3.0)

    class Uneven(FakeEngine):
        def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
            number = int(super().evaluate(micro_batches).loss)
            counted = torch.tensor(counts[number - 1], dtype=torch.float64)
            return Evaluation(torch.tensor(number if counted else math.nan), counted)

    source = cast(BatchSource, FakeSource())
    assert evaluate(Uneven(), source, num_batches=3) == pytest.approx((1 * 1 + 3 * 3) / 4)
    counts = (0.0, 0.0, 3.0)
    assert math.isnan(evaluate(Uneven(), source, num_batches=2))


def test_stop_ends_after_the_step_and_reports_it(capsys: pytest.CaptureFixture[str]) -> None:
    stop, hook = StopRequest(SingleGroup()), Recorder()

    class Ask(Recorder):
        def on_step(self, step: int) -> None:
            if step == 2:
                stop.request()

    end = run(FakeEngine(), make(steps=9, log_every=100, eval_every=3), [Ask(), hook], stop=stop)
    assert (end.status, end.step) == ("stopped", 3)
    assert hook.events[-3:] == ["report 3", "step 3", "end stopped"]
    assert hook.reports[0].eval_loss is None
    assert "step 3" in capsys.readouterr().out


def test_stop_at_the_last_step_is_a_finished_run() -> None:
    stop = StopRequest(SingleGroup())
    stop.request()
    assert run(FakeEngine(), make(steps=1), [], stop=stop).status == "finished"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_at_once_if_no_batch_may_be_skipped(bad: float) -> None:
    hook = Recorder()
    with pytest.raises(NumericsError, match="at step 5") as caught:
        run(FakeEngine({5: bad, 6: bad}), make(steps=9, log_every=3), [hook])
    assert caught.value.exit_code == 5
    assert "it holds samples 50, 51 of the training data" in str(caught.value)
    assert [r.step for r in hook.reports] == [1, 3]
    assert "step 5" not in hook.events
    assert (hook.ends[0].status, hook.ends[0].step) == ("failed", 5)
    assert "NumericsError" in hook.ends[0].error


def test_bad_batches_are_skipped_and_counted_until_there_are_too_many_in_a_row() -> None:
    nan, hook, skipped, state = float("nan"), Recorder(), list[SkippedBatch](), after()
    engine = FakeEngine({2: nan, 4: nan, 5: nan, 7: nan, 8: nan}, norms={9: nan})
    with pytest.raises(NumericsError, match="at step 9, the batch number 3") as caught:
        run(engine, make(steps=12, max_skipped_in_row=2), [hook], state, on_skip=skipped.append)
    assert [batch.step for batch in skipped] == [2, 4, 5, 7, 8, 9]
    assert skipped[1].samples == (40, 41)
    assert "a gradient was not finite (loss 1.0000)" in str(caught.value)
    assert "train.max_skipped_in_row=2" in str(caught.value)
    assert [(r.step, r.skipped_steps) for r in hook.reports] == list(enumerate((0, 1, 1, 2, 3, 3, 4, 5), start=1))
    assert (state.step, state.skipped_batches, state.skipped_in_row) == (9, 6, 3)


def test_a_skipped_batch_uses_up_its_step_and_its_data() -> None:
    engine, state = FakeEngine({2: float("nan")}), after()
    run(engine, make(steps=4, max_skipped_in_row=1), [], state)
    assert engine.calls == [(1, 0.5), (2, 1.0), (3, 1.0), (4, 1.0)]
    assert state == replace(after(4), skipped_batches=1)


def test_the_count_in_a_row_goes_on_after_a_resume() -> None:
    state = replace(after(3), skipped_batches=2, skipped_in_row=2)
    with pytest.raises(NumericsError, match="at step 4, the batch number 3"):
        run(FakeEngine({4: float("nan")}), make(steps=9, max_skipped_in_row=2), [], state)


def test_checking_before_a_save_loses_nothing_of_the_window() -> None:
    class Saver(Hook):
        def waits_for_device(self, step: int) -> bool:
            return step == 3

    hook = Recorder()
    run(FakeEngine(), make(steps=4, log_every=4), [Saver(), hook])
    assert [(r.step, r.loss, r.window_steps) for r in hook.reports] == [(1, 9.0, 1), (4, 6.0, 3)]


def test_gradients_that_are_not_finite_end_the_run() -> None:
    with pytest.raises(NumericsError, match=r"a gradient was not finite .* at step 2"):
        run(FakeEngine(norms={2: float("inf")}), make(), [])


def test_an_fp16_overflow_is_an_everyday_event_until_there_are_too_many_in_a_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine, hook, skipped = FakeEngine(norms={2: float("inf")}), Recorder(), list[SkippedBatch]()
    engine.scale = 1024.0
    assert run(engine, make(max_skipped_in_row=1), [hook], on_skip=skipped.append).status == "finished"
    assert (hook.reports[1].loss_scale, hook.reports[1].skipped_steps) == (1024.0, 1)
    assert (skipped, capsys.readouterr().err) == ([], "")
    engine.norms = {2: float("inf"), 3: float("inf")}
    with pytest.raises(NumericsError, match="at step 3, the batch number 2"):
        run(engine, make(max_skipped_in_row=1), [], on_skip=skipped.append)
    assert [batch.step for batch in skipped] == [3]


def test_a_batch_in_which_nothing_counts_is_skipped_and_told_whatever_the_precision(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Empty(FakeEngine):
        def train_step(
            self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
        ) -> StepResult:
            result = super().train_step(micro_batches, learning_rate, loss_limit)
            return replace(result, is_empty=result.skipped)

    engine, skipped, state = Empty({2: math.nan}), list[SkippedBatch](), after()
    engine.scale = 1024.0
    assert run(engine, make(max_skipped_in_row=1), [], state, on_skip=skipped.append).status == "finished"
    assert [(batch.step, batch.is_empty) for batch in skipped] == [(2, True)]
    assert state.skipped_batches == 1
    assert "step 2 is skipped: none of its tokens counts; logs/skipped_batches.jsonl" in capsys.readouterr().err
    with pytest.raises(NumericsError, match="a batch must have a token that counts, but none of its tokens") as caught:
        run(Empty({2: math.nan}), make(), [])
    assert "labels of -100 and weights of 0 do not count" in caught.value.hints[0]


class _Boom(Recorder):
    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__()
        self.where, self.error = where, error

    def on_start(self, first_step: int) -> None:
        if self.where == "start":
            raise self.error

    def on_step(self, step: int) -> None:
        if self.where == "step":
            raise self.error

    def on_report(self, report: StepReport) -> None:
        if self.where == "report":
            raise self.error

    def on_end(self, end: RunEnd) -> None:
        super().on_end(end)
        if self.where in ("end", "end too"):
            raise self.error


@pytest.mark.parametrize("where", ["start", "step", "report"])
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_every_hook_hears_of_a_failure_once(where: str, error: BaseException) -> None:
    first, last = _Boom(where, error), Recorder()
    with pytest.raises(type(error)):
        run(FakeEngine(), make(), [first, last])
    assert [end.status for end in first.ends + last.ends] == ["failed", "failed"]


def test_a_failure_while_ending_does_not_hide_the_first_one(capsys: pytest.CaptureFixture[str]) -> None:
    broken, last = _Boom("end", OSError("second")), Recorder()
    with pytest.raises(NumericsError):
        run(FakeEngine({1: float("nan")}), make(), [broken, last])
    assert last.ends[0].status == "failed"
    assert "second" in capsys.readouterr().err


def test_when_the_last_save_fails_the_record_says_failed() -> None:
    broken, last = _Boom("end", StorageError("disk full")), Recorder()
    with pytest.raises(StorageError):
        run(FakeEngine(), make(), [Recorder(), broken, last])
    assert broken.ends[0].status == "finished"
    assert (last.ends[0].status, last.ends[0].error) == ("failed", "StorageError: disk full")


def test_step_time_holds_data_but_neither_hooks_nor_evaluation() -> None:
    engine, hook = FakeEngine(), Recorder()
    engine.seconds_per_step, engine.seconds_per_evaluation, hook.seconds_on_step = 0.02, 0.2, 0.2
    run(engine, make(steps=4, log_every=2, eval_every=2, eval_batches=1), [hook], source=FakeSource(0.01))
    for report in hook.reports:
        assert 30.0 <= report.step_ms < 120.0
        assert 10.0 <= report.data_wait_ms < 60.0


def test_bubble_is_measured_with_a_pipeline_only() -> None:
    engine, hook = FakeEngine(), Recorder()
    run(engine, make(steps=1), [hook])
    assert hook.reports[0].bubble_fraction is None

    class Half(FakeEngine):
        def train_step(
            self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
        ) -> StepResult:
            time.sleep(0.1)
            self.busy_s += 0.05
            return super().train_step(micro_batches, learning_rate, loss_limit)

    plan = replace(make(steps=4, eval_every=2), mesh=Mesh(2, 1, 1))
    engine = Half()
    engine.busy_s = 1000.0
    run(engine, plan, [hook := Recorder()])
    # The busy seconds of evaluations, and of what was before the first step, do not count.
    assert [r.bubble_fraction for r in hook.reports] == pytest.approx([0.5] * 4, abs=0.4)


def test_a_failure_on_another_rank_surfaces_at_the_end() -> None:
    class Lost(StopRequest):
        def drain(self) -> bool:
            raise RuntimeError("gone")

    hook = Recorder()
    with pytest.raises(RuntimeError, match="gone"):
        run(FakeEngine(), make(), [hook], stop=Lost(SingleGroup()))
    assert hook.ends[0].status == "failed"
