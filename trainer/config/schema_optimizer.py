"""The part of the config schema that says how weights are stepped. Part of `schema.py`.

A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trainer.spec.stepping import StepRule


class AdamImplementation(Enum):
    """Implementation of AdamW. `auto`: DeepSpeed's CPU kernel when state is offloaded, torch otherwise."""

    auto = "auto"
    torch = "torch"
    deepspeed_cpu = "deepspeed_cpu"


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer: AdamW, Lion or Muon; docs/optimizers.md says what each does."""

    kind: StepRule = StepRule.adamw
    """adamw | lion | muon. adamw: arXiv 1711.05101. lion: arXiv 2302.06675; it keeps one moment instead of two, and
    wants a learning rate 3 to 10 times smaller and a weight decay as much larger. muon: matrices of the blocks are
    stepped by orthogonalised momentum (arXiv 2502.16982), everything else as by adamw, at one learning rate."""
    lr: float = 3e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay rate of the first moment. lion: share of the moment in what a step takes the sign of."""
    beta2: float = 0.95
    """Decay rate of the second moment. lion: of its only moment."""
    eps: float = 1e-8
    """Epsilon: added to the square root of the second moment; not in lion."""
    momentum: float = 0.95
    """muon: decay rate of the momentum of matrices."""
    weight_decay: float = 0.1
    """Decoupled weight decay; applied to matrices only, not to norms and biases."""
    grad_clip: float = 1.0
    """Largest global L2 norm of the gradients; larger gradients are scaled down to it. 0: no clipping."""
    rates: tuple[str, ...] = ()
    """Factors of the learning rate for parts of the model, as PART:FACTOR, such as [embedding:0.3,norms:2]. A part is
    a word of train.frozen, or matrices (those of the blocks). Where two parts share a tensor, the later one counts."""
    mup_base_width: int | None = None
    """A width (model.hidden_size) whose learning rate is to fit this model: matrices of the blocks and a head that is
    not tied step with lr x mup_base_width / model.hidden_size (muP, arXiv 2203.03466: the rates of Adam in Table 3, and
    of Table 8 where the head is tied); their weight decay grows as much, so that a step decays them as the base's.
    Initial values and scales are keys of model.*: see docs/optimizers.md. null: the same rate for every width."""
    ema_decay: float | None = None
    """Decay rate of an exponential moving average of the weights (EMA), such as 0.999: after every step the average is
    ema_decay x itself + (1 - ema_decay) x the weights. It begins as the first weights, is sharded and saved as they
    are, and is what eval.ema, `trident export --ema` and ema=true of the other verbs use. null: none."""
    implementation: AdamImplementation = AdamImplementation.auto
    """auto | torch | deepspeed_cpu."""
