"""The oracle: a plain single-process GPT and training loop, written from the papers. fp32, batch first.

Imports nothing of the code that it judges: weights come in as full, unpadded tensors by global name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from trainer.config.schema import ModelConfig, NormKind, OptimizerConfig, PositionKind
from trainer.oracle.reference_optimizers import Factor, ReferenceOptimizer, constant_factor
from trainer.oracle.reference_rope import rotary_frequencies

Weights = Mapping[str, torch.Tensor]
Batch = Sequence[torch.Tensor]
"""(input_ids, labels) or (input_ids, labels, weights of the labels), each [B, S]. A label of -100 does not count."""


def _linear(x: torch.Tensor, weights: Weights, name: str, spec: ModelConfig) -> torch.Tensor:
    y = torch.einsum("bsi,oi->bso", x, weights[f"{name}.weight"]) + _adapted(x, weights, name, spec)
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _adapted(x: torch.Tensor, weights: Weights, name: str, spec: ModelConfig) -> torch.Tensor | float:
    """Hu et al. 2021: scale B A x, in the rows of the outputs that B is for."""
    lora, total = spec.lora, 0.0 if spec.lora.rank is None else torch.zeros(())
    for key in weights:
        owner, _, part = key.removesuffix(".a").partition(".lora.")
        if lora.rank is None or owner != name or not key.endswith(".a"):
            continue
        alpha = lora.rank if lora.alpha is None else lora.alpha
        scale = alpha / (math.sqrt(lora.rank) if lora.rank_stabilised else lora.rank)
        b, rows = weights[f"{name}.lora.{part}.b"], len(weights[f"{name}.weight"])
        y = scale * torch.einsum("bsr,or->bso", torch.einsum("bsi,ri->bsr", x, weights[key]), b)
        first = _first_row(part, rows, spec)
        total = total + torch.nn.functional.pad(y, (first, rows - first - len(b)))
    return total


def _first_row(part: str, rows: int, spec: ModelConfig) -> int:
    """Return the row of a fused matrix at which an output begins: keys follow queries, up follows the gate."""
    size = spec.head_dim or spec.hidden_size // spec.num_attention_heads
    queries = spec.num_attention_heads * size
    keys = (spec.num_key_value_heads or spec.num_attention_heads) * size
    is_fused = spec.activation.value == "swiglu" or spec.gated
    return {"k": queries, "v": queries + keys, "up": rows // 2 if is_fused else 0}.get(part, 0)


def _norm(x: torch.Tensor, weights: Weights, name: str, spec: ModelConfig) -> torch.Tensor:
    if spec.norm is NormKind.layernorm:
        x = x - x.mean(dim=-1, keepdim=True)
    y = x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + spec.norm_eps)
    if spec.norm_weight:
        y = y * (weights[f"{name}.weight"] + spec.norm_offset)
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _rotated(x: torch.Tensor, frequencies: Sequence[float], factor: float) -> torch.Tensor:
    """Rotate pairs (i, i + D/2) of x [B, N, S, D] by s * frequencies[i], as complex numbers, and scale them."""
    if x.dtype not in (torch.float32, torch.float64):
        # There are no complex numbers of 16 bits.
        return _rotated(x.float(), frequencies, factor).to(x.dtype)
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    circle = torch.polar(torch.full_like(angle, factor), angle).to(
        torch.complex128 if x.dtype == torch.float64 else torch.complex64
    )
    turned = torch.complex(x[..., :half], x[..., half:]) * circle
    return torch.cat((turned.real, turned.imag), dim=-1)


def _slopes(heads: int) -> list[float]:
    """Press et al. 2022: 2^(-8 i / n); heads beyond a power of two take every other slope of twice as many."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    power = 1 << (heads.bit_length() - 1)
    return _slopes(power) + _slopes(2 * power)[0::2][: heads - power]


def _queries_and_keys(
    q: torch.Tensor, k: torch.Tensor, weights: Weights, name: str, spec: ModelConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise q [B, S, N, D] and k [B, S, M, D], each head or all of them."""
    found = []
    for x, norm in ((q, "query_norm"), (k, "key_norm")):
        wide = x.flatten(2) if spec.query_key_norm.value == "full" else x
        found.append(_norm(wide, weights, f"{name}.{norm}", spec).reshape(x.shape))
    return found[0], found[1]


def _attention(x: torch.Tensor, weights: Weights, name: str, spec: ModelConfig, kind: str) -> torch.Tensor:
    batch, length, _ = x.shape
    heads = spec.num_attention_heads
    groups, size = spec.num_key_value_heads or heads, spec.head_dim or spec.hidden_size // heads
    fused = _linear(x, weights, f"{name}.qkv", spec)
    q = fused[..., : heads * size].reshape(batch, length, heads, size)
    k = fused[..., heads * size : (heads + groups) * size].reshape(batch, length, groups, size)
    v = fused[..., (heads + groups) * size :].reshape(batch, length, groups, size)
    if spec.query_key_norm.value != "none":
        q, k = _queries_and_keys(q, k, weights, name, spec)
    if spec.clip_qkv is not None:
        q, k, v = (
            torch.minimum(torch.maximum(y, y.new_tensor(-spec.clip_qkv)), y.new_tensor(spec.clip_qkv))
            for y in (q, k, v)
        )
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    if spec.position is PositionKind.rope and not kind.endswith("no_rope"):
        turned = spec.rope_dims or size
        frequencies, factor = rotary_frequencies(spec, turned, kind.startswith("window"), length)
        q, k = (torch.cat((_rotated(y[..., :turned], frequencies, factor), y[..., turned:]), dim=-1) for y in (q, k))
    window = spec.sliding_window if kind.startswith("window") and spec.sliding_window else length
    forbidden = torch.tensor([[not i - window < j <= i for j in range(length)] for i in range(length)])
    scale = 1 / math.sqrt(size) if spec.attention_scale is None else spec.attention_scale
    outputs = []
    for head in range(heads):
        group = head // (heads // groups)
        scores = q[:, head] @ k[:, group].transpose(1, 2) * scale
        if spec.position.value == "alibi":
            scores = scores + _slopes(heads)[head] * torch.arange(length)
        outputs.append(torch.softmax(scores.masked_fill(forbidden, -math.inf), dim=-1) @ v[:, group])
    return _linear(torch.cat(outputs, dim=-1), weights, f"{name}.output", spec)


def _activated(y: torch.Tensor, name: str) -> torch.Tensor:
    if name == "relu":
        return y.clamp(min=0)
    if name == "relu2":
        return y.clamp(min=0) ** 2
    if name in ("silu", "swiglu"):
        return y * torch.sigmoid(y)
    if name == "gelu":
        return y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    return 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


def _mlp(x: torch.Tensor, weights: Weights, name: str, spec: ModelConfig) -> torch.Tensor:
    kind = spec.activation.value
    if kind == "swiglu" or spec.gated:
        gate, up = _linear(x, weights, f"{name}.gate_up", spec).chunk(2, dim=-1)
        return _linear(_activated(gate, kind) * up, weights, f"{name}.down", spec)
    return _linear(_activated(_linear(x, weights, f"{name}.up", spec), kind), weights, f"{name}.down", spec)


def _block(x: torch.Tensor, weights: Weights, name: str, spec: ModelConfig, kind: str) -> torch.Tensor:
    def normed(y: torch.Tensor, norm: str) -> torch.Tensor:
        return _norm(y, weights, f"{name}.{norm}", spec)

    def attention(y: torch.Tensor) -> torch.Tensor:
        return _attention(y, weights, f"{name}.attention", spec, kind)

    def mlp(y: torch.Tensor) -> torch.Tensor:
        return _mlp(y, weights, f"{name}.mlp", spec)

    r, wiring = spec.residual_scale, spec.wiring.value
    if wiring == "parallel":  # GPT-J
        n = normed(x, "attention_norm")
        return x + r * attention(n) + r * mlp(n)
    if wiring == "parallel_two_norms":  # GPT-NeoX
        return x + r * attention(normed(x, "attention_norm")) + r * mlp(normed(x, "mlp_norm"))
    if wiring == "post":  # GPT-1
        x = normed(x + r * attention(x), "attention_norm")
        return normed(x + r * mlp(x), "mlp_norm")
    if wiring == "output":  # OLMo 2
        x = x + r * normed(attention(x), "attention_norm")
        return x + r * normed(mlp(x), "mlp_norm")
    if wiring == "sandwich":  # Gemma 2
        x = x + r * normed(attention(normed(x, "attention_norm")), "attention_output_norm")
        return x + r * normed(mlp(normed(x, "mlp_norm")), "mlp_output_norm")
    x = x + r * attention(normed(x, "attention_norm"))  # GPT-2
    return x + r * mlp(normed(x, "mlp_norm"))


def reference_logits(spec: ModelConfig, weights: Weights, input_ids: torch.Tensor) -> torch.Tensor:
    """Return logits [B, S, vocab_size] of ids [B, S]. No dropout."""
    x = weights["embedding.weight"][input_ids] * spec.embedding_scale
    if spec.embedding_norm:
        x = _norm(x, weights, "embedding.norm", spec)
    if spec.position is PositionKind.learned:
        first = spec.position_offset
        x = x + weights["position.weight"][first : first + input_ids.shape[1]]
    kinds = [kind.value for kind in spec.layer_pattern] or ["window" if spec.sliding_window else "full"]
    for index in range(spec.num_layers):
        x = _block(x, weights, f"blocks.{index}", spec, kinds[index % len(kinds)])
    if spec.final_norm:
        x = _norm(x, weights, "final_norm", spec)
    head = "embedding.weight" if spec.tied_embeddings else "head.weight"
    logits = torch.einsum("bsh,vh->bsv", x, weights[head])
    if spec.head_bias:
        logits = logits + weights["head.bias"]
    logits = logits * spec.logit_scale
    return logits if spec.final_softcap is None else spec.final_softcap * torch.tanh(logits / spec.final_softcap)


def reference_loss(spec: ModelConfig, weights: Weights, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token cross-entropy []."""
    return loss_sum(spec, weights, (input_ids, labels)) / counted((input_ids, labels))


def counted(batch: Batch) -> float:
    """Return how many tokens count, by their weights."""
    one_each = torch.ones_like(batch[1], dtype=torch.float64)
    weights = batch[2].double() if len(batch) == 3 else one_each
    return float(weights[batch[1] != -100].sum())


def loss_sum(spec: ModelConfig, weights: Weights, batch: Batch) -> torch.Tensor:
    """Return the sum of the next-token cross-entropies of the tokens that count, each times its weight, []."""
    rows = batch[1] != -100
    log_probabilities = torch.log_softmax(reference_logits(spec, weights, batch[0]), dim=-1)[rows]
    losses = -log_probabilities.gather(-1, batch[1][rows].unsqueeze(-1)).squeeze(-1)
    return (losses * batch[2][rows] if len(batch) == 3 else losses).sum()


def reference_gradients(
    spec: ModelConfig, weights: Weights, input_ids: torch.Tensor, labels: torch.Tensor
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradient of every weight."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
    loss = reference_loss(spec, leaves, input_ids, labels)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.item(), dict(zip(leaves, gradients, strict=True))


@dataclass(frozen=True)
class ReferenceRun:
    """Results of a training run."""

    losses: tuple[float, ...]
    """Sum over the counted tokens of the global batch divided by their number, one a step."""
    grad_norms: tuple[float, ...]
    """Global L2 norm before clipping, one a step."""
    first_gradients: dict[str, torch.Tensor]
    """Gradients of the first step's loss, before clipping."""
    weights: dict[str, torch.Tensor]
    """After the last step."""
    average: dict[str, torch.Tensor]
    """Exponential moving average of the weights after the last step; empty without one."""


def train_reference(
    spec: ModelConfig,
    weights: Weights,
    steps: Sequence[Sequence[Batch]],
    optimizer: OptimizerConfig,
    learning_rate: Callable[[int], float] | None = None,
    frozen: tuple[str, ...] = (),
    factor: Factor = constant_factor,
    decay_factor: Factor = constant_factor,
) -> ReferenceRun:
    """Train with the optimizer of the config. Each step is a sequence of micro-batches, together the global batch.

    Args:
        spec: the model.
        weights: to start from; not changed. It computes in fp64 if they are, otherwise in fp32.
        steps: micro-batches of the whole global batch, step after step.
        optimizer: its kind, lr, betas, eps, weight_decay (matrices only) and grad_clip (0: off).
        learning_rate: rate of step 1, 2, ...; None: optimizer.lr always.
        frozen: beginnings of the names of weights that are not trained.
        factor: factor of each weight's learning rate.
        decay_factor: factor of each weight's decay.
    """
    wide = any(tensor.dtype == torch.float64 for tensor in weights.values())
    leaves = {
        name: tensor.detach().clone().to(torch.float64 if wide else torch.float32) for name, tensor in weights.items()
    }
    for name, leaf in leaves.items():
        leaf.requires_grad_(not name.startswith(frozen))
    stepped = ReferenceOptimizer(optimizer, factor, decay_factor)
    decay, losses, norms = optimizer.ema_decay, [], []
    average = {} if decay is None else {name: leaf.detach().clone() for name, leaf in leaves.items()}
    first_gradients: dict[str, torch.Tensor] = {}
    for step, micro_batches in enumerate(steps, start=1):
        for leaf in leaves.values():
            leaf.grad = None
        total, number = 0.0, sum(counted(batch) for batch in micro_batches)
        for batch in micro_batches:
            loss = loss_sum(spec, leaves, batch) / number
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        if step == 1:
            first_gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        norm = math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients.values()))
        if 0 < optimizer.grad_clip < norm + 1e-6:
            for gradient in gradients.values():
                gradient.mul_(optimizer.grad_clip / (norm + 1e-6))
        stepped.step(leaves, gradients, optimizer.lr if learning_rate is None else learning_rate(step))
        if decay is not None:
            average = {name: decay * old + (1 - decay) * leaves[name].detach() for name, old in average.items()}
        losses.append(total)
        norms.append(norm)
    final = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    return ReferenceRun(tuple(losses), tuple(norms), first_gradients, final, average)
