"""torchtitan's Llama 3 model (0.3) in the plain loop, with its stock rotary embedding and FlexAttention.

FlexAttention has no backward on a CPU, so this contender needs CUDA. Seen so far: the model's loss with Trident's
weights on a CPU, forward only; its training on CUDA was not seen yet, and the check of the losses judges it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.case import Case
from benchmarks.contenders.common import set_up
from benchmarks.contenders.plain import train
from benchmarks.contenders.transformers_trainer import llama_weights
from benchmarks.gate import Gate
from benchmarks.worker import Unavailable


class TitanWithLoss(nn.Module):
    """torchtitan's model with Trident's initial weights, returning the loss.

    Args:
        case: a LLaMA shape.
        device: where it computes.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__()
        from torchtitan.models.common.attention import create_attention_mask, get_causal_mask_mod
        from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

        config = _config(case)
        self.model = config.build()
        self.model.init_states()
        weights = Llama3StateDictAdapter(config, None).from_hf(llama_weights(case))
        self.model.load_state_dict(weights)
        self.model.to(device)
        length = case.seq_length
        self.mask = create_attention_mask(get_causal_mask_mod(), 1, None, length, length, device=device)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of ids and labels [B, S]."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(len(input_ids), -1)
        logits = self.model(input_ids, positions=positions, attention_masks=self.mask)
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def _config(case: Case) -> Any:
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.llama3 import _build_llama3_layers
    from torchtitan.models.llama3.model import Llama3Model

    width, vocab = case.hidden_size, case.vocab_size
    rope = ComplexRoPE.Config(dim=width // case.num_heads, max_seq_len=case.seq_length)
    return Llama3Model.Config(
        dim=width,
        vocab_size=vocab,
        tok_embeddings=Embedding.Config(num_embeddings=vocab, embedding_dim=width),
        norm=RMSNorm.Config(normalized_shape=width),
        lm_head=Linear.Config(in_features=width, out_features=vocab),
        layers=_build_llama3_layers(
            n_layers=case.num_layers,
            dim=width,
            n_heads=case.num_heads,
            hidden_dim=case.ffn_hidden_size,
            rope=rope,
            attn_backend="flex",
        ),
    )


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Build and train."""
    if case.family != "llama":
        raise Unavailable("torchtitan's Llama has no learned positions; use a LLaMA case")
    try:
        import torchtitan.models.llama3  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"torchtitan cannot be imported: pip install torchtitan ({error})") from error
    if case.device != "cuda":
        raise Unavailable("torchtitan's language models need CUDA: FlexAttention has no backward on a CPU")
    device = set_up(case)
    train(case, TitanWithLoss(case, device), device, gate, fused=True)
