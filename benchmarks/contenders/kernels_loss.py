"""Head and cross-entropy, one way after another: whole logits, chunk by chunk, compiled, by Liger.

Before one is timed, its loss and its gradients must be those of whole logits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.contenders.common import dtype_of
from benchmarks.meter import peak_of_tensors
from benchmarks.stopwatch import Stopwatch
from benchmarks.worker import Unavailable, reason_of
from trainer.kernels.gemm import has_own_products, multiply_by_onednn
from trainer.kernels.loss_programs import LossPrograms, compiled_loss
from trainer.kernels.processor import multiplies_by_onednn
from trainer.micro_batch import MicroBatch
from trainer.tensor_parallel import fused_loss
from trainer.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from trainer.tensor_parallel.linear import linear
from trainer.topology.groups import SingleGroup

Row = dict[str, Any]
UNFUSED = "whole logits"


@dataclass(frozen=True)
class Agreement:
    """Largest relative differences from whole logits."""

    loss: float
    gradients: float
    """Difference of the gradients of hidden and weight, in the 2-norm."""


TOLERANCE = {"fp32": Agreement(1e-5, 1e-4), "bf16": Agreement(1e-3, 2e-2)}
"""Tolerances. A bf16 logit is rounded to 4e-3 of itself, and so is each chunk's gradient."""


def row_of(facts: Row, measure: Callable[[], Row]) -> Row:
    """Return facts and what was measured; or, if that fails, the reason in `failed`."""
    try:
        return {**facts, **measure()}
    except Exception as error:  # one kernel that does not run is no reason not to measure the next
        return {**facts, "failed": reason_of(error)}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Head:
    """Hidden states [S, B, H], the head [V, H] and labels [B, S] of a case; multiplied as in training."""

    def __init__(self, case: Case, device: torch.device) -> None:
        where: Any = {"device": device, "dtype": dtype_of(case)}
        plan = case.plan()
        self.vocab = plan.model.vocab_size
        rows = (case.seq_length, case.micro_batch_size)
        self.hidden = torch.randn(*rows, case.hidden_size, **where).requires_grad_()
        weight = torch.randn(plan.execution.padded(self.vocab), case.hidden_size, **where).mul_(0.02)
        self.weight = torch.nn.Parameter(weight)
        if multiplies_by_onednn(case.plan(), device):
            multiply_by_onednn([self.weight])
        ids = torch.randint(0, self.vocab, rows[::-1], device=device)
        self.batch = MicroBatch.of(ids, labels=ids)

    def gradients(self, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return those of hidden and head."""
        return torch.autograd.grad(loss, (self.hidden, self.weight))


Loss = Callable[[Head], torch.Tensor]


def unfused(head: Head) -> torch.Tensor:
    """Return the loss of whole logits."""
    return vocab_parallel_cross_entropy(linear(head.hidden, head.weight), head.batch, SingleGroup(), head.vocab)


def fused(head: Head, chunk: int, programs: Callable[[], LossPrograms] | None = None) -> torch.Tensor:
    """Return Trident's fused loss with so many logits in a chunk."""
    with _chunks_of(chunk):
        shard = fused_loss.HeadShard(
            head.weight, SingleGroup(), head.vocab, programs=programs() if programs is not None else None
        )
        return fused_loss.vocab_parallel_linear_cross_entropy(head.hidden, shard, head.batch, sequence_parallel=False)


@contextmanager
def _chunks_of(elements: int) -> Iterator[None]:
    before = dict(fused_loss.CHUNK_ELEMENTS)
    fused_loss.CHUNK_ELEMENTS.update(dict.fromkeys(before, elements))
    try:
        yield
    finally:
        fused_loss.CHUNK_ELEMENTS.update(before)


def liger(head: Head, accumulate: torch.dtype | None = None) -> torch.Tensor:
    """Return Liger's fused loss.

    Raises:
        Unavailable: it is not installed, or there is no GPU.
    """
    if find_spec("liger_kernel") is None:
        raise Unavailable("liger-kernel is not installed")
    if head.hidden.device.type == "cpu":
        raise Unavailable("Liger's kernels need a GPU")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    compute = LigerFusedLinearCrossEntropyLoss(accum_dtype=accumulate)
    # A slice of all rows would copy the gradient.
    weight = head.weight if len(head.weight) == head.vocab else head.weight[: head.vocab]
    loss: torch.Tensor = compute(weight, head.hidden.flatten(0, 1), head.batch.targets().t().flatten())
    return loss


def variants(chunks: Sequence[int], compiles: bool) -> dict[str, Loss]:
    """Return what is compared with whole logits, by name."""
    found: dict[str, Loss] = {}
    for chunk in chunks:
        found[f"fused, chunks of 2^{chunk.bit_length() - 1}"] = partial(fused, chunk=chunk)
    for chunk in chunks if compiles else ():
        name = f"fused, compiled, chunks of 2^{chunk.bit_length() - 1}"
        found[name] = partial(fused, chunk=chunk, programs=compiled_loss)
    return {**found, "Liger": liger, "Liger, sums in fp32": partial(liger, accumulate=torch.float32)}


class _Reference:
    """Loss and gradients of whole logits."""

    def __init__(self, head: Head, dtype: str) -> None:
        loss = unfused(head)
        self._dtype = dtype
        self._loss, self._gradients = float(loss.detach()), head.gradients(loss)

    def differences(self, head: Head, compute: Loss) -> Row:
        """Return how far another way is apart.

        Raises:
            Unavailable: too far.
        """
        loss = compute(head)
        pairs = zip(head.gradients(loss), self._gradients, strict=True)
        gradients = max(float((mine - whole).float().norm() / whole.float().norm()) for mine, whole in pairs)
        apart = abs(float(loss.detach()) - self._loss) / abs(self._loss)
        allowed = TOLERANCE[self._dtype]
        # No comparison with a number that is none is true.
        if not (apart <= allowed.loss and gradients <= allowed.gradients):
            raise Unavailable(
                f"differs from whole logits: loss by {apart:.1e}, gradients by {gradients:.1e} (relative)"
            )
        return {"loss_error": apart, "gradient_error": gradients}


def loss_rows(
    case: Case, device: torch.device, watch: Stopwatch, chunks: Sequence[int], *, compiles: bool
) -> list[Row]:
    """Return seconds of every way, forward and with backward, and on a GPU the peak of its tensors in bytes."""
    head = Head(case, device)
    facts: Row = {"case": case.name, "rows": case.tokens_in_micro_batch, "hidden": case.hidden_size}
    facts |= {"vocab": head.vocab, "onednn": has_own_products(head.weight)}
    reference: list[_Reference] = []

    def measure(compute: Loss) -> Row:
        # A program is compiled for each number of rows, and torch gives up after a few of them.
        torch.compiler.reset()
        compiled_loss.cache_clear()
        if compute is unfused:
            reference.append(_Reference(head, case.dtype))
        elif not reference:
            raise Unavailable("whole logits, which it would be held against, do not run")

        def both() -> object:
            return head.gradients(compute(head))

        found = reference[0].differences(head, compute)
        found |= {"forward_s": watch.seconds(lambda: compute(head)), "both_s": watch.seconds(both)}
        return {**found, "peak_bytes": peak_of_tensors(both, "cuda") if device.type == "cuda" else None}

    ways: dict[str, Loss] = {UNFUSED: unfused, **variants(chunks, compiles)}
    return [row_of({**facts, "way": name}, partial(measure, compute)) for name, compute in ways.items()]
