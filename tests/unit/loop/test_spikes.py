from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.loop.loop_fixtures import FakeEngine, Recorder, after, make, run
from trainer.config.plan import RunPlan
from trainer.config.schema import SpikePolicy, TrainConfig
from trainer.errors import NumericsError
from trainer.loop.events import Hook, SkippedBatch
from trainer.loop.skips import RewindCount
from trainer.loop.spikes import SpikeWatch
from trainer.loop.state import TrainState

WINDOW = 4


def plan_with(policy: SpikePolicy, steps: int = 9, max_skipped_in_row: int = 9, max_rewinds: int = 2) -> RunPlan:
    plan = make(steps=steps)
    train = replace(
        plan.config.train,
        spike_policy=policy,
        spike_window=WINDOW,
        spike_sigmas=2.0,
        max_skipped_in_row=max_skipped_in_row,
        max_rewinds=max_rewinds,
    )
    return replace(plan, config=replace(plan.config, train=train))


def test_the_limit_is_mean_and_deviations_of_a_full_window() -> None:
    config = TrainConfig(spike_policy=SpikePolicy.skip, spike_window=3, spike_sigmas=2.0)
    losses: list[float] = []
    watch = SpikeWatch(config, losses)
    for loss in (100.0, 3.0, 1.0):
        assert watch.limit() == math.inf
        watch.see(loss)
    watch.see(2.0)
    assert losses == [3.0, 1.0, 2.0]
    expected = np.float32(np.mean(losses) + 2 * np.std(losses))
    assert watch.limit() == float(expected)


def test_without_a_policy_nothing_is_kept_or_compared() -> None:
    losses = [1.0, 1.0, 1.0]
    watch = SpikeWatch(TrainConfig(spike_window=2), losses)
    watch.see(1.0)
    assert (losses, watch.limit()) == ([], math.inf)


def test_a_smaller_window_forgets_the_oldest() -> None:
    losses = [1.0, 2.0, 3.0]
    SpikeWatch(TrainConfig(spike_policy=SpikePolicy.stop, spike_window=2), losses)
    assert losses == [2.0, 3.0]


@pytest.mark.parametrize("policy", [SpikePolicy.none, SpikePolicy.skip])
def test_a_spike_is_skipped_only_with_a_policy_and_does_not_raise_the_limit(policy: SpikePolicy) -> None:
    # The losses fall by 1 a step: 9, 8, 7, 6, then the spikes; 10 is still one after 100.
    state, skipped = after(), list[SkippedBatch]()
    end = run(FakeEngine({5: 100.0, 6: 10.0}), plan_with(policy), [], state, on_skip=skipped.append)
    assert end.status == "finished"
    is_on = policy is SpikePolicy.skip
    assert [(b.step, b.loss, b.samples, b.is_spike) for b in skipped] == is_on * [
        (5, 100.0, (50, 51), True),
        (6, 10.0, (60, 61), True),
    ]
    assert state.skipped_batches == 2 * is_on
    assert state.recent_losses == is_on * [6.0, 3.0, 2.0, 1.0]


def test_a_level_that_stays_high_ends_the_run() -> None:
    high = dict.fromkeys(range(5, 20), 100.0)
    with pytest.raises(NumericsError, match=r"the loss must not spike, but the loss was 100\.0000, above") as caught:
        run(FakeEngine(high), plan_with(SpikePolicy.skip, steps=20, max_skipped_in_row=2), [])
    assert "at step 7, the batch number 3" in str(caught.value)


def test_stop_names_step_and_samples() -> None:
    hook, skipped = Recorder(), list[SkippedBatch]()
    with pytest.raises(NumericsError, match=r"train\.spike_policy=stop.* at step 6 .*samples 60, 61") as caught:
        run(FakeEngine({6: 100.0}), plan_with(SpikePolicy.stop), [hook], on_skip=skipped.append)
    assert caught.value.exit_code == 5
    assert [batch.step for batch in skipped] == [6]
    assert hook.ends[0].status == "failed"


def test_what_is_not_finite_is_no_spike() -> None:
    end = run(FakeEngine({6: float("nan")}, norms={7: float("inf")}), plan_with(SpikePolicy.stop), [])
    assert end.status == "finished"


def test_a_rewind_is_an_event_inside_the_run() -> None:
    state, hook, skipped = after(), Recorder(), list[SkippedBatch]()
    losses, went_back_at = state.recent_losses, list[tuple[int, int]]()

    def go_back() -> TrainState:
        went_back_at.append((state.step, state.position))
        # The checkpoint of step 4; the data of steps 5 and 6 are left out.
        return replace(after(4), position=state.position, recent_losses=[9.0, 8.0, 7.0, 6.0])

    engine = FakeEngine({6: 100.0}, any_data=True)

    class Mend(Hook):
        def on_rewind(self, step: int) -> None:
            engine.losses.clear()
            hook.events.append(f"window {state.recent_losses}")

    plan = plan_with(SpikePolicy.rewind)
    end = run(engine, plan, [hook, Mend()], state, on_skip=skipped.append, go_back=go_back)
    assert (end.status, end.step, state.step) == ("finished", 9, 9)
    assert went_back_at == [(6, after(6).position)]
    assert [batch.step for batch in skipped] == [6]
    assert hook.events[:1] == ["start 1"]
    assert hook.events.count("start 1") == len([event for event in hook.events if "start" in event]) == 1
    at = hook.events.index("rewind 4")
    assert hook.events[at - 2 : at + 4] == [
        "report 5",
        "step 5",
        "rewind 4",
        "window [9.0, 8.0, 7.0, 6.0]",
        "report 5",
        "step 5",
    ]
    assert hook.events[-1] == "end finished"
    assert len(hook.ends) == 1
    # In place: who holds the state, or its losses, sees them.
    assert state.recent_losses is losses
    # Steps 5 to 9 were trained anew on what follows the spike's data.
    assert state.position == after(6 + 5).position
    assert state.tokens_seen == after(9).tokens_seen


def test_where_there_is_no_checkpoint_nothing_was_taken_back() -> None:
    state, hook = after(), Recorder()
    engine = FakeEngine({6: 100.0}, any_data=True)
    end = run(engine, plan_with(SpikePolicy.rewind), [hook], state, go_back=lambda: state)
    assert (end.status, end.step) == ("finished", 9)
    assert not [event for event in hook.events if "rewind" in event]
    assert [event for event in hook.events if event.startswith("step")] == [
        f"step {n}" for n in (1, 2, 3, 4, 5, 7, 8, 9)
    ]


def test_rewinds_without_progress_end_the_run() -> None:
    plan = plan_with(SpikePolicy.rewind, max_rewinds=2)
    state, hook = after(), Recorder()

    def go_back() -> TrainState:
        return replace(after(4), position=state.position, recent_losses=[9.0, 8.0, 7.0, 6.0])

    with pytest.raises(NumericsError, match="spiked again at step 6, no further than before"):
        run(FakeEngine({6: 100.0}, any_data=True), plan, [hook], state, go_back=go_back)
    assert [event for event in hook.events if "rewind" in event] == ["rewind 4"] * 2
    assert hook.ends[0].status == "failed"


def test_a_run_gets_further_or_counts_its_rewinds() -> None:
    rewinds = RewindCount()
    # Beyond the furthest one the count begins anew.
    assert [rewinds.count(step) for step in (6, 6, 5, 7, 7, 8, 1)] == [1, 2, 3, 1, 2, 1, 2]


def test_a_resumed_run_judges_as_the_uninterrupted_one() -> None:
    losses = {step: 1.0 + (step * 37 % 11) / 100 for step in range(1, 30)} | {20: 1.2}
    plan, whole, first = plan_with(SpikePolicy.skip, steps=29), after(), after()
    found: list[SkippedBatch] = []
    run(FakeEngine(losses), plan, [], whole, on_skip=found.append)
    assert 20 in [batch.step for batch in found]
    run(
        FakeEngine(losses),
        replace(plan, config=replace(plan.config, train=replace(plan.config.train, steps=18))),
        [],
        first,
    )
    again: list[SkippedBatch] = []
    second = type(first).from_dict(first.to_dict())
    run(FakeEngine(losses), plan, [], second, on_skip=again.append)
    assert second == whole
    assert again == [batch for batch in found if batch.step > 18]
