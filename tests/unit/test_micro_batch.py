from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.batches import labelled
from tests.helpers.thread_group import run_ranks
from trainer.engine.global_batch import loss_of, parts_of_a_batch
from trainer.errors import DataError
from trainer.micro_batch import IGNORED, Documents, MicroBatch, sequence_positions
from trainer.topology.groups import Group, SingleGroup

LABELS = torch.tensor([[3, IGNORED, 5], [IGNORED, 1, 2]])
WEIGHTS = torch.tensor([[1.0, 1.0, 0.5], [2.0, 0.0, 1.0]])


def test_labels_and_weights_say_what_counts() -> None:
    assert labelled(LABELS).token_weights().tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    assert labelled(LABELS, WEIGHTS).token_weights().tolist() == [[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]]
    assert float(labelled(LABELS, WEIGHTS).counted()) == 2.5


@pytest.mark.parametrize("bad", [-0.5, math.nan, math.inf])
def test_a_weight_that_is_none_is_an_error(bad: float) -> None:
    weights = WEIGHTS.clone()
    weights[0, 0] = bad
    with pytest.raises(DataError, match="the weights of tokens must be finite and at least 0, but some are not"):
        labelled(LABELS, weights).counted()


def test_wrong_shapes_are_errors() -> None:
    with pytest.raises(ValueError, match=r"input_ids must be \[B, S\], but have shape \(3,\)"):
        MicroBatch.of(LABELS[0])
    with pytest.raises(ValueError, match=r"labels must be shaped like input_ids, \(2, 3\), but are \(2, 2\)"):
        MicroBatch.of(LABELS, LABELS[:, :2])
    with pytest.raises(ValueError, match=r"weights must be shaped like input_ids, \(2, 3\), but are \(1, 3\)"):
        MicroBatch.of(LABELS, LABELS, WEIGHTS[:1])
    with pytest.raises(ValueError, match="a micro-batch must have labels for its loss, but has none"):
        MicroBatch.of(LABELS).counted()


def test_micro_batches_share_their_positions() -> None:
    one, other = MicroBatch.of(LABELS), MicroBatch.of(LABELS)
    assert one.positions is other.positions
    assert one.positions.tolist() == [[0, 1, 2]]
    with torch.inference_mode():
        assert not sequence_positions(1234, torch.device("cpu")).is_inference()


def test_alone_its_losses_are_divided_by_its_own_count() -> None:
    assert float(labelled(LABELS).loss_divisor()) == 4.0
    # A sum over nothing is 0, and must stay so.
    assert float(labelled(torch.full((1, 2), IGNORED)).loss_divisor()) == 1.0


def test_all_ranks_divide_by_the_mean_count_of_the_global_batch() -> None:
    counts = ((2, 0), (1, 4))

    def body(group: Group) -> tuple[list[float], float]:
        batches = []
        for count in counts[group.rank]:
            labels = torch.full((1, 4), IGNORED)
            labels[0, :count] = 7
            batches.append(labelled(labels))
        parts, counted = parts_of_a_batch(batches, group)
        return [float(part.loss_divisor()) for part in parts], float(counted)

    assert run_ranks(2, body) == [([7 / 4, 7 / 4], 7.0)] * 2


def test_where_all_tokens_count_the_divisor_is_exact() -> None:
    batches = [labelled(torch.zeros(3, 7, dtype=torch.int64)) for _ in range(3)]
    assert [float(part.loss_divisor()) for part in parts_of_a_batch(batches, SingleGroup())[0]] == [21.0] * 3


def test_a_global_batch_in_which_nothing_counts_has_no_loss_and_divides_by_nothing() -> None:
    parts, counted = parts_of_a_batch([labelled(torch.full((1, 2), IGNORED))], SingleGroup())
    assert float(parts[0].loss_divisor()) == 1.0
    assert math.isnan(float(loss_of(torch.tensor(0.0), counted)))
    assert float(loss_of(torch.tensor(0.25), torch.tensor(1.0))) == 0.25


def begins(*rows: str) -> torch.Tensor:
    """One row a text: | where a document begins."""
    return torch.tensor([[mark == "|" for mark in row] for row in rows])


def test_documents_are_numbered_and_measured_row_by_row() -> None:
    documents = Documents.of(begins("..|.", "||.|"))
    assert documents.numbers.tolist() == [[0, 0, 1, 1], [0, 1, 1, 2]]
    assert documents.lengths == ((2, 2), (1, 2, 1))
    assert documents.starts.tolist() == [0, 2, 4, 5, 7, 8, 8, 8]
    assert documents.starts.dtype == torch.int32
    assert documents.attended == (4 + 4 + 1 + 4 + 1) / 8


def test_starts_end_with_the_number_of_tokens_whatever_their_number() -> None:
    for row in ("....", "|.|.", "||.|", "||||"):
        starts = Documents.of(begins(row)).starts.tolist()
        assert len(starts) & (len(starts) - 1) == 0
        assert starts[-1] == 4
        assert starts == sorted(starts)


def test_a_part_of_the_rows_has_their_documents() -> None:
    rows = ("..|.", "||.|", "....", "|.|.")
    whole = Documents.of(begins(*rows))
    part = whole.part(1, 2)
    alone = Documents.of(begins(*rows[1:3]))
    assert part.numbers.tolist() == alone.numbers.tolist()
    assert part.starts.tolist() == alone.starts.tolist()
    assert part.lengths == alone.lengths


def test_documents_leave_where_they_begin_as_it_was() -> None:
    given = begins("..|.")
    Documents.of(given)
    assert given.tolist() == [[False, False, True, False]]
    assert Documents.of(given).to(torch.device("cpu")).lengths == ((2, 2),)
