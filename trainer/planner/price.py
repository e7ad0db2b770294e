"""Days, device-days, compute, money and energy of a run. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.planner.cluster import Cluster

SECONDS_PER_DAY = 86_400
HOURS_PER_DAY = 24
PF_DAY_FLOPS = 1e15 * SECONDS_PER_DAY
"""FLOPs of a petaFLOP/s-day, the unit of compute in arXiv 2001.08361 and 2005.14165."""


@dataclass(frozen=True)
class Price:
    """Duration, work, money and energy of a run."""

    devices: int
    """Number of devices that it holds."""
    seconds: float
    """Duration of all its steps."""
    flops: float
    """Model FLOPs of its tokens."""
    usd_per_device_hour: float | None
    watts: float
    """Power of a device."""
    pue: float
    """Power of the data centre for each watt of the devices."""

    @property
    def days(self) -> float:
        """Duration in days."""
        return self.seconds / SECONDS_PER_DAY

    @property
    def gpu_days(self) -> float:
        """Days of all its devices together."""
        return self.devices * self.days

    @property
    def gpu_hours(self) -> float:
        """Hours of all its devices together."""
        return self.gpu_days * HOURS_PER_DAY

    @property
    def pf_days(self) -> float:
        """Model FLOPs in petaFLOP/s-days: the work, however long it takes."""
        return self.flops / PF_DAY_FLOPS

    @property
    def cost_usd(self) -> float | None:
        """Dollars for its devices; None if they have no price."""
        return None if self.usd_per_device_hour is None else self.gpu_hours * self.usd_per_device_hour

    @property
    def energy_kwh(self) -> float:
        """Energy of its devices with the data centre's share."""
        return self.gpu_hours * self.watts * self.pue / 1000

    def to_dict(self) -> dict[str, float | None]:
        """Return the values of `trident plan --json`."""
        return {
            "days": self.days,
            "gpu_days": self.gpu_days,
            "pf_days": self.pf_days,
            "cost_usd": self.cost_usd,
            "energy_kwh": self.energy_kwh,
        }


def price_of(cluster: Cluster, *, devices: int, seconds: float, flops: float) -> Price:
    """Return what a run takes on a cluster.

    Args:
        cluster: the machines, with their price and power.
        devices: number of devices that the run holds; the cluster's others are not paid for.
        seconds: duration of all steps.
        flops: model FLOPs of all tokens.
    """
    price = cluster.usd_per_device_hour
    return Price(
        devices=devices,
        seconds=seconds,
        flops=flops,
        usd_per_device_hour=None if price is None else price.value,
        watts=cluster.watts.value,
        pue=cluster.pue,
    )


def seconds_of(tokens: float, tokens_per_second: float) -> float:
    """Return how long a number of tokens takes at the speed of all ranks together."""
    return tokens / tokens_per_second
