"""Seconds of the optimizer, on the device or where offload puts it. No torch."""

from __future__ import annotations

from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, OffloadKind, Software
from trainer.errors import ConfigError
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.kernels import Costs
from trainer.planner.links import Wires
from trainer.planner.profile import Profile
from trainer.planner.work import FP32_BYTES, element_bytes

GRADIENT_BYTES = 4
"""Bytes of a gradient that the optimizer reads."""
STATE_BYTES = 8
"""Bytes of a number that the optimizer reads and writes: the fp32 weight, or a moment of it."""
GRADIENT_PASSES = 2
"""Times that all gradients of a rank are read or written besides: for their norm, and as they are set to zero."""


def ranks_here(plan: RunPlan, cluster: Cluster) -> int:
    """Return the ranks of a machine."""
    return min(plan.world_size, cluster.devices_per_node)


class Update:
    """The end of a step of one plan."""

    def __init__(self, plan: RunPlan, cluster: Cluster, profile: Profile, bandwidth: float) -> None:
        """Keep them.

        Args:
            plan: numbers of the run.
            cluster: its machines.
            profile: constants.
            bandwidth: bytes a second of the memory of a device, or of a machine with CPU ranks.
        """
        self._plan, self._profile, self._cluster = plan, profile, cluster
        self._ranks = ranks_here(plan, cluster)
        # In the update all ranks of a machine work at the same time.
        self._bandwidth = bandwidth if cluster.cores_per_node is None else bandwidth / self._ranks

    def seconds(self, rank: Costs, wires: Wires, hiding: float) -> tuple[float, float]:
        """Return the seconds of the optimizer on the device, and those of offload.

        Args:
            rank: the pipeline rank that trains most.
            wires: links between memories.
            hiding: share of backward beside which gradients go to the host.

        Raises:
            ConfigError: the profile does not know how fast the memory is that the state is moved to.
        """
        plan, profile = self._plan, self._profile
        own = rank.trained / (plan.data_parallel_size if plan.zero_stage else 1)
        rate = profile.optimizer_efficiency.value * self._bandwidth
        passes: float = GRADIENT_PASSES * FP32_BYTES * rank.trained
        passes += self._bucket_copies() * self._profile.shard_bytes.value * rank.trained
        # Half-precision weights are written from the fp32 ones.
        state = STATE_BYTES * (1 + plan.moments_per_parameter)
        moved = own * (GRADIENT_BYTES + state + (element_bytes(plan) if plan.dtype is not Dtype.fp32 else 0))
        if plan.offload is OffloadKind.none or plan.zero_stage == 0:
            return (moved + passes) / rate, 0.0
        stepping = moved * self._ranks / self._known(profile.host_bandwidth, "the host's memory").value
        if plan.offload is OffloadKind.nvme:
            drives = self._known(profile.nvme_bandwidth, "its drives").value
            stepping = max(stepping, state * own * self._ranks / drives)
        return passes / rate, stepping + self._copies(rank, own, wires, hiding)

    def _bucket_copies(self) -> int:
        """Return how often in a step gradients go through ZeRO's buckets.

        From stage 2 on that is in every micro-batch. Between CPU ranks Trident's stage 1 in fp32 exchanges slices of
        the gradients themselves (`trainer.engine.zero12_gradients`).
        """
        plan = self._plan
        if plan.zero_stage >= 2:
            return plan.num_micro_batches
        ours_on_cpu = self._cluster.is_cpu and self._cluster.software is Software.trident
        is_flat = ours_on_cpu and plan.dtype is Dtype.fp32 and plan.offload is OffloadKind.none
        return 1 if plan.zero_stage == 1 and not is_flat else 0

    def _copies(self, rank: Costs, own: float, wires: Wires, hiding: float) -> float:
        """Return the seconds of gradients on their way to the host and of weights on their way back.

        From stage 2 on gradients leave in every micro-batch, beside backward; weights that live on the host come back
        for every pass.
        """
        plan = self._plan
        count = plan.num_micro_batches
        down = wires.host_seconds(own * FP32_BYTES)
        up = wires.host_seconds(own * element_bytes(plan))
        if plan.zero_stage >= 2:
            down = count * max(0.0, down - hiding * rank.backward)
        if plan.zero_stage == 3 and plan.zero.offload_parameters:
            up = count * sum(max(0.0, up - hiding * beside) for beside in (rank.forward, rank.backward))
        return down + up

    def _known(self, rate: Constant | None, what: str) -> Constant:
        if rate is None:
            raise ConfigError(
                f"zero.offload must be none under the profile {self._profile.name}, which does not know how fast "
                f"{what} is, but is {self._plan.offload.value}"
            )
        return rate
