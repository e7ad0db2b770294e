"""Head and cross-entropy in one: the logits of a few rows at a time, never all of them.

The whole logits are the largest tensor of a small model: S x B x V in fp32, their gradient once more, and each of a
handful of passes reads them from memory. Here a chunk of rows goes through GEMM, softmax, loss and both gradients while
it is in the cache, in forward; backward only scales the gradients.
Source: vocabulary-parallel loss arXiv 1909.08053, section 3; chunks with the gradient in forward as in Liger Kernel,
arXiv 2410.10989, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F

from trainer.kernels.gemm import products_of
from trainer.kernels.loss_programs import LOWEST, LossPrograms
from trainer.micro_batch import LossSums, MicroBatch
from trainer.tensor_parallel.cross_entropy import local_targets
from trainer.tensor_parallel.gradients import scaled_gradient, weight_gradient
from trainer.tensor_parallel.logits import LogitShape
from trainer.tensor_parallel.mappings import SEQUENCE_DIM
from trainer.tensor_parallel.token_ids import check_labels
from trainer.topology.groups import Group

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Number of logits in a chunk: on the CPU 16 MiB in fp32, which stay in the cache; on a GPU enough to fill it."""
_ROW_MULTIPLE = 64


def chunk_rows(rows: int, width: int, device: str) -> int:
    """Return how many of `rows` rows of `width` logits are computed at a time."""
    wanted = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"]) // max(1, width)
    wanted = max(_ROW_MULTIPLE, wanted // _ROW_MULTIPLE * _ROW_MULTIPLE)
    # Almost equal chunks: a short last one would cost as much as a whole one.
    chunks = -(-rows // wanted)
    equal = -(-rows // chunks) if chunks else 1
    return min(rows, -(-equal // _ROW_MULTIPLE) * _ROW_MULTIPLE) if rows else 1


@dataclass(frozen=True)
class HeadShard:
    """This rank's columns of the head, and the way in which it is computed."""

    weight: torch.Tensor
    """Rows of this rank, with padding, `[V/tp, H]`."""
    group: Group
    """Tensor-parallel group."""
    vocab_size: int
    """Number of ids that exist; columns above are padding, take no probability and get no gradient."""
    bias: torch.Tensor | None = None
    """`[V/tp]`, or None."""
    shape: LogitShape = field(default_factory=LogitShape)
    """Factor and soft cap on the way from products to logits."""
    programs: LossPrograms | None = None
    """Compiled programs that compute a chunk; None: PyTorch's own kernels, one after another."""

    @property
    def valid(self) -> int:
        """Number of this rank's columns that are no padding."""
        width = len(self.weight)
        return min(max(self.vocab_size - self.group.rank * width, 0), width)


class _Shard:
    """This rank's columns of the head without padding, and its computation for a chunk of rows."""

    def __init__(self, head: HeadShard) -> None:
        self.valid = head.valid
        self.weight = head.weight[: self.valid]
        self.bias = None if head.bias is None else head.bias[: self.valid]
        self.shape = head.shape
        self.products = products_of(head.weight)
        self.group = head.group
        self.programs = head.programs

    def chunk(
        self, rows: torch.Tensor, columns: torch.Tensor, here: torch.Tensor, wants_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each row's loss [rows] fp32, and its gradient [rows, valid] in the rows' dtype (if wanted).

        That is the gradient of the products with the weight: softmax - one-hot, times the way from them to the logits.
        Collective over the group: one all-gather of two numbers a row.
        """
        if self.valid == 0:
            lowest = torch.full((2, len(rows)), LOWEST, dtype=torch.float32, device=rows.device)
            return self._loss(*lowest)[0], rows.new_empty((len(rows), 0))
        logits = self.shape.logits_in_place(self.products.forward(rows, self.weight, self.bias))
        if self.programs is not None:
            loss, whole_log_sum = self._loss(*self.programs.sums(logits, columns, here))
            if not wants_grad:
                return loss, logits
            return loss, self.shape.product_gradient(
                self.programs.gradient(logits, columns, here, whole_log_sum), logits
            )
        picked = logits.gather(-1, columns.unsqueeze(-1)).squeeze(-1).float().masked_fill_(~here, LOWEST)
        if not wants_grad:
            return self._loss(logits.float().logsumexp(dim=-1), picked)[0], logits
        peak = logits.amax(dim=-1).float()
        grad = torch.softmax(logits, dim=-1, dtype=torch.float32)
        # The largest probability is 1 / sum(exp(logit - peak)), so this is the log of the sum of exp(logit).
        log_sum = peak - grad.amax(dim=-1).log()
        loss, whole_log_sum = self._loss(log_sum, picked)
        if self.group.size > 1:
            grad.mul_((log_sum - whole_log_sum).exp_().unsqueeze(-1))
        grad.scatter_add_(-1, columns.unsqueeze(-1), here.to(torch.float32).neg_().unsqueeze(-1))
        return loss, self.shape.product_gradient(grad, logits).to(rows.dtype)

    def _loss(self, log_sum: torch.Tensor, picked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the ranks' sums together; return each row's loss and log of the whole sum."""
        if self.group.size > 1:
            parts = self.group.all_gather(torch.stack((log_sum, picked)), dim=0).view(self.group.size, 2, -1)
            log_sum, picked = parts[:, 0].logsumexp(dim=0), parts[:, 1].amax(dim=0)
        return log_sum - picked, log_sum


class _Gradients(Protocol):
    """Gradients that forward keeps for backward: those of the weighted sum of the losses, not yet divided.

    A row's weight is multiplied into factors [rows, H], which are smaller than the logits.
    """

    def add(self, part: slice, rows: torch.Tensor, grad: torch.Tensor) -> None:
        """Add a chunk's share: `grad` [rows, valid] is the gradient of its logits, without the rows' weights."""

    def of_rows(self, scale: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the rows times `scale` [], [rows, H]."""

    def of_weight(self, scale: torch.Tensor) -> torch.Tensor | None:
        """Return the gradient of the weight times `scale`, padding included; None if frozen, or added in place."""

    def of_bias(self, scale: torch.Tensor) -> torch.Tensor | None:
        """Return the gradient of the bias times `scale`, padding included; None if frozen, or if there is none."""


class _Sums:
    """Both gradients, to which every chunk is added, so that its logits can be freed.

    Args:
        rows: [rows, H].
        row_weights: how much each row counts, [rows, 1] fp32.
        head: this rank's columns.
    """

    def __init__(self, rows: torch.Tensor, row_weights: torch.Tensor, head: HeadShard) -> None:
        self.row_weights = row_weights
        weight, valid = head.weight, head.valid
        self.weight, self.valid, self.products = weight, valid, products_of(weight)
        self.rows_grad = torch.empty_like(rows) if valid else torch.zeros_like(rows)
        self.bias_grad = _zeros_for(head.bias)
        self.weight_grad: torch.Tensor | None = None
        if weight.requires_grad:
            # In half precision the sum would lose the small shares of the chunks.
            self.weight_grad = torch.empty_like(weight, dtype=torch.float32)
            self.weight_grad[valid:] = 0.0

    def add(self, part: slice, rows: torch.Tensor, grad: torch.Tensor) -> None:
        """See `_Gradients`."""
        if not self.valid:
            return
        self.rows_grad[part] = self.products.input_gradient(grad, self.weight[: self.valid])
        if self.bias_grad is not None:
            self.bias_grad[: self.valid].add_((grad * self.row_weights[part]).sum(dim=0))
        if self.weight_grad is None:
            return
        mine = self.weight_grad[: self.valid]
        rows = (rows * self.row_weights[part]).to(rows.dtype)
        if rows.dtype is torch.float32:
            self.products.add_weight_gradient(mine, grad, rows, fresh=part.start == 0)
        elif part.start == 0:
            mine.copy_(self.products.weight_gradient(grad, rows))
        else:
            mine.add_(self.products.weight_gradient(grad, rows))

    def of_rows(self, scale: torch.Tensor) -> torch.Tensor:
        """See `_Gradients`; once."""
        return self.rows_grad.mul_(self.row_weights * scale)

    def of_weight(self, scale: torch.Tensor) -> torch.Tensor | None:
        """See `_Gradients`; once."""
        return None if self.weight_grad is None else scaled_gradient(self.weight, self.weight_grad, scale)

    def of_bias(self, scale: torch.Tensor) -> torch.Tensor | None:
        """See `_Gradients`; once."""
        return None if self.bias_grad is None else self.bias_grad.mul_(scale).to(self.weight.dtype)


def _zeros_for(bias: torch.Tensor | None) -> torch.Tensor | None:
    """Return zeros, fp32, for the gradient of a bias; None if it has none."""
    return None if bias is None or not bias.requires_grad else torch.zeros_like(bias, dtype=torch.float32)


class _OneChunk:
    """The logits' gradient itself, where one chunk is everything: it is smaller than the weight's.

    With many small micro-batches the weight's gradient would be made, and then added in as many passes over it; here
    the GEMM that makes it adds it in place. Scales are multiplied into the smaller factors.

    Args:
        row_weights: how much each row counts, [rows, 1] fp32.
        head: this rank's columns.
    """

    def __init__(self, row_weights: torch.Tensor, head: HeadShard) -> None:
        self.row_weights, self.weight, self.valid, self.bias = row_weights, head.weight, head.valid, head.bias
        self.inputs = self.grad = head.weight.new_empty(0)

    def add(self, part: slice, rows: torch.Tensor, grad: torch.Tensor) -> None:
        """See `_Gradients`; once."""
        padding = len(self.weight) - self.valid
        self.inputs, self.grad = rows, F.pad(grad, (0, padding)) if padding else grad

    def of_rows(self, scale: torch.Tensor) -> torch.Tensor:
        """See `_Gradients`."""
        return products_of(self.weight).input_gradient(self.grad, self.weight).mul_(self.row_weights * scale)

    def of_weight(self, scale: torch.Tensor) -> torch.Tensor | None:
        """See `_Gradients`."""
        if not self.weight.requires_grad:
            return None
        return weight_gradient(self.weight, self.grad, self.inputs * (self.row_weights * scale))

    def of_bias(self, scale: torch.Tensor) -> torch.Tensor | None:
        """See `_Gradients`."""
        if self.bias is None or not self.bias.requires_grad:
            return None
        return (self.grad * (self.row_weights * scale)).sum(dim=0)


def _gradients(rows: torch.Tensor, row_weights: torch.Tensor, head: HeadShard, step: int) -> _Gradients:
    # In half precision a scaled input would be rounded once more.
    if len(rows) <= min(step, head.weight.shape[1]) and rows.dtype is torch.float32:
        return _OneChunk(row_weights, head)
    return _Sums(rows, row_weights, head)


def _chunked(
    rows: torch.Tensor,
    row_weights: torch.Tensor,
    shard: _Shard,
    targets: tuple[torch.Tensor, torch.Tensor],
    gradients: _Gradients | None,
    step: int,
    losses: LossSums | None,
) -> torch.Tensor:
    """Return the weighted sum of all rows' losses, [] fp32, and fill in `gradients` and `losses`."""
    columns, here = targets
    total = torch.zeros((), dtype=torch.float32, device=rows.device)
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        loss, grad = shard.chunk(rows[part], columns[part], here[part], gradients is not None)
        total += loss.mul_(row_weights[part].squeeze(-1)).sum()
        if losses is not None:
            losses.add(loss, start)
        if gradients is not None:
            gradients.add(part, rows[part], grad)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        batch: MicroBatch,
        head: HeadShard,
        gathers: bool,
        wants_grad: bool,
    ) -> torch.Tensor:
        group, valid = head.group, head.valid
        whole = group.all_gather(hidden, dim=SEQUENCE_DIM) if gathers else hidden
        rows = whole.flatten(0, -2)
        targets = local_targets(batch.targets().t().flatten(), group.rank * len(weight), valid)
        row_weights = batch.token_weights().t().flatten().unsqueeze(-1)
        # By the padded width, which is the same on every rank: all must meet in the collectives.
        step = chunk_rows(len(rows), len(weight), rows.device.type)
        gradients = _gradients(rows, row_weights, head, step) if wants_grad else None
        total = _chunked(rows, row_weights, _Shard(head), targets, gradients, step, batch.losses)
        ctx.gradients, ctx.group, ctx.gathers = gradients, group, gathers
        ctx.shape, ctx.divisor = whole.shape, batch.loss_divisor()
        # Tells autograd that the weight must not change before backward.
        ctx.save_for_backward(weight)
        return total.div_(ctx.divisor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("the fused loss can go backward once for each forward with gradients, but went again")
        ctx.gradients, _ = None, ctx.saved_tensors
        scale = grads[0].float() / ctx.divisor
        hidden = gradients.of_rows(scale).view(ctx.shape)
        finish = ctx.group.start_reduce_scatter(hidden) if ctx.gathers else ctx.group.start_all_reduce(hidden)
        of_parameters = gradients.of_weight(scale), gradients.of_bias(scale)
        return finish(), *of_parameters, None, None, None, None


def vocab_parallel_linear_cross_entropy(
    hidden: torch.Tensor, head: HeadShard, batch: MicroBatch, sequence_parallel: bool
) -> torch.Tensor:
    """Return the micro-batch's next-token cross-entropy of the head's logits in nats, [] fp32, the same on every rank.

    The numbers are the same as those of a column-parallel linear layer and `vocab_parallel_cross_entropy`, without ever
    holding the logits. With gradients enabled, forward also computes them; it takes one backward.

    Args:
        hidden: `[S, B, H]`, or `[S/tp, B, H]` with sequence parallelism.
        head: this rank's columns. Collective over its group: an all-gather of two numbers a row for each chunk in
            forward, an all-reduce of hidden's gradient in backward; with sequence parallelism instead of that an
            all-gather of hidden in forward and a reduce-scatter in backward. No host sync on an accelerator.
        batch: its labels are token ids or `IGNORED`, `[B, S]`.
        sequence_parallel: hidden is a sequence shard.

    Raises:
        ValueError: the shapes of hidden and labels do not belong together.
        DataError: a label is outside [0, vocab_size), or a weight is negative or not finite (checked on CPU only).
    """
    labels = batch.targets()
    gathers = sequence_parallel and head.group.size > 1
    expected = (labels.shape[-1] // (head.group.size if gathers else 1), labels.shape[0])
    if hidden.ndim != 3 or tuple(hidden.shape[:2]) != expected:
        raise ValueError(
            f"hidden must be [S, B, H] (a shard of S with sequence parallelism) for labels [B, S], but they are "
            f"{tuple(hidden.shape)} and {tuple(labels.shape)}"
        )
    check_labels(labels, head.vocab_size)
    inputs = [hidden, head.weight, *([] if head.bias is None else [head.bias])]
    wants_grad = torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
    arguments = (hidden, head.weight, head.bias, batch, head, gathers, wants_grad)
    return cast(torch.Tensor, _LinearCrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]
