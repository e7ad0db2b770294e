"""What every layer needs to know to build its share of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.config.plan import ModelSpec
from trainer.errors import ConfigError
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.random import StepClock


@dataclass(frozen=True)
class ModelContext(TensorContext):
    """Handed to every layer's constructor."""

    spec: ModelSpec
    clock: StepClock
    """Where dropout learns step and micro-batch from."""

    @property
    def residual_std(self) -> float:
        """Initial standard deviation of the two matrices of a block that write into the residual stream.

        Source: GPT-2 (Radford et al. 2019), section 2.3: 1 / sqrt(number of residual layers).
        """
        return self.spec.init_std / math.sqrt(2 * self.spec.num_layers)

    def check(self) -> None:
        """Check that the model can be cut over the group.

        Raises:
            ConfigError: one problem for each size that cannot.
        """
        spec, size = self.spec, self.tensor.size
        sizes = {
            "model.num_attention_heads": spec.num_attention_heads,
            "model.num_key_value_heads": spec.num_key_value_heads,
            "model.ffn_hidden_size": spec.ffn_hidden_size,
        }
        problems = [
            f"{key} ({value}) must be divisible by layout.tensor_parallel_size ({size})"
            for key, value in sizes.items()
            if value % size
        ]
        if spec.num_attention_heads % spec.num_key_value_heads:
            problems.append(
                f"model.num_attention_heads ({spec.num_attention_heads}) must be divisible by "
                f"model.num_key_value_heads ({spec.num_key_value_heads})"
            )
        if problems:
            raise ConfigError(problems)
