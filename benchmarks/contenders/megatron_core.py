"""megatron-core's GPTModel (0.16) with its local spec in the plain loop, no Transformer Engine and no Apex.

Its own attention keeps the whole scores, so it is slower and larger than Megatron-LM with Transformer Engine: an
anchor, not that system's best. It asks CUDA for its buffers, so this contender needs CUDA. Seen so far: the model's
loss and gradients with Trident's weights on a CPU, with those buffers moved there; its training on CUDA was not seen
yet, and the check of the losses judges it there.
"""

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


class MegatronWithLoss(nn.Module):
    """Megatron's model with Trident's initial weights, returning the mean loss.

    Args:
        case: a GPT-2 shape.
        device: where it computes.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__()
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.transformer.transformer_config import TransformerConfig

        config = TransformerConfig(
            num_layers=case.num_layers,
            hidden_size=case.hidden_size,
            num_attention_heads=case.num_heads,
            ffn_hidden_size=case.ffn_hidden_size,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_func=F.gelu,
            # Fused, it is the tanh form that GPT-2 has; unfused it would be the exact one.
            bias_activation_fusion=True,
            masked_softmax_fusion=False,
            gradient_accumulation_fusion=False,
            persist_layer_norm=False,
            use_cpu_initialization=True,
        )
        self.model = GPTModel(
            config=config,
            transformer_layer_spec=get_gpt_layer_local_spec(),
            vocab_size=case.vocab_size,
            max_sequence_length=case.seq_length,
            share_embeddings_and_output_weights=True,
            position_embedding_type="learned_absolute",
        )
        with torch.no_grad():
            weights = _weights(case)
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights.pop(name))
        if weights:
            raise RuntimeError(f"weights do not fit: {', '.join(weights)} are left over")
        self.model.to(device)
        mask = torch.ones(case.seq_length, case.seq_length, dtype=torch.bool, device=device).triu(1)
        self.mask = mask[None, None]

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of ids and labels [B, S]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(len(input_ids), -1)
        losses: torch.Tensor = self.model(input_ids, positions, self.mask, labels=labels)
        return losses.mean()


def _weights(case: Case) -> dict[str, torch.Tensor]:
    """Return Trident's initial weights by Megatron's names; a head's queries, keys and values lie together there."""
    ours = initial_weights(case)
    weights = {
        "embedding.word_embeddings.weight": ours["embedding.weight"],
        "embedding.position_embeddings.weight": ours["position.weight"],
        "decoder.final_layernorm.weight": ours["final_norm.weight"],
        "decoder.final_layernorm.bias": ours["final_norm.bias"],
    }
    parts = {
        "input_layernorm": "attention_norm",
        "self_attention.linear_qkv": "attention.qkv",
        "self_attention.linear_proj": "attention.output",
        "pre_mlp_layernorm": "mlp_norm",
        "mlp.linear_fc1": "mlp.up",
        "mlp.linear_fc2": "mlp.down",
    }
    for layer in range(case.num_layers):
        for theirs, mine in parts.items():
            for kind in ("weight", "bias"):
                tensor = ours[f"blocks.{layer}.{mine}.{kind}"]
                if mine == "attention.qkv":
                    by_kind = tensor.view(3, case.num_heads, case.hidden_size // case.num_heads, -1)
                    tensor = by_kind.transpose(0, 1).reshape(tensor.shape)
                weights[f"decoder.layers.{layer}.{theirs}.{kind}"] = tensor
    return weights


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    if case.family != "gpt2":
        raise Unavailable("this adapter builds Megatron's GPT-2; use a GPT-2 case")
    try:
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    except ImportError as error:
        raise Unavailable(f"megatron-core cannot be imported: pip install megatron-core ({error})") from error
    if case.device != "cuda":
        raise Unavailable("megatron-core's attention needs CUDA: it takes its buffers from torch.cuda.current_device()")
    device = set_up(case)
    torch.distributed.init_process_group("nccl")
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(case.seed)
    train(case, MegatronWithLoss(case, device), device, gate, fused=True)
