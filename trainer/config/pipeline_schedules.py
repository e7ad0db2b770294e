"""Pipeline schedules, apart from the classes that run them: stages, owners, micro-batches, bubble. No torch.

A schedule is a member of `PipelineSchedule`, an object here, an engine class in `engine/deepspeed_engines.py` and a
module class in `pipeline/module.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from trainer.config.schema import PipelineSchedule


class Schedule(ABC):
    """Order of forward and backward micro-batches over the stages.

    In every method `pp` is the number of pipeline ranks and `m` the number of micro-batches in a step.
    """

    kind: PipelineSchedule
    """Its name in the config."""
    has_effect_alone: bool = False
    """True if it may also be named where there is only one pipeline rank."""
    takes_boundaries: bool = True
    """True if `layout.stage_boundaries` may partition its stages."""
    takes_offload: bool = True
    """True if ZeRO may offload under it."""

    @abstractmethod
    def stages(self, pp: int) -> int:
        """Return the number of stages, a multiple of `pp`."""

    @abstractmethod
    def owner(self, stage: int, pp: int) -> int:
        """Return the pipeline rank that holds `stage`."""

    @abstractmethod
    def fewest_micro_batches(self, pp: int) -> int:
        """Return the smallest number of micro-batches that a step needs."""

    @abstractmethod
    def bubble(self, pp: int, m: int) -> float:
        """Return the share of a step, 0 to 1, in which a rank computes nothing.

        All stages take equally long, backward takes twice the time of forward, and messages take none.
        """


class OneForwardOneBackward(Schedule):
    """1F1B: one stage a rank; once the pipeline is full, a backward follows each forward (arXiv 2104.04473)."""

    kind = PipelineSchedule.f1b1
    has_effect_alone = True

    def stages(self, pp: int) -> int:
        """Return `pp`."""
        return pp

    def owner(self, stage: int, pp: int) -> int:
        """Return `stage`."""
        return stage

    def fewest_micro_batches(self, pp: int) -> int:
        """Return 1."""
        return 1

    def bubble(self, pp: int, m: int) -> float:
        """Return (p - 1) / (m + p - 1): arXiv 2104.04473, section 2.2."""
        return (pp - 1) / (m + pp - 1)


class DualPipeV(Schedule):
    """DualPipeV: the pipeline is folded, so that rank r holds stages r and 2 p - 1 - r, and fills from both ends.

    https://github.com/deepseek-ai/DualPipe; DeepSeek-V3 report, arXiv 2412.19437, section 3.2.1.
    """

    kind = PipelineSchedule.dualpipev
    takes_boundaries = False
    takes_offload = False

    def stages(self, pp: int) -> int:
        """Return 2 p."""
        return 2 * pp

    def owner(self, stage: int, pp: int) -> int:
        """Return the rank on which the fold puts `stage`."""
        return min(stage, 2 * pp - 1 - stage)

    def fewest_micro_batches(self, pp: int) -> int:
        """Return 2 p: with fewer the two directions do not meet."""
        return 2 * pp

    def bubble(self, pp: int, m: int) -> float:
        """Return (5 p - 6) / (6 m + 5 p - 6).

        A rank computes 2 m (F + B) = 6 m, in units of the forward pass F of one of the 2 p stages, with B = 2 F. The
        authors' bubble is (p - 1) (F&B + B - 3 W) for p ranks; DeepSpeed defers no weight gradient (W = 0) and runs
        forward and backward one after the other (F&B = F + B), which makes it 5 (p - 1). In the order of DeepSpeed's
        `DualPipeVSchedule` one more forward pass of the bubble is filled: 5 p - 6. A test runs that order on a clock.
        """
        idle = 5 * pp - 6
        return idle / (6 * m + idle)


SCHEDULES: Mapping[PipelineSchedule, Schedule] = {each.kind: each for each in (OneForwardOneBackward(), DualPipeV())}
