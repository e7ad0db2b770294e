from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.loop.loop_fixtures import FakeEngine, Recorder, after, make, run
from trainer.engine.face import StepResult
from trainer.errors import NumericsError
from trainer.loop.events import Hook, SkippedBatch
from trainer.micro_batch import MicroBatch


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
