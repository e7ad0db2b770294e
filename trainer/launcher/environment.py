"""World facts, read from whichever launcher started this process. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among the ranks that a launcher started."""

    rank: int
    local_rank: int
    size: int


_SLURM = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
    "LOCAL_WORLD_SIZE": "SLURM_NTASKS_PER_NODE",
}


def find_world(environ: Mapping[str, str]) -> World | None:
    """Return the launched world (deepspeed, torchrun, srun), or None when nothing started us as one of many.

    Raises:
        ConfigError: the launcher's variables are incomplete or are no numbers.
    """
    names = {name: name for name in _SLURM}
    if "RANK" not in environ:
        started_by_srun = "SLURM_STEP_ID" in environ and int(environ.get("SLURM_NTASKS", "1")) > 1
        if not started_by_srun:
            return None
        names = _SLURM
    values: dict[str, int] = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        text = environ.get(names[name])
        if text is None or not text.isdigit():
            raise ConfigError(f"a launched rank needs the number {names[name]} in its environment, but it is {text!r}")
        values[name] = int(text)
    return World(values["RANK"], values["LOCAL_RANK"], values["WORLD_SIZE"])


def publish_world(world: World) -> None:
    """Give torch and DeepSpeed the names they read, whatever the launcher called them."""
    facts = {"RANK": world.rank, "LOCAL_RANK": world.local_rank, "WORLD_SIZE": world.size}
    for name, value in facts.items():
        os.environ[name] = str(value)
    if "MASTER_ADDR" not in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        os.environ["MASTER_ADDR"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        os.environ["MASTER_PORT"] = str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)


def gpu_count(environ: Mapping[str, str]) -> int:
    """Return the number of NVIDIA GPUs that this process may use, without loading a CUDA library."""
    devices = [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not devices:
        return len(devices)
    return len([item for item in visible.split(",") if item.strip() not in ("", "-1")])


def prepare_environment(on_cpu: bool) -> None:
    """Set what DeepSpeed reads from the environment while it is imported. Call before importing it."""
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # A virtual environment's ninja is found even when the environment is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
