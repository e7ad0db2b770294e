from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.shards import prepared_of
from tests.unit.data.data_fixtures import config
from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.config.validate import problems
from trainer.data import best_fit
from trainer.data.batches import needs_of, training_batches
from trainer.data.best_fit import BestFitDataset, packed, packed_pieces
from trainer.data.picks import NOTHING, Needs
from trainer.data.prepared import PreparedData, samples_of, stream_identity
from trainer.data.streams import new_stream
from trainer.data.told import told_packing
from trainer.micro_batch import IGNORED

CPU = torch.device("cpu")
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def documents_of(sizes: list[int]) -> list[np.ndarray]:
    """Return documents whose ids are all different, in order."""
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) + 1 for size, end in zip(sizes, ends, strict=True)]


def wanted(length: int, **more: object) -> TridentConfig:
    return config(
        **{
            "data__packing": "best_fit",
            "model__seq_length": length,
            "batch__global_batch_size": 2,
            "data__source": "files",
            **more,
        }
    )


def dataset(prepared: PreparedData, found: TridentConfig, ignored: int = IGNORED) -> BestFitDataset:
    samples = samples_of(prepared, found.data, "train", found.model.seq_length, ignored=ignored)
    assert isinstance(samples, BestFitDataset)
    return samples


def plainly(sizes: list[int], length: int) -> list[int]:
    """Return the sequence of each piece as the definition says it: the fullest that has room, the longest first."""
    filled: list[int] = []
    found = [0] * len(sizes)
    for piece in sorted(range(len(sizes)), key=lambda one: -sizes[one]):
        fitting = [one for one in range(len(filled)) if filled[one] + sizes[piece] <= length]
        if not fitting:
            filled.append(0)
            fitting = [len(filled) - 1]
        found[piece] = max(fitting, key=lambda one: filled[one])
        filled[found[piece]] += sizes[piece]
    return found


@given(st.lists(st.integers(1, 20), min_size=1, max_size=50))
def test_each_piece_is_in_the_fullest_sequence_that_it_fits_into(sizes: list[int]) -> None:
    ends, order = packed(np.array(sizes), 20)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    parts = np.split(order, ends[:-1])
    assert all(sum(sizes[piece] for piece in part) <= 20 for part in parts)
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    # As many sequences of the same fill; which of several equally full ones is taken does not matter.
    plain = plainly(sizes, 20)
    fills = [sum(size for size, one in zip(sizes, plain, strict=True) if one == number) for number in range(len(parts))]
    assert max(plain) + 1 == len(parts)
    assert sorted(sum(sizes[piece] for piece in part) for part in parts) == sorted(fills)


@settings(deadline=None, max_examples=30)
@given(SIZES, st.integers(1, 25), st.sampled_from([1, 5, 1000]), st.sampled_from([1, 7, 1000]))
def test_every_token_is_there_once_and_no_document_that_fits_is_cut(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], length: int, block: int, scanned: int
) -> None:
    """However the documents are divided into blocks, and the boundaries read."""
    documents = documents_of(sizes)
    prepared = prepared_of(tmp_path_factory.mktemp("best"), documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(best_fit, "BLOCK_PIECES", block)
        patch.setattr(best_fit, "_SCANNED", scanned)
        samples = dataset(prepared, wanted(length, data__mask_documents=True))
    whole = {document[0]: document.tolist() for document in documents}
    seen: list[int] = []
    for index in range(len(samples)):
        ids, labels, begins, counts, _ = samples.rows(index)
        assert ids is not None
        assert labels is not None
        assert begins is not None
        assert counts is not None
        assert len(ids) == len(labels) == length
        starts = [*np.flatnonzero(begins).tolist(), length]
        for first, end in itertools.pairwise(starts):
            piece = ids[first:end].tolist()
            if piece[0] == 0:
                assert end == length
                assert not any(piece)
                assert not counts[first:].any()
                continue
            seen += piece
            own = next(document for document in documents if piece[0] in document)
            assert set(piece) <= set(own.tolist())
            assert len(own) > length or piece == own.tolist() == whole[piece[0]]
        # A label is the next token, of the document or of the next one in the sequence.
        follows = np.append(ids[1:], 0)
        goes_on = (follows == 0) & counts
        assert (labels[counts & ~goes_on] == follows[counts & ~goes_on]).all()
        assert (labels[goes_on] == ids[goes_on] + 1).all()
        assert (labels[~counts] == IGNORED).all()
    assert sorted(seen) == list(range(1, sum(sizes) + 1))
    assert samples.pieces.tokens == sum(sizes)
    assert samples.pieces.cuts == sum((size - 1) // length for size in sizes)


def test_labels_across_documents_and_long_ones(tmp_path: Path) -> None:
    prepared = prepared_of(tmp_path, documents_of([5, 2, 1, 13]))
    kept, ignored = (dataset(prepared, wanted(5, data__boundary_label=word)) for word in ("keep", "ignore"))
    rows = [one.rows(index) for one in (kept, ignored) for index in range(len(one))]
    found = [(row.ids.tolist(), row.labels.tolist()) for row in rows if row.ids is not None and row.labels is not None]
    no = IGNORED
    # Two pieces of the long document go on: their last label is its next token.
    assert found == [
        ([1, 2, 3, 4, 5], [2, 3, 4, 5, no]),
        ([9, 10, 11, 12, 13], [10, 11, 12, 13, 14]),
        ([14, 15, 16, 17, 18], [15, 16, 17, 18, 19]),
        ([6, 7, 19, 20, 21], [7, 19, 20, 21, no]),
        ([8, 0, 0, 0, 0], [no] * 5),
        ([1, 2, 3, 4, 5], [2, 3, 4, 5, no]),
        ([9, 10, 11, 12, 13], [10, 11, 12, 13, 14]),
        ([14, 15, 16, 17, 18], [15, 16, 17, 18, 19]),
        ([6, 7, 19, 20, 21], [7, no, 20, 21, no]),
        ([8, 0, 0, 0, 0], [no] * 5),
    ]
    assert all(row.begins is None for row in rows)
    for index in range(5):
        whole = kept.rows(index)
        for needs in (NOTHING, Needs(ids=False), Needs(labels=False)):
            part = kept.rows(index, needs)
            assert part.counts is not None
            assert whole.counts is not None
            assert part.counts.tolist() == whole.counts.tolist()
            assert (part.ids is None, part.labels is None) == (not needs.ids, not needs.labels)
    for index in (-1, 5):
        with pytest.raises(IndexError, match=r"sample must be in \[0, 5\)"):
            kept.rows(index)
    assert list(told_packing(prepared, wanted(5))) == [
        "data    5 sequences of 5 tokens, which documents fill to 84.0%; 2 cuts, in documents of more than 5 tokens "
        "alone"
    ]
    assert list(told_packing(prepared, wanted(5, data__packing="cut"))) == []


def test_the_index_is_made_once_for_each_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_of(tmp_path, documents_of([3, 9, 4]))
    first = dataset(prepared, wanted(8))
    files = {path: path.read_bytes() for path in tmp_path.rglob("best_fit-*/*")}
    assert len(files) == 4
    assert dataset(prepared, wanted(4)).pieces.cuts == 2
    monkeypatch.setattr(best_fit, "_write", lambda *_: pytest.fail("it is there"))
    again = packed_pieces(tmp_path, "train", prepared.shards("train"), 8)
    assert again.starts.tolist() == first.pieces.starts.tolist()
    assert {path: path.read_bytes() for path in files} == files
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("mask", [True, False])
def test_padding_is_not_learned_from_in_any_layout(tmp_path: Path, mask: bool) -> None:
    prepared = prepared_of(tmp_path, documents_of([5, 2, 1, 13, 4, 4, 3]))
    found = wanted(6, data__mask_documents=mask)
    plan = make_plan(found, 10**4)
    source = training_batches(prepared, plan, 6, 0, CPU)
    batches = source.micro_batches(0, 1)
    assert all(int((batch.targets() != IGNORED).sum()) == float(batch.counted()) for batch in batches)
    assert all((batch.documents is None) != mask for batch in batches)
    parts = [
        training_batches(prepared, make_plan(wanted(6, layout__data_parallel_size=2), 10**4), 6, rank, CPU)
        for rank in range(2)
    ]
    rows = torch.cat([batch.input_ids for part in parts for batch in part.micro_batches(0, 1)])
    assert torch.equal(rows, torch.cat([batch.input_ids for batch in batches]))
    middle = make_plan(wanted(6, layout__pipeline_parallel_size=3, model__num_layers=3), 10**4)
    unread = training_batches(prepared, middle, 6, 0, CPU, needs_of(middle, 1)).micro_batches(0, 1)
    assert [float(batch.counted()) for batch in unread] == [float(batch.counted()) for batch in batches]


def test_packing_is_in_the_identity_and_where_it_belongs(tmp_path: Path) -> None:
    prepared = prepared_of(tmp_path, documents_of([5, 2, 1, 13]))
    assert stream_identity(prepared, wanted(5)) != stream_identity(prepared, wanted(5, data__packing="cut"))
    assert new_stream(prepared, wanted(5), 5).segments[0].sources[0].samples == 5
    assert problems(compose(["data=synthetic", "model.vocab_size=64", "data.packing=best_fit"])) == [
        "data.packing=best_fit has no effect with data.source=synthetic, which has no documents; leave it out"
    ]


@pytest.mark.parametrize("damage", ["cut", "no description", "no words"])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str) -> None:
    """A machine that lost its power may have left a folder whose files are not whole."""
    found = wanted(8)
    prepared = prepared_of(tmp_path, documents_of([5, 3, 8, 2, 11, 4]))
    before = dataset(prepared, found).pieces
    every = [before.of(sequence) for sequence in range(len(before.offsets) - 1)]
    index = next(tmp_path.rglob("best_fit-train-8"))
    if damage == "cut":
        starts = index / best_fit.STARTS
        starts.write_bytes(starts.read_bytes()[:-8])
    elif damage == "no description":
        (index / "facts.json").unlink()
    else:
        (index / "facts.json").write_text("[]")
    after = dataset(prepared, found).pieces
    assert [after.of(sequence) for sequence in range(len(after.offsets) - 1)] == every
    assert not list(tmp_path.rglob("*.partial"))
