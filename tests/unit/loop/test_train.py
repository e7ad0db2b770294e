from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch

from tests.unit.loop.loop_fixtures import FakeEngine, FakeSource, Recorder, after, make, run
from trainer.data.batches import BatchSource
from trainer.engine.face import Evaluation, StepResult
from trainer.errors import NumericsError, StorageError
from trainer.loop.evaluate import evaluate
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.measures import Measures
from trainer.loop.session import Session
from trainer.loop.stop import StopRequest
from trainer.mesh import Mesh
from trainer.micro_batch import MicroBatch
from trainer.topology.groups import SingleGroup, single_process_groups


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


def session() -> Session:
    return Session(plan=make(), groups=single_process_groups(), hosts=["here"])


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_evaluate_alone(ahead: int) -> None:
    assert evaluate(FakeEngine(), cast(BatchSource, FakeSource()), 4, session(), ahead) == 2.5


def test_batches_of_an_evaluation_weigh_by_their_counted_tokens() -> None:
    counts = (1.0, 0.0, 3.0)

    class Uneven(FakeEngine):
        def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
            number = int(super().evaluate(micro_batches).loss)
            counted = torch.tensor(counts[number - 1], dtype=torch.float64)
            return Evaluation(torch.tensor(number if counted else math.nan), counted)

    source = cast(BatchSource, FakeSource())
    assert evaluate(Uneven(), source, 3, session(), ahead=1) == pytest.approx((1 * 1 + 3 * 3) / 4)
    counts = (0.0, 0.0, 3.0)
    assert math.isnan(evaluate(Uneven(), source, 2, session(), ahead=1))


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
    plan = make(steps=4, log_every=2, eval_every=2, eval_batches=1, prefetch_steps=0)
    run(engine, plan, [hook], source=FakeSource(0.01))
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
