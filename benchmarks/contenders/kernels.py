"""The kernels that a model is made of, each alone: GEMMs, attention, head and loss.

Options: `parts`, whose shapes are measured in each of `products`, `attention` and `loss`: a step does the next one, and
extras tell its rows; `warmup` and `repeats` of each time; `chunks`, logits in a chunk of the fused loss; `compile`:
whether programs of torch.compile are among the losses. A row that cannot be measured has a reason instead of times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.case import Case
from benchmarks.contenders.common import dtype_of, set_up
from benchmarks.contenders.kernels_loss import Row, loss_rows, row_of
from benchmarks.gate import Gate
from benchmarks.stopwatch import Stopwatch
from benchmarks.worker import reason_of
from trainer.engine.host_memory import keep_freed_memory
from trainer.kernels.gemm import OneDNNProducts, Products, has_onednn

BACKENDS = {
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.MATH: "math",
}
_OF_A_CPU = (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)


def matrices(case: Case) -> dict[str, tuple[int, int]]:
    """Return input and output width of every GEMM of the model by name."""
    plan = case.plan()
    block = plan.model.blocks[0]
    linears = {
        "qkv": block.attention.qkv,
        "attention output": block.attention.output,
        "gate and up" if block.feed_forward.gated else "up": block.feed_forward.up,
        "down": block.feed_forward.down,
    }
    head = (plan.model.hidden_size, plan.execution.padded(plan.model.vocab_size))
    return {**{name: (linear.in_features, linear.out_features) for name, linear in linears.items()}, "head": head}


def libraries(case: Case) -> dict[str, Products]:
    """Return who multiplies on the case's device in its precision."""
    found = {"PyTorch's choice": Products()}
    if case.device == "cpu" and case.dtype == "fp32" and has_onednn():
        found["oneDNN"] = OneDNNProducts()
    return found


def product_rows(case: Case, device: torch.device, watch: Stopwatch) -> list[Row]:
    """Return TFLOP/s of forward and both gradients by GEMM and library."""
    rows = case.tokens_in_micro_batch
    where: Any = {"device": device, "dtype": dtype_of(case)}

    def measure(products: Products, width_in: int, width_out: int) -> Row:
        inputs, grad = torch.randn(rows, width_in, **where), torch.randn(rows, width_out, **where)
        weight = torch.randn(width_out, width_in, **where)
        work: dict[str, Callable[[], object]] = {
            "forward": lambda: products.forward(inputs, weight),
            "input_gradient": lambda: products.input_gradient(grad, weight),
            "weight_gradient": lambda: products.weight_gradient(grad, inputs),
        }
        flops = 2.0 * rows * width_in * width_out
        return {"tflops": {kind: flops / watch.seconds(one) / 1e12 for kind, one in work.items()}}

    return [
        row_of(
            {"case": case.name, "product": name, "rows": rows, "in": shape[0], "out": shape[1], "library": library},
            partial(measure, products, *shape),
        )
        for name, shape in matrices(case).items()
        for library, products in libraries(case).items()
    ]


class Attention:
    """Causal attention over queries, keys and values of one GEMM, [S, B, 3 N D], split as in the model."""

    def __init__(self, case: Case, device: torch.device) -> None:
        where: Any = {"device": device, "dtype": dtype_of(case)}
        self.heads, self.head_dim = case.num_heads, case.hidden_size // case.num_heads
        self.qkv = torch.randn(case.seq_length, case.micro_batch_size, 3 * case.hidden_size, **where).requires_grad_()
        self.grad = torch.randn(case.seq_length, case.micro_batch_size, case.hidden_size, **where)

    def parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys and values, views [B, N, S, D]."""
        heads = self.qkv.view(*self.qkv.shape[:2], 3 * self.heads, self.head_dim)
        query, key, value = torch.split(heads, self.heads, dim=2)
        return query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)

    def forward(self) -> torch.Tensor:
        """Attend: [S, B, N D]."""
        query, key, value = self.parts()
        return F.scaled_dot_product_attention(query, key, value, is_causal=True).permute(2, 0, 1, 3).flatten(2)

    def both(self) -> torch.Tensor:
        """Return the gradient of the product."""
        return torch.autograd.grad(self.forward(), self.qkv, self.grad)[0]

    def choice(self) -> str:
        """Return the backend that PyTorch takes by itself."""
        query, key, value = self.parts()
        backend = SDPBackend(torch._fused_sdp_choice(query, key, value, None, 0.0, True))
        return BACKENDS.get(backend, backend.name)


def attention_rows(case: Case, device: torch.device, watch: Stopwatch) -> list[Row]:
    """Return seconds of attention by backend, forward and with backward, and which one PyTorch takes by itself."""

    def measure(backend: SDPBackend) -> Row:
        attention = Attention(case, device)
        found: Row = {"choice": attention.choice()}
        with sdpa_kernel(backend):
            return {**found, "forward_s": watch.seconds(attention.forward), "both_s": watch.seconds(attention.both)}

    facts = {"case": case.name, "seq": case.seq_length, "batch": case.micro_batch_size, "heads": case.num_heads}
    facts |= {"head_dim": case.hidden_size // case.num_heads}
    backends = _OF_A_CPU if device.type == "cpu" else tuple(BACKENDS)
    return [row_of({**facts, "backend": BACKENDS[one]}, partial(measure, one)) for one in backends]


def rows_of(case: Case, measure: Callable[[Case], list[Row]]) -> list[Row]:
    """Return a case's rows; one with the reason if not even its tensors can be made."""
    try:
        return measure(case)
    except Exception as error:  # the next case may be smaller
        return [{"case": case.name, "failed": reason_of(error)}]


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Measure one part a step, as the parent names them; then wait."""
    device = set_up(case)
    if case.device == "cpu":
        keep_freed_memory()  # as in training
    torch.manual_seed(case.seed)
    watch = Stopwatch(device, options["warmup"], options["repeats"])
    parts: dict[str, Callable[[Case], list[Row]]] = {
        "products": lambda one: product_rows(one, device, watch),
        "attention": lambda one: attention_rows(one, device, watch),
        "loss": lambda one: loss_rows(one, device, watch, options["chunks"], compiles=bool(options["compile"])),
    }
    found: list[Row] = []
    gate.extras = lambda: {"rows": found}
    gate.open(device=device.type)
    for part, cases in options["parts"].items():
        found = [row for one in cases for row in rows_of(Case.from_dict(one), parts[part])]
        gate.done([0.0])
