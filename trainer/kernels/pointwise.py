"""The kernels between the GEMMs of a block: norms and the gated activation, by PyTorch or by Liger's kernels.

Source: Liger Kernel, arXiv 2410.10989, sections 3.1 and 3.2: one Triton kernel each, backward included.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F


class Pointwise:
    """PyTorch's kernels."""

    def layer_norm(
        self, hidden: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        """Return LayerNorm over the last dimension, `[..., H]`, in the input's dtype; statistics in fp32."""
        return F.layer_norm(hidden, hidden.shape[-1:], weight, bias, eps)

    def rms_norm(self, hidden: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
        """Return RMSNorm over the last dimension, `[..., H]`, in the input's dtype; statistics in fp32."""
        return F.rms_norm(hidden, hidden.shape[-1:], weight, eps)

    def silu_times(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) up, `[..., F]`."""
        return F.silu(gate) * up


class LigerPointwise(Pointwise):
    """Liger's Triton kernels, on a GPU. It has none for a LayerNorm without bias or a norm without weight."""

    def layer_norm(
        self, hidden: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        """See `Pointwise`."""
        if weight is None or bias is None:
            return super().layer_norm(hidden, weight, bias, eps)
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        return cast(torch.Tensor, LigerLayerNormFunction.apply(hidden, weight, bias, eps))

    def rms_norm(self, hidden: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
        """See `Pointwise`."""
        if weight is None:
            return super().rms_norm(hidden, weight, eps)
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        # No offset of the weight; all in fp32, as PyTorch does; the incoming gradient is not overwritten.
        return cast(torch.Tensor, LigerRMSNormFunction.apply(hidden, weight, eps, 0.0, "gemma", False))

    def silu_times(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """See `Pointwise`."""
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return cast(torch.Tensor, LigerSiLUMulFunction.apply(gate, up))
