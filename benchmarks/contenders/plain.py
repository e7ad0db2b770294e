"""A plain PyTorch GPT and loop, as people write them after nanoGPT: nothing fused by hand, nothing in parallel.

Options: `compile` (torch.compile of the whole model), `fused` (AdamW's fused kernel; nanoGPT uses it on CUDA only).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.case import Case
from benchmarks.contenders.common import Tokens, dtype_of, initial_weights, set_up, steps
from benchmarks.gate import Gate


class Attention(nn.Module):
    """Causal self-attention over fused queries, keys and values."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.heads = case.num_heads
        self.qkv = nn.Linear(case.hidden_size, 3 * case.hidden_size)
        self.output = nn.Linear(case.hidden_size, case.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, S, H] to [B, S, H]."""
        batch, length, width = x.shape
        parts = self.qkv(x).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.output(y.transpose(1, 2).contiguous().view(batch, length, width))
        return out


class MLP(nn.Module):
    """Up, GELU, down."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.up = nn.Linear(case.hidden_size, case.ffn_hidden_size)
        self.down = nn.Linear(case.ffn_hidden_size, case.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, S, H] to [B, S, H]."""
        out: torch.Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(case.hidden_size)
        self.attention = Attention(case)
        self.mlp_norm = nn.LayerNorm(case.hidden_size)
        self.mlp = MLP(case)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, S, H] to [B, S, H]."""
        x = x + self.attention(self.attention_norm(x))
        out: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class PlainGPT(nn.Module):
    """GPT-2. Parameters have Trident's names, so that weights can be copied."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.embedding = nn.Embedding(case.vocab_size, case.hidden_size)
        self.position = nn.Embedding(case.seq_length, case.hidden_size)
        self.blocks = nn.ModuleList(Block(case) for _ in range(case.num_layers))
        self.final_norm = nn.LayerNorm(case.hidden_size)
        self.head = nn.Linear(case.hidden_size, case.vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of ids and labels [B, S]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embedding(input_ids) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))


def plain_gpt(case: Case, device: torch.device) -> PlainGPT:
    """Return the model with Trident's initial weights."""
    model = PlainGPT(case)
    weights = initial_weights(case)
    model.load_state_dict({**weights, "head.weight": weights["embedding.weight"]})
    return model.to(device)


def parameter_groups(model: nn.Module, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def autocast(case: Case, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of forward: bf16 autocast, or nothing."""
    return nullcontext() if case.dtype == "fp32" else torch.autocast(device.type, dtype_of(case))


def train(case: Case, model: nn.Module, device: torch.device, gate: Gate, fused: bool | None) -> None:
    """Run the loop until the gate ends it. `model(input_ids, labels)` returns the loss."""
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=case.lr, betas=(0.9, 0.95), fused=fused)
    batches = Tokens(case, device)
    gate.open(parameters=sum(p.numel() for p in model.parameters()))
    for step, rate in steps(case):
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = []
        for batch in batches.micro_batches(step):
            with autocast(case, device):
                loss = model(batch.input_ids, batch.targets()) / case.num_micro_batches
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gate.done([torch.stack(losses).sum()])


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    if case.family != "gpt2":
        from benchmarks.worker import Unavailable

        raise Unavailable("the plain loop is a GPT-2; use --case cpu")
    device = set_up(case)
    model = plain_gpt(case, device)
    compiled: Any = torch.compile(model) if options.get("compile") else model
    fused = True if options.get("fused") or device.type == "cuda" else None
    train(case, compiled, device, gate, fused)
