from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trainer.errors import NumericsError
from trainer.generation.sampling import Sampling, next_token

MINUS_INF = float("-inf")


def draw(
    logits: list[float],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    count: int = 400,
) -> torch.Tensor:
    """Return the share of each id among `count` draws, all of one generator."""
    rows = torch.tensor([logits]).expand(count, -1)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids = next_token(rows, sampling, [torch.Generator().manual_seed(0)] * count)
    assert ids.shape == (count,)
    assert ids.dtype == torch.int64
    return torch.bincount(ids, minlength=len(logits)).double() / count


def drawn(shares: torch.Tensor) -> list[int]:
    return shares.nonzero().flatten().tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(wrong: float, temperature: float) -> None:
    with pytest.raises(NumericsError, match="the weights hold NaN or Inf"):
        next_token(torch.tensor([[0.0, 1.0], [wrong, 0.0]]), Sampling(temperature=temperature), [torch.Generator()] * 2)


def test_greedy_takes_the_likeliest_of_each_row_whatever_the_generator() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0], [5.0, MINUS_INF, 4.9]])
    for seed in range(3):
        generators = [torch.Generator().manual_seed(seed)] * 2
        assert next_token(logits, Sampling(temperature=0.0), generators).tolist() == [1, 0]
        assert next_token(logits, Sampling(temperature=0.0, top_k=1, top_p=0.1), generators).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    logits = [0.0, 1.0, -1.0, 0.5]
    count = 40_000
    expected = torch.tensor(logits).double().div(temperature).softmax(0)
    found = draw(logits, temperature, count=count)
    # Five standard deviations of a binomial share.
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    shares = [float(draw([0.0, 1.0], temperature, count=4000)[1]) for temperature in (0.2, 1.0, 5.0)]
    assert shares[0] > 0.97
    assert shares[0] > shares[1] > shares[2] > 0.5


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 1e-300, 5e-324])
def test_the_smallest_temperatures_are_greedy_and_never_a_fault(temperature: float) -> None:
    assert drawn(draw([100.0, -3.0, 99.0, MINUS_INF], temperature)) == [0]


def test_the_largest_temperature_is_uniform_and_still_draws_nothing_forbidden() -> None:
    assert drawn(draw([100.0, -100.0, MINUS_INF, 0.0], 1e300)) == [0, 1, 3]


@pytest.mark.parametrize(
    ("top_k", "expected"), [(1, [2]), (2, [0, 2]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3])]
)
def test_top_k_keeps_so_many(top_k: int, expected: list[int]) -> None:
    assert drawn(draw([1.0, 0.5, 1.5, 0.8], top_k=top_k)) == expected


def test_top_k_renormalises_over_what_it_keeps() -> None:
    count = 40_000
    found = draw([1.0, 0.0, 2.0, -1.0], top_k=2, count=count)
    share = 1 / (1 + math.exp(-1.0))
    assert float(found[2]) == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / count))


def test_top_k_keeps_no_more_where_logits_are_equal() -> None:
    assert len(drawn(draw([1.0, 1.0, 1.0, 1.0], top_k=2))) == 2
    assert len(drawn(draw([2.0, 1.0, 1.0, 1.0], top_k=1))) == 1


def log(*probabilities: float) -> list[float]:
    return [math.log(p) if p else MINUS_INF for p in probabilities]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.79, [1, 3]),
        (0.81, [0, 1, 3]),
        (0.96, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, expected: list[int]) -> None:
    assert drawn(draw(log(0.15, 0.5, 0.05, 0.3), top_p=top_p, count=2000)) == expected


def test_top_p_counts_after_temperature_and_top_k() -> None:
    # Of the two that top_k keeps, the first has 5/8: enough for 0.6, though it has only 0.5 of all.
    assert drawn(draw(log(0.15, 0.5, 0.05, 0.3), top_k=2, top_p=0.6)) == [1]
    assert drawn(draw(log(0.15, 0.5, 0.05, 0.3), top_p=0.6)) == [1, 3]
    assert drawn(draw(log(0.15, 0.5, 0.05, 0.3), temperature=0.5, top_p=0.6)) == [1]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.999), (5, 0.999)])
def test_what_has_no_probability_is_never_drawn(top_k: int, top_p: float) -> None:
    logits = [MINUS_INF] * 6
    logits[2], logits[4] = 0.0, -1.0
    assert drawn(draw(logits, temperature=3.0, top_k=top_k, top_p=top_p, count=5000)) == [2, 4]


@pytest.mark.parametrize(("min_p", "expected"), [(0.01, [0, 1, 2, 3]), (0.29, [0, 1, 3]), (0.31, [1, 3]), (1.0, [1])])
def test_min_p_keeps_what_has_that_share_of_the_likeliest(min_p: float, expected: list[int]) -> None:
    assert drawn(draw(log(0.15, 0.5, 0.05, 0.3), min_p=min_p, count=2000)) == expected


def test_min_p_counts_after_the_temperature_like_transformers() -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper

    logits = torch.randn(64, generator=torch.Generator().manual_seed(3)) * 2
    ids: Any = torch.zeros(1, 1, dtype=torch.int64)
    warm: Any = TemperatureLogitsWarper(1.7)(ids, logits[None])
    kept = MinPLogitsWarper(0.1)(ids, warm)[0].isfinite()
    assert 1 < int(kept.sum()) < 64
    assert drawn(draw(logits.tolist(), temperature=1.7, min_p=0.1, count=4000)) == drawn(kept.double())


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    texts = torch.tensor([[0, 1, 1, 5], [2, 3, 4, 11], [7, 7, 7, 7]])
    used = torch.zeros(3, 12, dtype=torch.bool).scatter(1, texts, True)
    for penalty in (0.5, 1.3, 20.0):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(texts, logits.clone()).argmax(dim=-1)
        found = next_token(logits, Sampling(repetition_penalty=penalty, temperature=0.0), [], used)
        assert found.tolist() == expected.tolist()
    assert next_token(logits, Sampling(repetition_penalty=20.0, temperature=0.0), [], used)[0] not in (0, 1, 5)


def test_rows_are_cut_each_by_its_own_probabilities() -> None:
    logits = torch.tensor([log(0.9, 0.1, 0.0), log(0.1, 0.1, 0.8)]).repeat(300, 1)
    ids = next_token(logits, Sampling(top_p=0.5), [torch.Generator().manual_seed(0)] * 600)
    assert ids.tolist() == [0, 2] * 300


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_row_is_drawn_by_its_own_seed_whatever_stands_beside_it() -> None:
    logits = torch.zeros(3, 1000)
    together = next_token(logits, Sampling(), generators(1, 2, 3)).tolist()
    assert [next_token(logits[:1], Sampling(), generators(seed)).item() for seed in (1, 2, 3)] == together
    assert next_token(logits, Sampling(), generators(3, 1, 1)).tolist() == [together[2], together[0], together[0]]
    assert len(set(together)) == 3


def test_the_logits_stay_as_they_are() -> None:
    logits = torch.randn(2, 8)
    before = logits.clone()
    used = torch.ones(2, 8, dtype=torch.bool)
    sampling = Sampling(repetition_penalty=1.2, temperature=0.7, top_k=3, top_p=0.5, min_p=0.1)
    next_token(logits, sampling, generators(1, 2), used)
    assert torch.equal(logits, before)
