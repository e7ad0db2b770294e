"""The choice of the next token from logits."""

from __future__ import annotations

import torch


def next_token(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw one token for each row.

    Args:
        logits: [B, V] fp32; ids that must not be drawn are -inf.
        temperature: 0 takes the likeliest token.
        top_k: keep this many likeliest tokens; 0 keeps all.
        top_p: then keep the fewest likeliest tokens whose probability reaches this (nucleus, arXiv 1904.09751).
        generator: on the logits' device.

    Returns:
        [B] int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    # Relative to the largest and in double precision: no temperature, however small, gives an infinity or a NaN.
    scaled = (logits - logits.max(dim=-1, keepdim=True).values).double() / temperature
    if 0 < top_k < scaled.shape[-1]:
        # By index and not by value, so that equal logits do not let more than top_k through.
        kept = scaled.topk(top_k, dim=-1).indices
        dropped = torch.ones_like(scaled, dtype=torch.bool).scatter(-1, kept, False)
        scaled = scaled.masked_fill(dropped, float("-inf"))
    if top_p < 1:
        ordered, index = scaled.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before >= top_p)
        scaled = scaled.masked_fill(dropped, float("-inf"))
    return torch.multinomial(scaled.softmax(dim=-1), 1, generator=generator).squeeze(-1)
