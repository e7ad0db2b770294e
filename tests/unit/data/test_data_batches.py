from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.data_room import config, told
from trainer.config.plan import RunPlan, make_plan
from trainer.data.batches import BatchSource, training_batches, validation_batches
from trainer.data.capacity import check_capacity
from trainer.data.dataset import TokenDataset
from trainer.data.prepare import PreparedData
from trainer.data.sampler import SampleOrder

CPU = torch.device("cpu")
SEQ_LENGTH = 5
GLOBAL_BATCH = 12


def data(folder: Path, train: npt.ArrayLike, validation: npt.ArrayLike = (), dtype: str = "uint16") -> PreparedData:
    folder.mkdir(parents=True, exist_ok=True)
    train, validation = np.asarray(train, dtype), np.asarray(validation, dtype)
    train.tofile(folder / "train.bin")
    validation.tofile(folder / "validation.bin")
    return PreparedData(folder, 10**4, dtype, len(train), len(validation), None, "fingerprint", "content")


def plan(dp: int = 1, micro: int = 1, **values: object) -> RunPlan:
    keys: dict[str, Any] = {
        "layout__data_parallel_size": dp,
        "batch__micro_batch_size": micro,
        "batch__global_batch_size": GLOBAL_BATCH,
        "model__seq_length": SEQ_LENGTH,
        "data__source": "synthetic",
    }
    return make_plan(config(**(keys | values)), vocab_size=10**4)


def layouts(size: int) -> list[tuple[int, int]]:
    return [(dp, micro) for dp in range(1, size + 1) for micro in range(1, size + 1) if size % (dp * micro) == 0]


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    return data(tmp_path / "shards", np.arange(401), np.arange(1000, 1041))


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 30), st.none() | st.integers(1, 9), st.sampled_from(["uint16", "uint32"]))
def test_every_token_is_a_label_once(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, seq_length: int, limit: int | None, dtype: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "packed.bin"
    np.arange(tokens, dtype=dtype).tofile(path)
    dataset = TokenDataset(path, dtype, seq_length, limit)
    whole = max(0, (tokens - 1) // seq_length)
    assert len(dataset) == (whole if limit is None else min(whole, limit))
    samples = [dataset.sample(index) for index in range(len(dataset))]
    assert [label for sample in samples for label in sample[1:]] == list(range(1, len(dataset) * seq_length + 1))
    assert [token for sample in samples for token in sample[:-1]] == list(range(len(dataset) * seq_length))
    # Less than one sequence is left over.
    assert limit is not None or tokens - 1 - len(dataset) * seq_length < seq_length


def test_samples_are_int64_copies(prepared: PreparedData) -> None:
    dataset = TokenDataset(prepared.folder / "train.bin", "uint16", SEQ_LENGTH)
    sample = dataset.sample(3)
    assert sample.dtype == np.int64
    sample[:] = 0
    assert dataset.sample(3).tolist() == [15, 16, 17, 18, 19, 20]


@pytest.mark.parametrize("index", [-1, 80, 10**9])
def test_a_sample_that_is_not_there(prepared: PreparedData, index: int) -> None:
    dataset = TokenDataset(prepared.folder / "train.bin", "uint16", SEQ_LENGTH)
    assert len(dataset) == 80
    with pytest.raises(IndexError, match=rf"sample must be in \[0, 80\), but is {index}"):
        dataset.sample(index)


def global_batch(prepared: PreparedData, dp: int, micro: int, step: int) -> list[list[int]]:
    """Put the micro-batches of all ranks back together, as the docstring of BatchSource says they lie."""
    ranks = [training_batches(prepared, plan(dp, micro), rank, CPU).micro_batches(step) for rank in range(dp)]
    rows: list[list[int]] = []
    for index in range(GLOBAL_BATCH // (dp * micro)):
        for rank in range(dp):
            batch = ranks[rank][index]
            assert batch.input_ids.shape == batch.labels.shape == (micro, SEQ_LENGTH)
            assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
            assert batch.input_ids.is_contiguous()
            assert batch.labels.is_contiguous()
            assert torch.equal(batch.input_ids[:, 1:], batch.labels[:, :-1])
            rows += torch.cat([batch.input_ids, batch.labels[:, -1:]], 1).tolist()
    assert all(len(rank) == GLOBAL_BATCH // (dp * micro) for rank in ranks)
    return rows


@pytest.mark.parametrize(("dp", "micro"), layouts(GLOBAL_BATCH))
def test_every_layout_trains_on_the_same_samples_in_the_same_order(prepared: PreparedData, dp: int, micro: int) -> None:
    order = SampleOrder(80, 1234)
    for step in (1, 2, 7, 8, 1000):
        starts = SEQ_LENGTH * order.global_batch(step, GLOBAL_BATCH)
        expected = [list(range(start, start + SEQ_LENGTH + 1)) for start in starts.tolist()]
        assert global_batch(prepared, dp, micro, step) == expected


def test_an_epoch_trains_on_every_sample_once(tmp_path: Path) -> None:
    prepared = data(tmp_path, np.arange(GLOBAL_BATCH * 4 * SEQ_LENGTH + 3))
    source = training_batches(prepared, plan(), 0, CPU)
    seen = [label for step in range(1, 5) for batch in source.micro_batches(step) for label in batch.labels.flatten()]
    assert sorted(int(label) for label in seen) == list(range(1, GLOBAL_BATCH * 4 * SEQ_LENGTH + 1))


def test_the_seed_decides_the_order(prepared: PreparedData) -> None:
    def first(seed: int) -> list[int]:
        batches = training_batches(prepared, plan(train__seed=seed), 0, CPU).micro_batches(1)
        return [int(batch.input_ids[0, 0]) for batch in batches]

    assert first(1) == first(1)
    assert first(1) != first(2)


def rolling(source: BatchSource, steps: int = 3) -> list[str]:
    hashes = [""]
    for step in range(1, steps + 1):
        hashes.append(source.ledger(hashes[-1], step))
    return hashes[1:]


def test_the_ledger_is_the_same_for_every_layout_and_rank(prepared: PreparedData) -> None:
    expected = rolling(training_batches(prepared, plan(), 0, CPU))
    assert len(set(expected)) == 3
    for dp, micro in layouts(GLOBAL_BATCH):
        for rank in (0, dp - 1):
            assert rolling(training_batches(prepared, plan(dp, micro), rank, CPU)) == expected


def test_the_ledger_does_not_depend_on_the_type_of_the_file(tmp_path: Path) -> None:
    ledgers = [
        rolling(training_batches(data(tmp_path / dtype, np.arange(401), dtype=dtype), plan(), 0, CPU))
        for dtype in ("uint16", "uint32")
    ]
    assert ledgers[0] == ledgers[1]


def test_one_other_token_changes_the_ledger_from_its_step_on(tmp_path: Path) -> None:
    tokens = np.arange(401)
    base = training_batches(data(tmp_path / "base", tokens), plan(), 0, CPU)
    sample = int(SampleOrder(80, 1234).global_batch(2, GLOBAL_BATCH)[-1])
    changed = tokens.copy()
    changed[sample * SEQ_LENGTH + 2] += 1
    other = training_batches(data(tmp_path / "other", changed), plan(), 0, CPU)
    same = [left == right for left, right in zip(rolling(base), rolling(other), strict=True)]
    assert same == [True, False, False]


def test_the_ledger_depends_on_step_order_and_past(prepared: PreparedData) -> None:
    base = training_batches(prepared, plan(), 0, CPU)
    dataset = TokenDataset(prepared.folder / "train.bin", "uint16", SEQ_LENGTH)
    constant = BatchSource(dataset, lambda _step: np.arange(4), 1, 0, 1, CPU)
    swapped = BatchSource(dataset, lambda _step: np.arange(4)[::-1], 1, 0, 1, CPU)
    assert constant.ledger("", 1) == constant.ledger("", 1)
    assert len({constant.ledger("", 1), constant.ledger("", 2), constant.ledger("x", 1), swapped.ledger("", 1)}) == 4
    assert rolling(base) != rolling(training_batches(prepared, plan(train__seed=1), 0, CPU))


def test_validation_is_in_order_and_starts_again(prepared: PreparedData) -> None:
    rows: list[int] = []
    source = validation_batches(prepared, plan(micro=2, batch__global_batch_size=6), 0, CPU)
    for index in (1, 2, 3):
        rows += [int(first) for batch in source.micro_batches(index) for first in batch.input_ids[:, 0]]
    assert rows == [1000 + SEQ_LENGTH * (index % 8) for index in range(18)]
    assert [batch.labels.tolist() for batch in source.micro_batches(1)] == [
        batch.labels.tolist() for batch in source.micro_batches(1)
    ]


@pytest.mark.parametrize(("dp", "micro"), layouts(GLOBAL_BATCH))
def test_validation_is_the_same_for_every_layout(prepared: PreparedData, dp: int, micro: int) -> None:
    rows: dict[int, int] = {}
    for rank in range(dp):
        batches = validation_batches(prepared, plan(dp, micro), rank, CPU).micro_batches(2)
        for index, batch in enumerate(batches):
            for row, first in enumerate(batch.input_ids[:, 0].tolist()):
                rows[(index * dp + rank) * micro + row] = first
    assert [rows[i] for i in range(GLOBAL_BATCH)] == [1000 + SEQ_LENGTH * ((i + GLOBAL_BATCH) % 8) for i in range(12)]


def test_few_samples_are_seen_again_and_again(prepared: PreparedData) -> None:
    source = training_batches(prepared, plan(data__max_samples=GLOBAL_BATCH), 0, CPU)
    for step in (1, 2, 3):
        firsts = sorted(int(batch.input_ids[0, 0]) for batch in source.micro_batches(step))
        assert firsts == [SEQ_LENGTH * index for index in range(GLOBAL_BATCH)]


@pytest.mark.parametrize(("tokens", "samples"), [(60, 11), (1, 0), (0, 0), (5, 0)])
def test_data_smaller_than_a_batch(tmp_path: Path, tokens: int, samples: int) -> None:
    prepared = data(tmp_path, np.arange(tokens))
    expected = (
        "the training data must hold at least one global batch (12 sequences of 5 tokens), but hold "
        f"{tokens} tokens = {samples} sequences; use more data, or lower batch.global_batch_size or model.seq_length"
    )
    assert told(lambda: training_batches(prepared, plan(), 0, CPU)) == expected
    assert told(lambda: check_capacity(prepared, plan().config)) == expected


def test_data_of_exactly_one_batch(tmp_path: Path) -> None:
    prepared = data(tmp_path, np.arange(61))
    check_capacity(prepared, plan().config)
    assert len(training_batches(prepared, plan(), 0, CPU).micro_batches(5)) == 12


def test_fewer_samples_asked_for_than_a_batch_has(prepared: PreparedData) -> None:
    expected = (
        "data.max_samples (11) must be at least batch.global_batch_size (12); raise it, or lower "
        "batch.global_batch_size"
    )
    limited = plan(data__max_samples=11)
    assert told(lambda: training_batches(prepared, limited, 0, CPU)) == expected
    assert told(lambda: check_capacity(prepared, limited.config)) == expected


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_nothing_to_evaluate(tmp_path: Path, tokens: int) -> None:
    prepared = data(tmp_path, np.arange(100), np.arange(tokens))
    expected = (
        f"the validation data must hold at least one sequence of 5 tokens, but hold {tokens} tokens; "
        "use more data, raise data.validation_fraction, or set train.eval_every=0"
    )
    assert told(lambda: validation_batches(prepared, plan(), 0, CPU)) == expected
    assert told(lambda: check_capacity(prepared, plan(train__eval_every=1).config)) == expected
    check_capacity(prepared, plan(train__eval_every=0).config)


def test_one_sequence_is_enough_to_evaluate(tmp_path: Path) -> None:
    prepared = data(tmp_path, np.arange(100), np.arange(6))
    source = validation_batches(prepared, plan(), 0, CPU)
    assert [batch.input_ids.tolist() for batch in source.micro_batches(1)] == [[[0, 1, 2, 3, 4]]] * 12
