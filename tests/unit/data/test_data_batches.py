from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shards import prepared_of, shard_set, unread
from tests.unit.data.data_fixtures import config, told
from trainer.config.plan import RunPlan, make_plan
from trainer.data.batches import BatchSource, needs_of, training_batches, validation_batches
from trainer.data.capacity import check_capacity
from trainer.data.dataset import SampleStream, TokenDataset
from trainer.data.picks import Needs, of_one_source
from trainer.data.prepared import PreparedData, stream_identity
from trainer.data.sampler import SampleOrder
from trainer.errors import DataError
from trainer.micro_batch import Place

CPU = torch.device("cpu")
SEQ_LENGTH = 5
GLOBAL_BATCH = 12
TOKENS = GLOBAL_BATCH * SEQ_LENGTH


def data(folder: Path, train: npt.ArrayLike, validation: npt.ArrayLike = (), dtype: str = "uint16") -> PreparedData:
    return prepared_of(folder, [train], [validation], dtype)


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
@given(st.integers(0, 200), st.integers(1, 30), st.none() | st.integers(1, 9), st.sampled_from(["uint16", "int32"]))
def test_every_token_is_a_label_once(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, seq_length: int, limit: int | None, dtype: str
) -> None:
    dataset = TokenDataset(shard_set(tmp_path_factory.getbasetemp(), [np.arange(tokens)], dtype), seq_length, limit)
    whole = max(0, (tokens - 1) // seq_length)
    assert len(dataset) == (whole if limit is None else min(whole, limit))
    samples = [dataset.sample(index) for index in range(len(dataset))]
    assert [label for sample in samples for label in sample[1:]] == list(range(1, len(dataset) * seq_length + 1))
    assert [token for sample in samples for token in sample[:-1]] == list(range(len(dataset) * seq_length))
    # Less than one sequence is left over.
    assert limit is not None or tokens - 1 - len(dataset) * seq_length < seq_length


def test_samples_are_int64_copies(prepared: PreparedData) -> None:
    dataset = TokenDataset(prepared.shards("train"), SEQ_LENGTH)
    sample = dataset.sample(3)
    assert sample.dtype == np.int64
    sample[:] = 0
    assert dataset.sample(3).tolist() == [15, 16, 17, 18, 19, 20]


@pytest.mark.parametrize("index", [-1, 80, 10**9])
def test_a_sample_that_is_not_there(prepared: PreparedData, index: int) -> None:
    dataset = TokenDataset(prepared.shards("train"), SEQ_LENGTH)
    assert len(dataset) == 80
    with pytest.raises(IndexError, match=rf"sample must be in \[0, 80\), but is {index}"):
        dataset.sample(index)


def global_batch(prepared: PreparedData, dp: int, micro: int, step: int) -> list[list[int]]:
    """Put the micro-batches of all ranks back together, as the docstring of BatchSource says they lie."""
    ranks = [
        training_batches(prepared, plan(dp, micro), SEQ_LENGTH, rank, CPU).micro_batches((step - 1) * TOKENS)
        for rank in range(dp)
    ]
    rows: list[list[int]] = []
    for index in range(GLOBAL_BATCH // (dp * micro)):
        for rank in range(dp):
            batch = ranks[rank][index]
            assert batch.input_ids.shape == batch.targets().shape == (micro, SEQ_LENGTH)
            assert batch.input_ids.dtype == batch.targets().dtype == torch.int64
            assert batch.input_ids.is_contiguous()
            assert batch.targets().is_contiguous()
            assert torch.equal(batch.input_ids[:, 1:], batch.targets()[:, :-1])
            rows += torch.cat([batch.input_ids, batch.targets()[:, -1:]], 1).tolist()
    assert all(len(rank) == GLOBAL_BATCH // (dp * micro) for rank in ranks)
    return rows


@pytest.mark.parametrize(("dp", "micro"), layouts(GLOBAL_BATCH))
def test_every_layout_trains_on_the_same_samples_in_the_same_order(prepared: PreparedData, dp: int, micro: int) -> None:
    order = SampleOrder(80, 1234)
    for step in (1, 2, 7, 8, 1000):
        starts = SEQ_LENGTH * order.samples((step - 1) * GLOBAL_BATCH, GLOBAL_BATCH)
        expected = [list(range(start, start + SEQ_LENGTH + 1)) for start in starts.tolist()]
        assert global_batch(prepared, dp, micro, step) == expected


def test_micro_batches_know_their_place_in_a_step_and_nowhere_else(tmp_path: Path) -> None:
    prepared = data(tmp_path, np.arange(1000))
    source = training_batches(prepared, plan(2, 3, train__seed=5), SEQ_LENGTH, 1, CPU)
    places = [batch.place for batch in source.micro_batches(0, step=4)]
    assert places == [Place(5, 4, (2 * index + 1) * 3) for index in range(GLOBAL_BATCH // 6)]
    assert [(batch.place, batch.weights) for batch in source.micro_batches(0)] == [(None, None)] * len(places)


def test_an_epoch_trains_on_every_sample_once(tmp_path: Path) -> None:
    prepared = data(tmp_path, np.arange(GLOBAL_BATCH * 4 * SEQ_LENGTH + 3))
    source = training_batches(prepared, plan(), SEQ_LENGTH, 0, CPU)
    seen = [
        label
        for step in range(4)
        for batch in source.micro_batches(step * TOKENS)
        for label in batch.targets().flatten()
    ]
    assert sorted(int(label) for label in seen) == list(range(1, GLOBAL_BATCH * 4 * SEQ_LENGTH + 1))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 9), st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=1, max_size=12))
def test_other_batch_sizes_and_sequence_lengths_on_the_way_lose_and_repeat_nothing(
    tmp_path_factory: pytest.TempPathFactory, sample_length: int, batches: list[tuple[int, int]]
) -> None:
    tokens = np.arange(40 * sample_length + 1)
    dataset = TokenDataset(shard_set(tmp_path_factory.getbasetemp(), [tokens]), sample_length)
    stream = SampleStream([dataset], of_one_source(SampleOrder(40, 7).samples))
    position, inputs, labels = 0, [], []
    for count, seq_length in batches:
        found = stream.sequences(position + seq_length * np.arange(count), seq_length)
        assert found.ids is not None
        assert found.labels is not None
        assert found.ids.shape == found.labels.shape == (count, seq_length)
        inputs += found.ids.flatten().tolist()
        labels += found.labels.flatten().tolist()
        position += count * seq_length
    order = SampleOrder(40, 7).samples(0, 1 + position // sample_length)
    expected = [token for sample in order for token in dataset.sample(int(sample))[:-1].tolist()][:position]
    assert inputs == expected
    assert labels == [token + 1 for token in expected]


def test_a_run_may_change_its_batch_and_go_on_where_it_was(prepared: PreparedData) -> None:
    before = training_batches(prepared, plan(), SEQ_LENGTH, 0, CPU)
    after = training_batches(prepared, plan(dp=2, batch__global_batch_size=4, model__seq_length=15), SEQ_LENGTH, 0, CPU)
    second = before.micro_batches(TOKENS)
    longer = after.micro_batches(TOKENS)
    assert [len(second), len(longer), after.tokens] == [12, 2, 60]
    assert longer[0].input_ids.flatten().tolist() == torch.cat([b.input_ids for b in second[:3]]).flatten().tolist()
    assert longer[1].targets().flatten().tolist() == torch.cat([b.targets() for b in second[6:9]]).flatten().tolist()


def test_the_identity_of_a_stream(prepared: PreparedData) -> None:
    base = stream_identity(prepared, plan().config)
    assert stream_identity(prepared, plan(dp=2, batch__global_batch_size=24).config) == base
    others = [
        stream_identity(prepared, plan(train__seed=1).config),
        stream_identity(prepared, plan(data__max_samples=50).config),
        stream_identity(replace(prepared, manifest=unread(prepared.folder, content="other").manifest), plan().config),
    ]
    assert len({base, *others}) == 4


def test_data_without_one_sample_of_the_first_length(tmp_path: Path) -> None:
    prepared = data(tmp_path, np.arange(100))
    expected = (
        "the training data must hold at least one sample of 100 tokens, the sequence length that this run began with, "
        "but hold 100 tokens; use more data"
    )
    assert told(lambda: training_batches(prepared, plan(), 100, 0, CPU)) == expected


def test_the_seed_decides_the_order(prepared: PreparedData) -> None:
    def first(seed: int) -> list[int]:
        batches = training_batches(prepared, plan(train__seed=seed), SEQ_LENGTH, 0, CPU).micro_batches(0)
        return [int(batch.input_ids[0, 0]) for batch in batches]

    assert first(1) == first(1)
    assert first(1) != first(2)


def rolling(source: BatchSource, steps: int = 3) -> list[str]:
    hashes = [""]
    for step in range(1, steps + 1):
        hashes.append(source.ledger(hashes[-1], (step - 1) * TOKENS))
    return hashes[1:]


def test_the_ledger_is_the_same_for_every_layout_and_rank(prepared: PreparedData) -> None:
    expected = rolling(training_batches(prepared, plan(), SEQ_LENGTH, 0, CPU))
    assert len(set(expected)) == 3
    for dp, micro in layouts(GLOBAL_BATCH):
        for rank in (0, dp - 1):
            assert rolling(training_batches(prepared, plan(dp, micro), SEQ_LENGTH, rank, CPU)) == expected


def test_the_ledger_does_not_depend_on_the_type_of_the_file(tmp_path: Path) -> None:
    ledgers = [
        rolling(training_batches(data(tmp_path / dtype, np.arange(401), dtype=dtype), plan(), SEQ_LENGTH, 0, CPU))
        for dtype in ("uint16", "int32")
    ]
    assert ledgers[0] == ledgers[1]


def test_one_other_token_changes_the_ledger_from_its_step_on(tmp_path: Path) -> None:
    tokens = np.arange(401)
    base = training_batches(data(tmp_path / "base", tokens), plan(), SEQ_LENGTH, 0, CPU)
    sample = int(SampleOrder(80, 1234).samples(GLOBAL_BATCH, GLOBAL_BATCH)[-1])
    changed = tokens.copy()
    changed[sample * SEQ_LENGTH + 2] += 1
    other = training_batches(data(tmp_path / "other", changed), plan(), SEQ_LENGTH, 0, CPU)
    same = [left == right for left, right in zip(rolling(base), rolling(other), strict=True)]
    assert same == [True, False, False]


def test_the_ledger_depends_on_step_order_and_past(prepared: PreparedData) -> None:
    base = training_batches(prepared, plan(), SEQ_LENGTH, 0, CPU)
    dataset = TokenDataset(prepared.shards("train"), SEQ_LENGTH)

    def source(samples: Callable[[int, int], npt.NDArray[np.int64]]) -> BatchSource:
        return BatchSource(SampleStream([dataset], of_one_source(samples)), plan(), 0, CPU)

    constant = source(lambda first, count: np.arange(first, first + count) % GLOBAL_BATCH)
    swapped = source(lambda first, count: -1 - np.arange(first, first + count) % GLOBAL_BATCH + GLOBAL_BATCH)
    ledgers = [constant.ledger("", 0), constant.ledger("", TOKENS), constant.ledger("x", 0), swapped.ledger("", 0)]
    assert constant.ledger("", 0) == ledgers[0]
    assert len(set(ledgers)) == 4
    assert rolling(base) != rolling(training_batches(prepared, plan(train__seed=1), SEQ_LENGTH, 0, CPU))


def test_validation_is_in_order_and_starts_again(prepared: PreparedData) -> None:
    rows: list[int] = []
    source = validation_batches(prepared, plan(micro=2, batch__global_batch_size=6), 0, CPU)[0].batches
    for index in range(3):
        rows += [int(first) for batch in source.micro_batches(index * source.tokens) for first in batch.input_ids[:, 0]]
    assert rows == [1000 + SEQ_LENGTH * (index % 8) for index in range(18)]
    assert [batch.targets().tolist() for batch in source.micro_batches(0)] == [
        batch.targets().tolist() for batch in source.micro_batches(0)
    ]


@pytest.mark.parametrize(("dp", "micro"), layouts(GLOBAL_BATCH))
def test_validation_is_the_same_for_every_layout(prepared: PreparedData, dp: int, micro: int) -> None:
    rows: dict[int, int] = {}
    for rank in range(dp):
        batches = validation_batches(prepared, plan(dp, micro), rank, CPU)[0].batches.micro_batches(TOKENS)
        for index, batch in enumerate(batches):
            for row, first in enumerate(batch.input_ids[:, 0].tolist()):
                rows[(index * dp + rank) * micro + row] = first
    assert [rows[i] for i in range(GLOBAL_BATCH)] == [1000 + SEQ_LENGTH * ((i + GLOBAL_BATCH) % 8) for i in range(12)]


def test_few_samples_are_seen_again_and_again(prepared: PreparedData) -> None:
    source = training_batches(prepared, plan(data__max_samples=GLOBAL_BATCH), SEQ_LENGTH, 0, CPU)
    for step in range(3):
        firsts = sorted(int(batch.input_ids[0, 0]) for batch in source.micro_batches(step * TOKENS))
        assert firsts == [SEQ_LENGTH * index for index in range(GLOBAL_BATCH)]


@pytest.mark.parametrize(("tokens", "samples"), [(60, 11), (1, 0), (0, 0), (5, 0)])
def test_data_smaller_than_a_batch(tmp_path: Path, tokens: int, samples: int) -> None:
    prepared = data(tmp_path, np.arange(tokens))
    expected = (
        "the training data must hold at least one global batch (12 sequences of 5 tokens), but hold "
        f"{tokens} tokens = {samples} sequences; use more data, or lower batch.global_batch_size or model.seq_length"
    )
    assert told(lambda: training_batches(prepared, plan(), SEQ_LENGTH, 0, CPU)) == expected
    assert told(lambda: check_capacity(prepared, plan().config)) == expected


def test_data_of_exactly_one_batch(tmp_path: Path) -> None:
    prepared = data(tmp_path, np.arange(61))
    check_capacity(prepared, plan().config)
    assert len(training_batches(prepared, plan(), SEQ_LENGTH, 0, CPU).micro_batches(4 * TOKENS)) == 12


def test_fewer_samples_asked_for_than_a_batch_has(prepared: PreparedData) -> None:
    expected = (
        "data.max_samples (11) must be at least batch.global_batch_size (12); raise it, or lower "
        "batch.global_batch_size"
    )
    limited = plan(data__max_samples=11)
    assert told(lambda: training_batches(prepared, limited, SEQ_LENGTH, 0, CPU)) == expected
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
    source = validation_batches(prepared, plan(), 0, CPU)[0].batches
    assert [batch.input_ids.tolist() for batch in source.micro_batches(0)] == [[[0, 1, 2, 3, 4]]] * 12


def test_an_id_beyond_the_vocabulary_is_refused_and_its_sample_named(tmp_path: Path) -> None:
    tokens = np.arange(401)
    tokens[7 * SEQ_LENGTH + 3] = 10**4
    source = training_batches(data(tmp_path, tokens), plan(), SEQ_LENGTH, 0, CPU)
    places = {position: source.sample_ids(position) for position in range(0, 80 * SEQ_LENGTH, TOKENS)}
    for position, samples in places.items():
        if 7 not in samples:
            source.micro_batches(position)
            continue
        with pytest.raises(DataError, match=r"less than the vocabulary's size \(10000\), but sample 7 .* holds 10000"):
            source.micro_batches(position)


def test_the_samples_of_a_batch_are_those_of_its_sequences(prepared: PreparedData) -> None:
    source = training_batches(prepared, plan(), SEQ_LENGTH, 0, CPU)
    rows = torch.cat([batch.input_ids for batch in source.micro_batches(TOKENS)])
    assert source.sample_ids(TOKENS) == [int(row[0]) // SEQ_LENGTH for row in rows]
    longer = training_batches(prepared, plan(model__seq_length=2 * SEQ_LENGTH), SEQ_LENGTH, 0, CPU)
    # From the middle of a sample on, one more is touched.
    assert len(longer.sample_ids(2)) == 2 * GLOBAL_BATCH + 1
    assert longer.sample_ids(0) == [*source.sample_ids(0), *source.sample_ids(TOKENS)]


def test_a_rank_needs_the_tokens_of_its_stages() -> None:
    assert needs_of(plan(), 0) == Needs(ids=True, labels=True)
    pipeline = plan(layout__pipeline_parallel_size=3)
    assert [needs_of(pipeline, stage) for stage in range(3)] == [Needs(True, False), Needs(False, False), Needs(False)]
    folded = plan(layout__pipeline_parallel_size=2, layout__pipeline_schedule="dualpipev")
    assert [needs_of(folded, stage) for stage in range(2)] == [Needs(True, True), Needs(False, False)]
