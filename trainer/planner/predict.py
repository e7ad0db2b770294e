"""Prediction of a run on a cluster: memory, time and what follows from them. No torch."""

from __future__ import annotations

from trainer.config.plan import RunPlan
from trainer.config.schema import RecomputeKind
from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.memory_model import MemoryModel, memory_constants, unchecked
from trainer.planner.prediction import Confidence, Prediction, StageMemory
from trainer.planner.profile import Profile
from trainer.planner.profile_file import find_calibration
from trainer.planner.profiles import profile_for
from trainer.planner.scaling_laws import outside
from trainer.planner.schedule_time import order_of, stage_messages
from trainer.planner.step_time import TimedStep, TimeModel
from trainer.planner.timeline import Costs, Timeline, simulate


class Planner:
    """Predicts runs on one cluster. An instance keeps what candidates of a search have in common.

    Args:
        cluster: the machines.
        profile: what software reaches of their data sheet; None: a calibration of this machine if there is one, or the
            profile of the device and its era.
    """

    def __init__(self, cluster: Cluster, profile: Profile | None = None) -> None:
        self.cluster = cluster
        self.note: str | None = None
        """Sentence about a calibration that is not used, or is old; None: there is nothing to say."""
        if profile is None and cluster.software is Software.trident:
            found = find_calibration(cluster.device)
            self.note = found.note
            profile = None if found.calibration is None else found.calibration.profile
        self.profile = profile_for(cluster) if profile is None else profile
        self._memory = MemoryModel(cluster)
        self._time = TimeModel(cluster, self.profile)

    def stages(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of each pipeline rank."""
        return self._memory.stages(plan)

    def fullest(self, plan: RunPlan) -> tuple[StageMemory, ...]:
        """Return the memory of some pipeline ranks, among which are those that need most: quicker than all of them."""
        return self._memory.fullest(plan)

    def timed(self, plan: RunPlan, exact: bool = True) -> TimedStep:
        """Return the time of a step; see `TimeModel.step`."""
        return self._time.step(plan, exact)

    def timeline(self, plan: RunPlan) -> Timeline:
        """Return every pass of every micro-batch through the stages, in the order of the schedule."""
        step = self.timed(plan, exact=False)
        messages = stage_messages(step.passes.owners, step.message_s)
        costs = Costs(step.passes.forward, step.passes.backward, messages)
        return simulate(order_of(plan, self.cluster), costs)

    def fits(self, plan: RunPlan, stages: tuple[StageMemory, ...], margin: float = 0.0) -> bool:
        """Return whether the memory of all ranks is there.

        Args:
            plan: the run.
            stages: its memory.
            margin: share that is asked for besides, such as 0.1.
        """
        factor = 1.0 + margin
        if factor * max(stage.peak for stage in stages) > self.cluster.memory_bytes.value:
            return False
        host = self.cluster.host_memory_bytes
        needed = self.ranks_per_node(plan) * max(stage.host for stage in stages)
        return host is None or factor * needed <= host.value

    def ranks_per_node(self, plan: RunPlan) -> int:
        """Return the ranks of a machine that share its memory."""
        return min(plan.world_size, self.cluster.devices_per_node)

    def predict(self, plan: RunPlan, exact: bool = True) -> Prediction:
        """Return everything that is said of a run.

        Args:
            plan: numbers of the run.
            exact: simulate the schedule's events; otherwise a closed form, which is quick.
        """
        cluster, profile = self.cluster, self.profile
        stages, step = self.stages(plan), self.timed(plan, exact)
        peak = profile.peak_flops.get(plan.dtype) or cluster.peak_flops.get(plan.dtype)
        per_second = plan.tokens_per_step / step.time.total
        flops = per_second * plan.flops_per_token / plan.world_size
        extra = _recomputed(plan) / plan.flops_per_token
        host = cluster.host_memory_bytes
        return Prediction(
            stages=stages,
            time=step.time,
            bubble_fraction=step.bubble_fraction,
            device_bytes=int(cluster.memory_bytes.value),
            host_bytes=None if host is None else int(host.value),
            ranks_per_node=self.ranks_per_node(plan),
            tokens_per_second=per_second,
            tflops_per_gpu=flops / 1e12,
            mfu=None if peak is None else flops / peak.value,
            hfu=None if peak is None else flops * (1.0 + extra) / peak.value,
            confidence=self.confidence(plan),
            constants={**constants(cluster, profile), **memory_constants(cluster)},
        )

    def confidence(self, plan: RunPlan) -> Confidence:
        """Return how far the prediction may be off."""
        profile = self.profile
        measured = profile.measured_on is not None
        reason = f"calibrated on {profile.measured_on}" if measured else profile.error.source
        facts = (*unchecked(plan, self.cluster), *outside(plan.model, plan.run_tokens))
        return Confidence(profile.error.value, profile.memory_error.value, f"{profile.name}: {reason}", facts)


def predict(plan: RunPlan, cluster: Cluster, profile: Profile | None = None, exact: bool = True) -> Prediction:
    """Return the prediction of one run; see `Planner.predict`."""
    return Planner(cluster, profile).predict(plan, exact)


def _recomputed(plan: RunPlan) -> float:
    """Return the FLOPs of one token that are computed again."""
    length = plan.execution.attended_length
    if plan.execution.recompute is RecomputeKind.full:
        return sum(block.forward_flops(length) for block in plan.model.blocks)
    if plan.execution.recompute is RecomputeKind.selective:
        windows = ((block.attention, block.attention.window or length) for block in plan.model.blocks)
        return float(sum(4 * attention.queries * min(length, window) for attention, window in windows))
    return 0.0


def constants(cluster: Cluster, profile: Profile) -> dict[str, Constant]:
    """Return every number of the cluster and the profile with its source, by dotted name."""
    found: dict[str, Constant] = {}
    for owner, name in ((cluster, "cluster"), (profile, "profile")):
        _collect(owner, name, found)
    return found


def _collect(value: object, name: str, found: dict[str, Constant]) -> None:
    if isinstance(value, Constant):
        found[name] = value
    elif isinstance(value, dict):
        for key, inner in value.items():
            _collect(inner, f"{name}.{getattr(key, 'value', key)}", found)
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            _collect(getattr(value, key), f"{name}.{key}", found)
