"""The definition of a spike: a loss far above those of the steps before it."""

from __future__ import annotations

import math
import statistics

import torch

from trainer.config.schema import SpikePolicy, TrainConfig


class SpikeWatch:
    """Keeps the losses of the last steps whose update was applied, and gives the limit above which a loss is a spike.

    Its memory is the list that it is given, which belongs to the run's state: a resumed run judges as an uninterrupted
    one does.

    Args:
        config: policy, window and sigmas.
        losses: losses of the steps so far, oldest first. Changed in place.
    """

    def __init__(self, config: TrainConfig, losses: list[float]) -> None:
        self.policy = config.spike_policy
        self._window = config.spike_window
        self._sigmas = config.spike_sigmas
        self._losses = losses
        # A run may resume with a smaller window, or without a policy.
        del losses[: max(0, len(losses) - self._window) if self.is_on else len(losses)]

    @property
    def is_on(self) -> bool:
        """True if there is a policy. Only then each step's loss is read."""
        return self.policy is not SpikePolicy.none

    def limit(self) -> float:
        """Return the largest loss that is no spike, a number in fp32; infinity until the window is full."""
        if not self.is_on or len(self._losses) < self._window:
            return math.inf
        mean = statistics.fmean(self._losses)
        limit = mean + self._sigmas * statistics.pstdev(self._losses, mean)
        # Device and host compare in fp32, so that they agree.
        return float(torch.tensor(limit, dtype=torch.float32))

    def see(self, loss: float) -> None:
        """Note the loss of a step whose update was applied."""
        if self.is_on:
            self._losses.append(loss)
            del self._losses[: max(0, len(self._losses) - self._window)]
