from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.models import drawn
from tests.helpers.thread_group import local_gradients, local_weights, run_ranks, whole
from trainer.errors import ConfigError, DataError
from trainer.micro_batch import MicroBatch
from trainer.spec.execution import Execution
from trainer.spec.parts import Embedding
from trainer.tensor_parallel.embedding import VocabParallelEmbedding, tied_head
from trainer.tensor_parallel.init import TensorContext
from trainer.topology.groups import FakeGroup, Group, SingleGroup

S, B, H = 8, 3, 6


def build(group: Group, vocab_size: int, sequence_parallel: bool = False) -> VocabParallelEmbedding:
    context = TensorContext(group, sequence_parallel, Execution(S, vocab_unit=4 * group.size, init_std=1.0))
    return drawn(VocabParallelEmbedding("e", Embedding(vocab_size, H), context), group, 5)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("vocab_size", [16, 13, 3])
def test_embedding_and_tied_head_equal_plain_ones(size: int, sequence_parallel: bool, vocab_size: int) -> None:
    ids = torch.randint(0, vocab_size, (B, S))
    hidden_grad, logit_grad = torch.randn(S, B, H), torch.randn(S, B, vocab_size)

    def body(group: Group) -> tuple[VocabParallelEmbedding, torch.Tensor, torch.Tensor]:
        layer = build(group, vocab_size, sequence_parallel)
        batch = MicroBatch.of(ids)
        hidden = layer(ids, batch)
        logits = tied_head(layer, hidden, batch)
        rows = layer.rows
        padded = F.pad(logit_grad, (0, size * rows - vocab_size))
        mine = hidden_grad.chunk(size)[group.rank] if sequence_parallel else hidden_grad
        gradients = (padded[..., group.rank * rows : (group.rank + 1) * rows], mine)
        torch.autograd.backward((logits, hidden), gradients)
        return layer, hidden.detach(), logits.detach()

    layers, hiddens, logits = zip(*run_ranks(size, body), strict=True)
    weight = whole(layers, [local_weights(layer) for layer in layers])["e.weight"].clone().requires_grad_()
    assert weight.shape == (vocab_size, H)
    expected = F.embedding(ids.transpose(0, 1), weight)
    expected_logits = F.linear(expected, weight)
    torch.autograd.backward((expected_logits, expected), (logit_grad, hidden_grad))
    hidden = torch.cat(hiddens) if sequence_parallel else hiddens[-1]
    assert torch.equal(hidden, expected.detach())
    torch.testing.assert_close(torch.cat(logits, dim=-1)[..., :vocab_size], expected_logits.detach())
    gradient = whole(layers, [local_gradients(layer) for layer in layers])["e.weight"]
    torch.testing.assert_close(gradient, weight.grad)


@pytest.mark.parametrize("bad", [-1, 13])
def test_ids_outside_the_vocabulary_are_an_error(bad: int) -> None:
    ids = torch.tensor([[0, bad]])
    for group in (SingleGroup(), FakeGroup(1, 2)):
        with pytest.raises(DataError, match=r"token ids must be in \[0, 13\), but are in .* model.vocab_size"):
            build(group, 13)(ids, MicroBatch.of(ids))


def test_rows_must_be_divisible() -> None:
    with pytest.raises(ConfigError, match=r"e\.weight has a block of 10"):
        VocabParallelEmbedding("e", Embedding(9, H), TensorContext(FakeGroup(0, 4), False, Execution(S, vocab_unit=10)))
