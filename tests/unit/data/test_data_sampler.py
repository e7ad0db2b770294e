from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.sampler import SampleOrder

SEEDS = st.integers(0, 2**63 - 1)


def epoch(order: SampleOrder, number: int) -> list[int]:
    samples: list[int] = order.permuted(np.arange(order.num_samples), number).tolist()
    return samples


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 5000), SEEDS, st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(num_samples: int, seed: int, number: int) -> None:
    assert sorted(epoch(SampleOrder(num_samples, seed), number)) == list(range(num_samples))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4096, 4097])
def test_sizes_around_powers_are_permutations(num_samples: int) -> None:
    for seed in range(20):
        assert sorted(epoch(SampleOrder(num_samples, seed), seed)) == list(range(num_samples))


@settings(deadline=None)
@given(st.integers(1, 200), SEEDS, st.integers(1, 25), st.integers(1, 10))
def test_a_step_is_a_window_of_the_run(num_samples: int, seed: int, size: int, steps: int) -> None:
    order = SampleOrder(num_samples, seed)
    run = np.concatenate([order.samples(step * size, size) for step in range(steps)]).tolist()
    epochs = -(-len(run) // num_samples)
    assert run == [sample for number in range(epochs) for sample in epoch(order, number)][: len(run)]


@settings(deadline=None)
@given(st.integers(1, 5000), SEEDS, st.integers(0, 10**9), st.integers(1, 64))
def test_the_order_is_a_function_of_the_seed(num_samples: int, seed: int, place: int, size: int) -> None:
    used = SampleOrder(num_samples, seed)
    used.samples(0, 7)
    fresh = SampleOrder(num_samples, seed).samples(place, size)
    assert used.samples(place, size).tolist() == fresh.tolist()
    assert fresh.dtype == np.int64


@given(st.integers(50, 5000), SEEDS)
@settings(deadline=None)
def test_epochs_and_seeds_differ(num_samples: int, seed: int) -> None:
    order = SampleOrder(num_samples, seed)
    orders = [epoch(order, 0), epoch(order, 1), epoch(SampleOrder(num_samples, seed + 1), 0), list(range(num_samples))]
    assert len({tuple(samples) for samples in orders}) == 4


def test_the_order_of_a_seed_never_changes() -> None:
    # A run that is resumed with a newer version must go on with the same data.
    assert SampleOrder(1000, 1234).samples(0, 8).tolist() == [675, 661, 45, 199, 283, 288, 732, 786]
    assert SampleOrder(1000, 1234).samples(1000, 8).tolist() == [606, 840, 318, 568, 619, 713, 837, 475]


def test_samples_are_spread() -> None:
    """Neighbours in the data do not stay neighbours, and no place of the epoch prefers a part of the data."""
    samples = np.array(epoch(SampleOrder(4000, 7), 0))
    assert (np.abs(np.diff(samples)) == 1).sum() < 12
    for part in samples.reshape(10, 400):
        assert abs(part.mean() - 2000) < 250
    assert abs(np.corrcoef(np.arange(4000), samples)[0, 1]) < 0.06


def test_a_data_set_of_any_size_needs_no_table() -> None:
    order = SampleOrder(10**15, 1)
    samples = order.samples(10**11, 256)
    assert len(set(samples.tolist())) == 256
    assert samples.min() >= 0
    assert samples.max() < 10**15


def test_what_cannot_be_ordered() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, but is 0"):
        SampleOrder(0, 1)
    with pytest.raises(ValueError, match="places are counted from 0, but first is -1"):
        SampleOrder(5, 1).samples(-1, 2)
