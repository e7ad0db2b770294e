"""Schedules on a clock, against published bubbles, DeepSpeed's own orders, formulas, and slow oracles."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from deepspeed.runtime.pipe import schedule as theirs

from tests.helpers.zero_bubble import zero_bubble_h1
from trainer.config.pipeline_schedules import SCHEDULES
from trainer.config.schema import PipelineSchedule
from trainer.planner.orders import (
    Exchange,
    Order,
    Pass,
    Work,
    deepspeed_1f1b,
    dualpipev,
    interleaved_1f1b,
    megatron_1f1b,
    needs,
    one_forward_one_backward,
    trained_order,
)
from trainer.planner.timeline import Costs, Deadlock, Timeline, makespan, simulate

ZERO_BUBBLE = (
    # Zero-bubble paper (arXiv 2401.10241): ranks, micro-batches, F, B, W and message in milliseconds, bubbles of 1F1B,
    # interleaved 1F1B and ZB-H1, layers.
    (8, 24, 18.522, 18.086, 9.337, 0.601, 0.2431, 0.1055, 0.1585, 22),
    (8, 32, 18.513, 18.086, 9.331, 0.626, 0.1985, 0.0818, 0.1242, 22),
    (8, 64, 18.546, 18.097, 9.321, 0.762, 0.1240, 0.0443, 0.0674, 22),
    (8, 24, 29.718, 29.444, 19.927, 0.527, 0.2347, 0.0808, 0.1323, 30),
    (8, 32, 29.802, 29.428, 19.530, 0.577, 0.1898, 0.0628, 0.1045, 30),
    (8, 64, 29.935, 29.621, 19.388, 0.535, 0.1091, 0.0320, 0.0554, 30),
    (16, 48, 11.347, 11.248, 8.132, 0.377, 0.2552, 0.1104, 0.1397, 46),
    (16, 64, 11.307, 11.254, 8.101, 0.379, 0.2082, 0.0852, 0.1088, 46),
    (16, 128, 11.325, 11.308, 8.109, 0.378, 0.1251, 0.0445, 0.0576, 46),
    (32, 96, 10.419, 10.207, 7.715, 0.408, 0.2646, 0.1493, 0.1421, 62),
    (32, 128, 10.408, 10.204, 7.703, 0.408, 0.2168, 0.1164, 0.1106, 62),
    (32, 256, 10.402, 10.248, 7.698, 0.460, 0.1352, 0.0624, 0.0594, 62),
)
SHAPES = [(pp, m) for pp in (1, 2, 3, 4, 5, 8) for m in (1, 2, 3, 4, 7, 8, 16, 33)]
FOLDED = [(pp, times * pp + more) for pp in (2, 3, 4, 6) for times, more in ((2, 0), (2, 1), (3, 2), (8, 0))]
BLOCKING = (deepspeed_1f1b, megatron_1f1b)
Maker = Callable[[int, int], Order]


def random_costs(stages: int, seed: int, spread: float = 0.3, message: float = 0.2) -> Costs:
    draw = random.Random(seed)
    forward = [draw.uniform(1 - spread, 1 + spread) for _ in range(stages)]
    backward = [one * draw.uniform(1.7, 2.3) for one in forward]
    return Costs(forward, backward, [draw.uniform(0, message) for _ in range(stages - 1)])


@pytest.mark.parametrize("row", ZERO_BUBBLE)
def test_bubbles_of_1f1b_and_zb_h1_are_those_that_the_zero_bubble_paper_prints(row: tuple[float, ...]) -> None:
    pp, m = int(row[0]), int(row[1])
    forward, backward, weights, message, one, _, zero = row[2:9]
    costs = Costs.equal(pp, forward, backward, message, weights)
    # Four digits are printed, and the times that go in have three.
    assert simulate(one_forward_one_backward(pp, m), costs).bubble == pytest.approx(one, abs=1e-4)
    found = simulate(zero_bubble_h1(pp, m), costs)
    assert found.bubble == pytest.approx(zero, abs=1e-4)
    assert found.in_flight == (pp,) * pp


@pytest.mark.parametrize("row", ZERO_BUBBLE)
def test_bubbles_of_interleaved_1f1b_come_near_to_the_papers(row: tuple[float, ...]) -> None:
    pp, m = int(row[0]), int(row[1])
    forward, backward, weights, message, _, interleaved = row[2:8]
    chunks = (int(row[9]) + 2) // pp
    costs = Costs.equal(pp * chunks, forward / chunks, (backward + weights) / chunks, message)
    found = simulate(interleaved_1f1b(pp, m, chunks), costs).bubble
    # Always above, by at most 0.0036: the paper does not say how its simulation splits a rank's work into chunks.
    assert interleaved < found < interleaved + 0.0037


def test_small_batches_are_as_fast_as_the_zero_bubble_paper_measured() -> None:
    # Milliseconds as above; samples a second and GPU, of 8 GPUs, with 2, 4 and 8 micro-batches: 1F1B, and zero bubble.
    models = (
        ((18.522, 18.086, 9.337, 0.601), 6, (3.56, 5.74, 8.26), (4.25, 6.92, 9.90)),
        ((29.718, 29.444, 19.927, 0.527), 3, (1.04, 1.69, 2.45), (1.33, 2.16, 3.07)),
    )
    for (forward, backward, weights, message), batch, one, zero in models:
        costs = Costs.equal(8, forward, backward, message, weights)
        for m, speed, faster in zip((2, 4, 8), one, zero, strict=True):
            plain = makespan(one_forward_one_backward(8, m), costs) / 1e3
            split = makespan(zero_bubble_h1(8, m), costs) / 1e3
            # The optimizer's step is not in it, and it is a larger part of the faster schedule.
            assert m * batch / plain / 8 == pytest.approx(speed, rel=0.035)
            assert plain / split == pytest.approx(faster / speed, rel=0.045)
            free = Costs.equal(8, forward, backward, 0.0, weights)
            formula = (m + 7) * (forward + backward) + weights
            assert makespan(zero_bubble_h1(8, m), free) == pytest.approx(formula)


def test_step_time_of_bigscience_grows_with_the_batch_as_the_order_says() -> None:
    # tr11-176B chronicles: DP 8, PP 12, micro-batches of 2; seconds for 512, 1,024, 1,536 and 2,048 sequences.
    measured = {32: 35.77, 64: 59.65, 96: 83.11, 128: 107.12}
    third = Costs.equal(12, 1 / 3, 2 / 3)
    played = {m: makespan(deepspeed_1f1b(12, m), third) for m in measured}
    assert played == pytest.approx({m: m + 11 for m in measured})
    # Seconds of a micro-batch and of the rest of a step are read off the outer rows; the inner ones follow.
    each = (measured[128] - measured[32]) / (played[128] - played[32])
    rest = measured[32] - each * played[32]
    assert {m: rest + each * played[m] for m in measured} == pytest.approx(measured, rel=0.005)


@pytest.mark.parametrize("maker", [one_forward_one_backward, deepspeed_1f1b, megatron_1f1b])
@pytest.mark.parametrize(("pp", "m"), SHAPES)
def test_equal_stages_have_the_bubble_of_the_formula(maker: Maker, pp: int, m: int) -> None:
    found = simulate(maker(pp, m), Costs.equal(pp, 1.0, 2.0))
    assert found.bubble == pytest.approx((pp - 1) / (m + pp - 1))
    assert found.bubble == pytest.approx(SCHEDULES[PipelineSchedule.f1b1].bubble(pp, m))
    assert found.idle_fraction == pytest.approx(found.bubble)
    assert found.in_flight == tuple(min(m, pp - stage) for stage in range(pp))


@pytest.mark.parametrize(("pp", "m"), FOLDED)
def test_dualpipev_has_the_bubble_of_its_schedule(pp: int, m: int) -> None:
    found = simulate(dualpipev(pp, m), Costs.equal(2 * pp, 1.0, 2.0))
    assert found.idle_fraction == pytest.approx(SCHEDULES[PipelineSchedule.dualpipev].bubble(pp, m))
    assert max(found.in_flight) <= 2 * pp + 1


@pytest.mark.parametrize(("pp", "m", "chunks"), [(2, 4, 2), (4, 8, 2), (4, 8, 3), (8, 64, 3)])
def test_interleaved_1f1b_has_its_bubble_and_holds_what_korthikanti_says(pp: int, m: int, chunks: int) -> None:
    found = simulate(interleaved_1f1b(pp, m, chunks), Costs.equal(pp * chunks, 1 / chunks, 2 / chunks))
    assert found.cost == pytest.approx(3 * m + 3 * (pp - 1) / chunks)
    # In units of a whole rank's activations (arXiv 2205.05198): p (1 + (p - 1) / (p v)).
    held = found.order.most_held([1 / chunks] * pp * chunks)
    assert held[0] == pytest.approx(pp * (1 + (pp - 1) / (pp * chunks)))
    assert held[0] == max(held)


def test_interleaved_1f1b_refuses_what_megatron_refuses() -> None:
    with pytest.raises(ValueError, match="needs a multiple of 4 micro-batches, but there are 6"):
        interleaved_1f1b(4, 6, 2)


def their_instructions(kind: PipelineSchedule, pp: int, m: int, rank: int) -> list[Pass | Exchange]:
    """Return the order that DeepSpeed's class gives a rank, in our words."""
    folded = kind is PipelineSchedule.dualpipev
    maker = theirs.DualPipeVSchedule if folded else theirs.TrainSchedule
    counts: dict[tuple[str, int], int] = {}
    found: list[Pass | Exchange] = []
    sends: list[Pass] = []
    receives: list[Pass] = []
    for each in [one for step in maker(m, pp, rank).steps() for one in step]:
        phase = getattr(each, "phase", 0)
        number = counts.get((each.name, phase), 0)
        counts[each.name, phase] = number + 1
        stage = rank if phase == 0 else 2 * pp - 1 - rank
        named = {"ForwardPass": Work.forward, "BackwardPass": Work.backward}
        sent = {"SendActivation": Work.forward, "SendGrad": Work.backward}
        if each.name in named:
            found.append(Pass(named[each.name], stage, number))
        elif each.name in sent:
            sends.append(Pass(sent[each.name], stage, number))
        elif each.name == "RecvActivation":
            receives.append(Pass(Work.forward, stage - 1, number))
        elif each.name == "RecvGrad":
            receives.append(Pass(Work.backward, stage + 1, number))
        if (sends or receives) and (each.name == "CommitP2P" or not folded):
            found.append(Exchange(tuple(sends), tuple(receives)))
            sends, receives = [], []
    return found


@pytest.mark.parametrize(("pp", "m"), [shape for shape in SHAPES if shape[0] > 1])
def test_our_1f1b_is_deepspeeds_instruction_by_instruction(pp: int, m: int) -> None:
    order = trained_order(PipelineSchedule.f1b1, pp, m)
    for rank in range(pp):
        assert list(order.ranks[rank]) == their_instructions(PipelineSchedule.f1b1, pp, m, rank)
        # DeepSpeed keeps a buffer for each micro-batch in flight, and at least two.
        assert theirs.TrainSchedule(m, pp, rank).num_pipe_buffers() == max(2, order.in_flight[rank])


@pytest.mark.parametrize(("pp", "m"), FOLDED)
def test_our_dualpipev_is_deepspeeds_instruction_by_instruction(pp: int, m: int) -> None:
    order = trained_order(PipelineSchedule.dualpipev, pp, m)
    for rank in range(pp):
        theirs_here = their_instructions(PipelineSchedule.dualpipev, pp, m, rank)
        assert len(order.ranks[rank]) == len(theirs_here)
        for ours, each in zip(order.ranks[rank], theirs_here, strict=True):
            # Messages of one exchange go at once: their order among each other says nothing.
            if isinstance(ours, Exchange) and isinstance(each, Exchange):
                assert sorted(ours.sends) == sorted(each.sends)
                assert sorted(ours.receives) == sorted(each.receives)
            else:
                assert ours == each


def test_dualpipev_refuses_what_deepspeed_refuses() -> None:
    with pytest.raises(ValueError, match="needs at least 8 micro-batches, but there are 7"):
        dualpipev(4, 7)


def played_slowly(order: Order, costs: Costs) -> float:
    """Return the makespan by asking all rules again and again until no time changes."""
    ends: dict[Any, float] = {}
    for _ in range(sum(map(len, order.ranks)) + 2):
        before = dict(ends)
        arrivals: dict[Pass, list[float]] = {}
        for instructions in order.ranks:
            clock = 0.0
            for each in instructions:
                if isinstance(each, Exchange):
                    for one in (*each.sends, *each.receives):
                        arrivals.setdefault(one, []).append(clock)
                    clock = max([clock, *(ends.get(("message", one), 0.0) for one in (*each.sends, *each.receives))])
                    continue
                needed = needs(each, order.stages)
                if needed is not None and not order.is_blocking:
                    boundary = min(needed.stage, each.stage)
                    clock = max(clock, ends.get(needed, 0.0) + costs.message[boundary])
                clock += (costs.forward, costs.backward, costs.weights)[each.work][each.stage]
                ends[each] = clock
        for one, (first, second) in arrivals.items():
            boundary = one.stage if one.work is Work.forward else one.stage - 1
            ends["message", one] = max(first, second) + costs.message[boundary]
        if ends == before:
            return max(ends.values())
    raise AssertionError("the times never settle")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("maker", [one_forward_one_backward, deepspeed_1f1b, megatron_1f1b, dualpipev])
def test_times_are_those_of_a_slow_oracle(maker: Maker, seed: int) -> None:
    pp, m = random.Random(seed).choice([(2, 5), (3, 7), (4, 9), (3, 6)])
    order = maker(pp, m)
    costs = random_costs(order.stages, seed)
    assert makespan(order, costs) == pytest.approx(played_slowly(order, costs), rel=1e-12)
    assert simulate(order, costs).makespan == makespan(order, costs)


def test_two_ranks_and_one_micro_batch_by_hand() -> None:
    costs = Costs([1.0, 2.0], [3.0, 4.0], [0.5])
    for maker in (one_forward_one_backward, *BLOCKING):
        found = simulate(maker(2, 1), costs)
        assert [[(span.begin, span.end) for span in spans] for spans in found.ranks] == [
            [(0.0, 1.0), (8.0, 11.0)],
            [(1.5, 3.5), (3.5, 7.5)],
        ]
        assert found.makespan == 11.0
        assert found.busy == (4.0, 6.0)
        assert found.idle == (7.0, 5.0)
        assert found.idle_fraction == pytest.approx(12 / 22)
        assert found.cost == 11.0
        assert found.bubble == pytest.approx(5 / 11)


def test_a_blocking_sender_waits_for_a_slow_receiver() -> None:
    costs = Costs([1.0, 10.0, 1.0], [1.0, 10.0, 1.0])

    def third_forward(maker: Maker) -> float:
        return next(span.begin for span in simulate(maker(3, 3), costs).ranks[0] if span.what.micro_batch == 2)

    # Rank 1 computes its first forward pass until 11, and only then takes the second result of rank 0.
    assert third_forward(one_forward_one_backward) == 2.0
    assert third_forward(deepspeed_1f1b) == third_forward(megatron_1f1b) == 11.0


@pytest.mark.parametrize("pp", [2, 4])
def test_messages_one_by_one_cost_more_than_messages_at_once_and_those_more_than_free_ones(pp: int) -> None:
    costs = Costs.equal(pp, 1.0, 2.0, message=0.1)
    free, at_once, one_by_one = (
        makespan(maker(pp, 64), costs) for maker in (one_forward_one_backward, megatron_1f1b, deepspeed_1f1b)
    )
    assert free < at_once < one_by_one
    # In the steady state a rank between two others waits for two messages at either end of each pass.
    between = 4 if pp > 2 else 2
    assert one_by_one == pytest.approx(64 * (3.0 + 0.1 * between), rel=0.1)


def test_an_order_in_which_ranks_wait_for_each_other_is_refused() -> None:
    up, down = Pass(Work.forward, 0, 0), Pass(Work.backward, 1, 0)
    good = deepspeed_1f1b(2, 1)
    first: list[Pass | Exchange] = [up, Exchange(receives=(down,)), Exchange(sends=(up,)), Pass(Work.backward, 0, 0)]
    crossed = Order((tuple(first), good.ranks[1]), (0, 1), 1, is_blocking=True)
    with pytest.raises(Deadlock, match="rank 0 stands before Exchange"):
        simulate(crossed, Costs.equal(2, 1.0, 2.0))
    silent = Order((good.ranks[0], good.ranks[1][:-1]), (0, 1), 1, is_blocking=True)
    with pytest.raises(Deadlock, match="rank 0 stands before Exchange"):
        simulate(silent, Costs.equal(2, 1.0, 2.0))
    backwards = Order((one_forward_one_backward(2, 1).ranks[0][::-1], good.passes[1]), (0, 1), 1, is_blocking=False)
    with pytest.raises(Deadlock, match="rank 0 stands before Pass"):
        simulate(backwards, Costs.equal(2, 1.0, 2.0))


@pytest.mark.parametrize("work", [Work.forward, Work.backward])
def test_a_rank_that_sends_what_it_has_not_computed_is_refused(work: Work) -> None:
    send = Exchange(sends=(Pass(work, 0, 0),))
    order = Order(((send, Pass(Work.forward, 0, 0)), ()), (0, 1), 1, is_blocking=True)
    with pytest.raises(Deadlock, match="rank 0 stands before Exchange"):
        simulate(order, Costs.equal(2, 1.0, 2.0))


def test_costs_of_another_number_of_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="costs of 2 stages and 1 boundaries"):
        simulate(deepspeed_1f1b(2, 1), Costs([1.0], [2.0]))


def test_weights_that_an_order_does_not_put_off_are_a_part_of_backward() -> None:
    split, whole = Costs.equal(3, 1.0, 1.5, weights=0.5), Costs.equal(3, 1.0, 2.0)
    assert makespan(deepspeed_1f1b(3, 5), split) == makespan(deepspeed_1f1b(3, 5), whole)


@pytest.mark.parametrize("maker", [one_forward_one_backward, deepspeed_1f1b, megatron_1f1b, dualpipev, zero_bubble_h1])
def test_every_rank_computes_one_pass_at_a_time_and_after_what_it_needs(maker: Maker) -> None:
    order = maker(4, 9)
    costs = Costs(*(random_costs(order.stages, 1).__dict__[name] for name in ("forward", "backward", "message")))
    found: Timeline = simulate(order, costs)
    ends = {span.what: span.end for spans in found.ranks for span in spans}
    for spans in found.ranks:
        assert all(a.end <= b.begin + 1e-9 for a, b in pairwise(spans))
        for span in spans:
            needed = needs(span.what, order.stages)
            is_far = needed is not None and order.owners[needed.stage] != order.owners[span.what.stage]
            late = costs.message[min(needed.stage, span.what.stage)] if needed is not None and is_far else 0.0
            assert needed is None or ends[needed] + late <= span.begin + 1e-9
