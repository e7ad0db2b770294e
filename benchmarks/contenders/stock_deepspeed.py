"""Stock DeepSpeed as its documentation shows it: the plain GPT's layers in a PipelineModule, or the plain engine.

Nothing is tuned: default partition method, default buckets, DeepSpeed's own AdamW, ZeRO-1.
Options: `pipeline_parallel_size`; the other ranks are replicas.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.case import Case
from benchmarks.contenders.common import Tokens, initial_weights, set_up, steps
from benchmarks.contenders.plain import Block, plain_gpt
from benchmarks.gate import Gate
from benchmarks.worker import Unavailable


class Embedding(nn.Module):
    """Token embedding; tied, it is the head as well."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(case.vocab_size, case.hidden_size))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed ids [B, S]."""
        return F.embedding(ids, self.weight)


class Position(nn.Module):
    """Adds learned positions."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(case.seq_length, case.hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the positions to x [B, S, H]."""
        return x + self.weight[: x.shape[1]]


def _head(module: Embedding, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, module.weight)


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))


def _settings(case: Case, data_parallel_size: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "train_batch_size": case.global_batch_size,
        "train_micro_batch_size_per_gpu": case.micro_batch_size,
        "gradient_accumulation_steps": case.global_batch_size // (case.micro_batch_size * data_parallel_size),
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": case.lr, "betas": [0.9, 0.95], "weight_decay": 0.1}},
        "steps_per_print": 1_000_000,
    }
    return settings | ({"bf16": {"enabled": True}} if case.dtype == "bf16" else {})


def _pipeline(case: Case, stages: int) -> nn.Module:
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

    layers = [
        TiedLayerSpec("embedding", Embedding, case, tied_weight_attr="weight"),
        LayerSpec(Position, case),
        *(LayerSpec(Block, case) for _ in range(case.num_layers)),
        LayerSpec(nn.LayerNorm, case.hidden_size),
        TiedLayerSpec("embedding", Embedding, case, forward_fn=_head, tied_weight_attr="weight"),
    ]
    module: nn.Module = PipelineModule(layers, num_stages=stages, loss_fn=_loss)
    weights = initial_weights(case)
    names = ["", "position", *(f"blocks.{index}" for index in range(case.num_layers)), "final_norm"]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            first, _, rest = name.partition(".")
            ours = "embedding.weight" if first == "tied_modules" else f"{names[int(first)]}.{rest}"
            parameter.copy_(weights[ours])
    return module


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.ndim >= 2]
    rest = [p for p in parameters if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _pairs(batches: Tokens, step: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in batches.micro_batches(step):
        yield batch.input_ids, batch.targets()


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    device = set_up(case)
    if case.family != "gpt2":
        raise Unavailable("the plain model is a GPT-2; use --case cpu")
    import deepspeed

    deepspeed.init_distributed()
    stages, ranks = int(options.get("pipeline_parallel_size", 1)), int(os.environ["WORLD_SIZE"])
    dp = ranks // stages
    model: nn.Module = _pipeline(case, stages) if stages > 1 else plain_gpt(case, device)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=_groups(model), config=_settings(case, dp))
    # rank = stage * dp + dp_rank
    batches = Tokens(case, device, int(os.environ["RANK"]) % dp, dp)
    gate.open(optimizer=type(engine.optimizer).__name__, inner=type(engine.basic_optimizer).__name__)
    for step, rate in steps(case):
        for group in engine.basic_optimizer.param_groups:
            group["lr"] = rate
        if stages > 1:
            gate.done([engine.train_batch(_pairs(batches, step)).detach()])
            continue
        losses = []
        for input_ids, labels in _pairs(batches, step):
            loss = engine(input_ids, labels)
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
        gate.done([torch.stack(losses).mean()])
