"""Documents that share a sequence: where they begin, what is ignored between them, and who is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shards import shard_set
from tests.unit.data.data_fixtures import config, stream, write_text
from trainer.beginning import Beginning
from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import TridentConfig
from trainer.data.batches import training_batches, validation_batches
from trainer.data.dataset import Boundaries, SampleStream, TokenDataset
from trainer.data.picks import NOTHING, Needs, of_one_source
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData, stream_identity
from trainer.data.told import told_documents
from trainer.dry_run import plan_without_data
from trainer.micro_batch import IGNORED, MicroBatch

CPU = torch.device("cpu")
EOS = 256
SEQ_LENGTH = 8
TEXTS = ["abc", "d", "efghijklmnopqrstu", "", "vw", "x" * 40, *(f"number {index}" for index in range(40))]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_text(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS))


def masked(corpus: Path, **values: object) -> TridentConfig:
    keys: dict[str, Any] = {
        "data__source": "files",
        "data__files": [str(corpus)],
        "data__cache_dir": str(corpus.parent / "cache"),
        "data__validation_fraction": 0.3,
        "data__mask_documents": True,
        "tokenizer__kind": "bytes",
        "model__seq_length": SEQ_LENGTH,
        "batch__global_batch_size": 4,
        "batch__micro_batch_size": 2,
        "layout__data_parallel_size": 1,
    }
    return config(**(keys | values))


def planned(wanted: TridentConfig, prepared: PreparedData) -> RunPlan:
    return make_plan(wanted, prepared.vocab_size, attended=prepared.attended)


def batches_of(wanted: TridentConfig, step: int = 1) -> list[MicroBatch]:
    prepared = prepare(wanted)
    source = training_batches(prepared, planned(wanted, prepared), SEQ_LENGTH, 0, CPU)
    return source.micro_batches((step - 1) * source.tokens)


def numbers_after(ids: list[int], end: int) -> list[int]:
    """The document of each token, if `end` ends one."""
    return [ids[:place].count(end) for place in range(len(ids))]


def test_documents_begin_behind_the_end_of_others_and_with_each_sequence(corpus: Path) -> None:
    seen = 0
    for step in range(1, 8):
        for batch in batches_of(masked(corpus), step):
            assert batch.documents is not None
            # These texts hold no end of text, so it ends a document and nothing else.
            expected = [numbers_after(row, EOS) for row in batch.input_ids.tolist()]
            assert batch.documents.numbers.tolist() == expected
            assert [sum(row) for row in batch.documents.lengths] == [SEQ_LENGTH] * 2
            assert batch.positions[:, 0].tolist() == [0, 0]
            seen += sum(max(row) for row in expected)
    assert seen > 10


def test_validation_keeps_documents_apart_too(corpus: Path) -> None:
    wanted = masked(corpus)
    prepared = prepare(wanted)
    for batch in validation_batches(prepared, planned(wanted, prepared), 0, CPU)[0].batches.micro_batches(0):
        assert batch.documents is not None
        assert batch.documents.numbers.tolist() == [numbers_after(row, EOS) for row in batch.input_ids.tolist()]


def test_without_a_mask_nobody_is_told(corpus: Path) -> None:
    wanted = masked(corpus, data__mask_documents=False)
    assert all(batch.documents is None for batch in batches_of(wanted))
    prepared = prepare(wanted)
    assert (prepared.boundaries, prepared.attended, told_documents(prepared, wanted)) == (None, None, None)


@pytest.mark.parametrize("mask", [True, False])
def test_the_label_across_a_boundary_is_kept_or_ignored(corpus: Path, mask: bool) -> None:
    pairs = [
        [batch for step in range(1, 8) for batch in batches_of(masked(corpus, **more), step)]
        for more in (
            {"data__mask_documents": mask, "data__boundary_label": "keep"},
            {"data__mask_documents": mask, "data__boundary_label": "ignore"},
        )
    ]
    ends = 0
    for kept, ignored in zip(*pairs, strict=True):
        assert torch.equal(kept.input_ids, ignored.input_ids)
        is_end = kept.input_ids == EOS
        assert torch.equal(ignored.targets(), kept.targets().masked_fill(is_end, IGNORED))
        assert float(ignored.counted()) == float(kept.counted()) - int(is_end.sum())
        assert (ignored.documents is None) == (not mask)
        ends += int(is_end[:, -1].sum())
    assert ends, "no document ends where a sequence does"


def test_an_end_of_text_inside_a_document_begins_none(tmp_path: Path) -> None:
    """Boundaries are kept, and never found by looking for ids."""
    shards = shard_set(tmp_path, [[7, EOS, 8, EOS], [9, 9, EOS, 1, 2, EOS]])
    dataset = TokenDataset(shards, 9, boundaries=Boundaries(is_told=True, crossing_label=-100))
    found = dataset.rows(0)
    assert found.ids is not None
    assert found.labels is not None
    assert found.begins is not None
    assert found.counts is not None
    assert found.begins.tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0]
    assert found.labels.tolist() == [*found.ids[1:4], -100, *found.ids[5:], EOS]
    assert found.counts.tolist() == [label != -100 for label in found.labels]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_samples_know_every_boundary(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], length: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    of_each = np.repeat(np.arange(len(sizes)), sizes)
    shards = shard_set(folder, np.split(of_each, np.cumsum(sizes)[:-1]))
    dataset = TokenDataset(shards, length, boundaries=Boundaries(is_told=True, crossing_label=-1))
    for index in range(len(dataset)):
        ids, labels, begins, _, _ = dataset.rows(index)
        assert ids is not None
        assert labels is not None
        assert begins is not None
        follows = of_each[index * length + 1 : (index + 1) * length + 1]
        # Ids are the numbers of documents.
        assert (ids[0] + begins.cumsum() - 1).tolist() == ids.tolist()
        assert labels.tolist() == np.where(follows == ids, follows, -1).tolist()


def test_samples_that_are_joined_do_not_see_each_other(tmp_path: Path) -> None:
    """A run that goes on with longer sequences has several samples in one; they were never neighbours."""
    shards = shard_set(tmp_path, [np.arange(10), np.arange(10, 41)])
    dataset = TokenDataset(shards, 8, boundaries=Boundaries(is_told=True, crossing_label=None))
    stream = SampleStream([dataset], of_one_source(lambda first, count: (np.arange(first, first + count) * 3) % 5))
    ids, labels, begins, counts, sources = stream.sequences(np.array([4]), 20)
    assert ids is not None
    assert labels is not None
    assert begins is not None
    assert ids.tolist() == [[4, 5, 6, 7, *range(24, 32), *range(8, 16)]]
    assert labels.tolist() == (ids + 1).tolist()
    assert np.flatnonzero(begins).tolist() == [4, 12, 14]
    assert (counts, sources.tolist()) == (None, [0])


@pytest.mark.parametrize("boundary_label", ["keep", "ignore"])
@pytest.mark.parametrize("mask", [True, False])
def test_a_rank_reads_what_its_stages_look_at_and_counts_the_same(
    corpus: Path, mask: bool, boundary_label: str
) -> None:
    wanted = masked(corpus, data__mask_documents=mask, data__boundary_label=boundary_label)
    prepared = prepare(wanted)
    planned_run = planned(wanted, prepared)
    whole = training_batches(prepared, planned_run, SEQ_LENGTH, 0, CPU).micro_batches(0, 1)
    for needs in (Needs(labels=False), Needs(ids=False), NOTHING):
        part = training_batches(prepared, planned_run, SEQ_LENGTH, 0, CPU, needs).micro_batches(0, 1)
        for one, other in zip(whole, part, strict=True):
            assert other.input_ids.shape == one.input_ids.shape
            assert torch.equal(other.positions, one.positions)
            assert float(other.counted()) == float(one.counted())
            assert (other.labels is None) == (not needs.labels)
            assert not needs.ids or torch.equal(other.input_ids, one.input_ids)
            assert other.labels is None or torch.equal(other.labels, one.targets())
            assert other.place == one.place
            assert (other.documents is None) == (one.documents is None)


def test_the_ledger_knows_where_documents_begin(corpus: Path) -> None:
    wanted, plain = masked(corpus), masked(corpus, data__mask_documents=False)
    prepared = [prepare(one) for one in (wanted, plain)]
    ledgers = [
        training_batches(data, planned(one, data), SEQ_LENGTH, 0, CPU).ledger("", 0)
        for one, data in zip((wanted, plain), prepared, strict=True)
    ]
    assert ledgers[0] != ledgers[1]
    # The same tokens in the same folder, yet another stream.
    assert prepared[0].folder == prepared[1].folder
    assert prepared[0].content == prepared[1].content
    identities = {
        stream_identity(prepared[0], wanted),
        stream_identity(prepared[0], masked(corpus, data__boundary_label="ignore")),
        stream_identity(replace(prepared[0], boundaries="other"), wanted),
        stream_identity(prepared[1], plain),
    }
    assert len(identities) == 4


def test_the_mean_document_of_a_token_is_told_and_counts_for_flops(corpus: Path) -> None:
    wanted = masked(corpus)
    prepared = prepare(wanted)
    assert prepared.attended is not None
    tokens = stream(prepared)
    samples = tokens[: (len(tokens) - 1) // SEQ_LENGTH * SEQ_LENGTH].reshape(-1, SEQ_LENGTH)
    lengths = [np.bincount(numbers_after(row.tolist(), EOS)) for row in samples]
    assert prepared.attended == pytest.approx(sum((row**2).sum() for row in lengths) / samples.size)
    assert told_documents(prepared, wanted) == (
        f"data    documents do not see each other: a token's own has {prepared.attended:,.0f} of the 8 tokens of its "
        "sequence in the mean"
    )
    plan, plain = planned(wanted, prepared), make_plan(wanted, prepared.vocab_size)
    width, layers = plan.model.blocks[0].attention.queries, len(plan.model.blocks)
    spared = 3 * layers * 4 * width * (SEQ_LENGTH - prepared.attended)
    assert plan.flops_per_token == pytest.approx(plain.flops_per_token - spared)
    windowed = masked(corpus, model__sliding_window=2, model__position="rope")
    # A window that is shorter than documents decides.
    assert planned(windowed, prepared).flops_per_token == make_plan(windowed, prepared.vocab_size).flops_per_token


def test_a_start_tells_and_plans_with_the_documents_of_the_data(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(corpus.parent)
    words = ["data=files", f"data.files=[{corpus}]", "data.cache_dir=cache", "data.validation_fraction=0.3"]
    words += ["tokenizer=bytes", "model.seq_length=8", "batch.global_batch_size=4", "run_dir=run", "train.steps=1"]
    words += ["schedule.warmup_steps=0", "train.eval_every=0", "logging.wandb=disabled", "data.mask_documents=true"]
    wanted = compose(words)
    # Before the data are prepared, a plan counts whole sequences.
    assert plan_without_data(wanted).execution.attended is None
    plan = Beginning(wanted).by_parent()
    prepared = prepare(wanted)
    assert plan.execution.documents
    assert plan.execution.attended == prepared.attended == plan_without_data(wanted).execution.attended
    assert json.loads(Path("run/plan.json").read_text())["model"]["flops_per_token"] == plan.flops_per_token
    assert str(told_documents(prepared, wanted)) in capsys.readouterr().out
    # A plan needs no data.
    missing = compose([*words, "data.files=[elsewhere.jsonl]", "model.vocab_size=257"])
    assert plan_without_data(missing).execution.attended is None
