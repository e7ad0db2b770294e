from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.thread_group import run_ranks
from trainer.tensor_parallel.token_scores import token_scores
from trainer.topology.groups import Group


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("vocab_size", [13, 5, 2])
def test_scores_are_those_of_the_whole_softmax(size: int, vocab_size: int) -> None:
    # In the smallest vocabulary the last rank holds padding alone.
    width = 6 * size
    logits = torch.randn(7, vocab_size).mul_(4)
    logits[3] = logits[3].round()
    logits[4] = 1.5
    rows = torch.tensor([0, 0, 1, 2, 3, 4, 4, 5, 6, 6])
    targets = torch.tensor([0, vocab_size - 1, 1, 0, int(logits[3].argmax()), 0, 1, 0, 1, int(logits[6].argmax())])
    # Padding that would win if it were not masked.
    padded = F.pad(logits, (0, max(width, vocab_size) - vocab_size), value=100.0)
    padded = F.pad(padded, (0, -padded.shape[1] % size), value=100.0)

    def body(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
        return token_scores(padded.chunk(size, dim=-1)[group.rank], rows, targets, group, vocab_size)

    expected = logits.log_softmax(-1)[rows, targets]
    for found, is_best in run_ranks(size, body):
        # A sum in another order.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert is_best.tolist() == (logits.argmax(-1)[rows] == targets).tolist()
    assert is_best.tolist()[5:7] == [True, False], "of equal ones the smallest id"
