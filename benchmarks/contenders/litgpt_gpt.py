"""litgpt's GPT class in the plain loop. It knows rotary positions only, so it trains the LLaMA shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.case import Case
from benchmarks.contenders.common import initial_weights, set_up
from benchmarks.contenders.plain import train
from benchmarks.gate import Gate
from benchmarks.worker import Unavailable


class _WithLoss(nn.Module):
    """litgpt's model, returning the loss as its own training does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of ids and labels [B, S]."""
        logits = self.model(input_ids)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def _weights(case: Case) -> dict[str, torch.Tensor]:
    """Return Trident's initial weights by litgpt's names; both keep queries, keys and values in this order."""
    ours = initial_weights(case)
    weights = {
        "transformer.wte.weight": ours["embedding.weight"],
        "transformer.ln_f.weight": ours["final_norm.weight"],
        "lm_head.weight": ours["head.weight"],
    }
    for layer in range(case.num_layers):
        block, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        gate, up = ours[f"{block}.mlp.gate_up.weight"].chunk(2)
        weights |= {
            f"{theirs}.norm_1.weight": ours[f"{block}.attention_norm.weight"],
            f"{theirs}.norm_2.weight": ours[f"{block}.mlp_norm.weight"],
            f"{theirs}.attn.qkv.weight": ours[f"{block}.attention.qkv.weight"],
            f"{theirs}.attn.proj.weight": ours[f"{block}.attention.output.weight"],
            f"{theirs}.mlp.fc_1.weight": gate,
            f"{theirs}.mlp.fc_2.weight": up,
            f"{theirs}.mlp.proj.weight": ours[f"{block}.mlp.down.weight"],
        }
    return weights


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    device = set_up(case)
    if case.family != "llama":
        raise Unavailable("litgpt's GPT has no learned positions; use --case cpu_llama")
    try:
        from litgpt.config import Config
        from litgpt.model import GPT
    except ImportError as error:
        raise Unavailable(f"litgpt is not installed: pip install litgpt ({error})") from error
    config = Config(
        name=case.name,
        block_size=case.seq_length,
        n_layer=case.num_layers,
        n_embd=case.hidden_size,
        n_head=case.num_heads,
        vocab_size=case.vocab_size,
        padded_vocab_size=case.vocab_size,
        intermediate_size=case.ffn_hidden_size,
        norm_class_name="RMSNorm",
        norm_eps=1e-5,
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    model = GPT(config)
    model.load_state_dict(_weights(case))
    train(case, _WithLoss(model.to(device)), device, gate, True if device.type == "cuda" else None)
