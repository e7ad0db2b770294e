"""Head and cross-entropy alone, forward and backward once a step, fused or with whole logits.

Options: `fused`; `tokens`, `hidden_size` and `vocab_size` of the one GEMM; `check`: compute both ways and
tell how far the gradients are apart (relative, in the 2-norm).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.case import Case
from benchmarks.contenders.common import dtype_of, set_up
from benchmarks.gate import Gate
from benchmarks.meter import peak_of_tensors
from trainer.micro_batch import MicroBatch
from trainer.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from trainer.tensor_parallel.fused_loss import HeadShard, vocab_parallel_linear_cross_entropy
from trainer.topology.groups import SingleGroup


class _Problem:
    """One hidden state, one head, one set of labels."""

    def __init__(self, case: Case, options: Mapping[str, Any], device: torch.device) -> None:
        generator = torch.Generator().manual_seed(case.seed)
        tokens, hidden, vocab = options["tokens"], options["hidden_size"], options["vocab_size"]
        where: dict[str, Any] = {"device": device, "dtype": dtype_of(case)}
        self.vocab = vocab
        self.hidden = torch.randn(tokens, 1, hidden, generator=generator).to(**where).requires_grad_()
        self.weight = torch.randn(vocab, hidden, generator=generator).mul_(0.02).to(**where).requires_grad_()
        ids = torch.randint(0, vocab, (1, tokens), generator=generator).to(device)
        self.batch = MicroBatch.of(ids, labels=ids)

    def step(self, fused: bool) -> torch.Tensor:
        """Leave the gradients on hidden and weight; return the loss."""
        self.hidden.grad = self.weight.grad = None
        group = SingleGroup()
        if fused:
            head = HeadShard(self.weight, group, self.vocab)
            loss = vocab_parallel_linear_cross_entropy(self.hidden, head, self.batch, sequence_parallel=False)
        else:
            loss = vocab_parallel_cross_entropy(F.linear(self.hidden, self.weight), self.batch, group, self.vocab)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def peak_of_tensors(self, fused: bool) -> int:
        """Return what the tensors of a step take at most, its gradients included."""
        self.step(fused)
        self.hidden.grad = self.weight.grad = None
        return peak_of_tensors(lambda: self.step(fused), self.hidden.device.type)

    def gradients(self, fused: bool) -> list[torch.Tensor]:
        """Return the gradients of hidden and weight."""
        self.step(fused)
        assert self.hidden.grad is not None
        assert self.weight.grad is not None
        return [self.hidden.grad.clone(), self.weight.grad.clone()]


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and repeat."""
    problem = _Problem(case, options, set_up(case))
    facts: dict[str, float] = {}
    if options.get("check"):
        pairs = zip(problem.gradients(True), problem.gradients(False), strict=True)
        facts["whole_tensor_bytes"] = problem.peak_of_tensors(fused=False)
        facts["fused_tensor_bytes"] = problem.peak_of_tensors(fused=True)
        facts["gradient_error"] = max(float((mine - whole).norm() / whole.norm()) for mine, whole in pairs)
    gate.meter.start()
    gate.open(**facts)
    while True:
        gate.done([problem.step(bool(options.get("fused")))])
