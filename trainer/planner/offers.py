"""Layouts that are offered instead of another: where they are looked for, and the line that tells one. No torch."""

from __future__ import annotations

from trainer.config.plan import RunPlan
from trainer.config.schema import TridentConfig
from trainer.config.words import for_a_shell
from trainer.planner.layout_search import Found, nearest
from trainer.planner.predict import Planner
from trainer.planner.prediction import GIB

COUNT = 3
"""Number of layouts that are offered."""


def change(found: Found, config: TridentConfig | None = None) -> str:
    """Return a layout as overrides, with its memory and speed.

    Args:
        found: the layout.
        config: the config behind which the overrides are pasted; None: any.
    """
    words = " ".join(map(for_a_shell, found.words_after(config)))
    speed = found.prediction.tokens_per_second
    told = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
    return f"{words}: {found.prediction.peak / GIB:,.2f} GiB, {told} tokens/s"


def offered(planner: Planner, plan: RunPlan) -> tuple[Found, ...]:
    """Return the layouts that fit and change least, on as few devices more as have one; none if nothing fits."""
    return nearest(planner, plan, _worlds(planner, plan), count=COUNT)


def _worlds(planner: Planner, plan: RunPlan) -> tuple[int, ...]:
    """Return the numbers of devices on which a run may be tried: its own, doublings of it, and the whole cluster."""
    own, whole = plan.world_size, planner.cluster.size
    larger = [own << power for power in range(1, 11)]
    return tuple(dict.fromkeys([own, *(world for world in larger if world <= whole), whole]))
