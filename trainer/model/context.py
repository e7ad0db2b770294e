"""The context that every layer needs to build its share of the model."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import ConfigError
from trainer.model.limits import not_computed, not_divisible
from trainer.spec.model import Model
from trainer.tensor_parallel.init import TensorContext


@dataclass(frozen=True)
class ModelContext(TensorContext):
    """Handed to every layer's constructor."""

    spec: Model

    def check(self) -> None:
        """Check that the layers can compute the model, and that it can be sharded over the group.

        Raises:
            ConfigError: one problem for each option that they do not know and each size that cannot be sharded.
        """
        problems = [*not_computed(self.spec), *not_divisible(self.spec, self.tensor.size)]
        if problems:
            raise ConfigError(problems)
