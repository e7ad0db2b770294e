"""Facts about the world, read from the variables of whichever launcher started this process. No torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ConfigError
from trainer.launcher.network import INTERFACE_VARIABLE, interface_for_peers

VISIBLE_DEVICES_VARIABLE = "TRIDENT_VISIBLE_DEVICES"
"""The user's CUDA_VISIBLE_DEVICES, which the deepspeed launcher replaces by 0, 1, ... in the ranks it starts."""


@dataclass(frozen=True)
class World:
    """This process among the ranks that a launcher started."""

    rank: int
    local_rank: int
    size: int
    local_size: int | None = None
    """Number of ranks on this machine, if the launcher says so."""


_TORCH = {"RANK": "RANK", "WORLD_SIZE": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_RANK"}
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_OPEN_MPI = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
}
_MPICH = {"RANK": "PMI_RANK", "WORLD_SIZE": "PMI_SIZE", "LOCAL_RANK": "MPI_LOCALRANKID"}
"""Variables of MPICH and Intel MPI."""
_LOCAL_SIZE = {
    # torchrun sets LOCAL_WORLD_SIZE, the deepspeed launcher LOCAL_SIZE.
    "RANK": ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    "OMPI_COMM_WORLD_RANK": ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    "PMI_RANK": ("MPI_LOCALNRANKS",),
}
MASTER_PORT = 29500
"""Port of the rendezvous, unless the launcher gives another: the port that torch's launchers use."""


def find_world(environ: Mapping[str, str]) -> World | None:
    """Return the launched world (deepspeed, torchrun, srun, mpirun), or None when nothing started us as one of many.

    Variables that another launcher left in the environment of a single process are no world.

    Raises:
        ConfigError: the launcher's variables are incomplete, are no numbers, or contradict each other.
    """
    names = _launcher(environ)
    if names is None:
        return None
    _check_complete(environ, names)
    rank, size, local_rank = (_number(environ, names[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank >= size:
        raise ConfigError(f"{names['RANK']} must be less than {names['WORLD_SIZE']} ({size}), but is {rank}")
    local_size = _local_size(environ, names)
    if names is _TORCH and local_size is not None and not local_rank < local_size <= size:
        # These variables are left over from another launcher.
        local_size = None
    world = World(rank, local_rank, size, local_size)
    if names in (_OPEN_MPI, _MPICH) and world.local_size != size and not environ.get("MASTER_ADDR"):
        raise ConfigError(
            "ranks that mpirun starts on several machines need MASTER_ADDR, the host of rank 0, in their environment, "
            "but it is not set",
            hints=["mpirun -x MASTER_ADDR=HOST ... (Open MPI), or mpiexec -genv MASTER_ADDR HOST ... (MPICH, Intel)"],
        )
    return world


def _launcher(environ: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return the variable names that the innermost launcher uses."""
    if all(environ.get(name) for name in _TORCH):
        return _TORCH
    # mpirun inside a job starts its helpers with srun, so Slurm's variables then count helpers, not ranks.
    if environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return _OPEN_MPI
    is_mpich = environ.get("PMI_SIZE", "1") != "1"
    if is_mpich and "MPI_LOCALRANKID" in environ:
        return _MPICH
    if _is_one_of_many_tasks(environ):
        return _SLURM
    if is_mpich:
        return _MPICH
    return _TORCH if _is_part_of_several(environ) else None


def _is_part_of_several(environ: Mapping[str, str]) -> bool:
    """Return whether some of torch's names describe a rank among several while others are missing.

    A single process may have some of them left over from another program: a rank without a world, or the reverse.
    """
    rank, size, local_rank = (environ.get(name, "") for name in _TORCH)
    return rank not in ("", "0") or (size not in ("", "1") and bool(rank or local_rank))


def _check_complete(environ: Mapping[str, str], names: Mapping[str, str]) -> None:
    missing = [name for name in names.values() if not environ.get(name)]
    if not missing:
        return
    given = [f"{name}={environ[name]}" for name in names.values() if environ.get(name)]
    raise ConfigError(
        f"a launched rank needs {', '.join(names.values())} in its environment, but {' and '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not set" + (f" ({', '.join(given)})" if given else ""),
        hints=[f"if no launcher started this, unset {' '.join(entry.partition('=')[0] for entry in given)}"]
        if given
        else [],
    )


def _is_one_of_many_tasks(environ: Mapping[str, str]) -> bool:
    # A shell that `salloc` opens is a step of one task in an allocation of many.
    tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1"
    return "SLURM_STEP_ID" in environ and tasks != "1"


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ[name]
    if not text.isdecimal():
        raise ConfigError(f"a launched rank needs the number {name} in its environment, but it is {text!r}")
    return int(text)


def _local_size(environ: Mapping[str, str], names: Mapping[str, str]) -> int | None:
    if names is _SLURM:
        return _slurm_local_size(environ.get("SLURM_STEP_TASKS_PER_NODE", ""), environ.get("SLURM_NODEID", ""))
    text = next((environ[name] for name in _LOCAL_SIZE[names["RANK"]] if environ.get(name)), "")
    return int(text) if text.isdecimal() else None


def _slurm_local_size(tasks_per_node: str, node: str) -> int | None:
    """Read Slurm's `4(x2),3`: two nodes with four tasks each, then one with three."""
    counts: list[int] = []
    for part in tasks_per_node.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or "1")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def node_of(world: World, environ: Mapping[str, str]) -> tuple[int, int]:
    """Return (this machine's place, number of machines) of a world; (0, 1) where the launcher does not tell."""
    node, nodes = environ.get("SLURM_NODEID", ""), environ.get("SLURM_STEP_NUM_NODES", "")
    if _launcher(environ) is _SLURM and node.isdecimal() and nodes.isdecimal() and int(node) < int(nodes):
        return int(node), int(nodes)
    if not world.local_size or world.size % world.local_size:
        return 0, 1
    return world.rank // world.local_size, world.size // world.local_size


def publish_world(world: World) -> None:
    """Set the names that torch and DeepSpeed read, whatever the launcher called them."""
    facts = {"RANK": world.rank, "LOCAL_RANK": world.local_rank, "WORLD_SIZE": world.size}
    if world.local_size is not None:
        facts["LOCAL_WORLD_SIZE"] = world.local_size
    for name, value in facts.items():
        os.environ[name] = str(value)
    if VISIBLE_DEVICES_VARIABLE in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[VISIBLE_DEVICES_VARIABLE]
    nodes = os.environ.get("SLURM_STEP_NODELIST")
    if "MASTER_ADDR" not in os.environ and nodes:
        # Rank 0 runs on the first node; the node that called srun may be a login node.
        os.environ["MASTER_ADDR"] = first_host(nodes)
    if "MASTER_PORT" not in os.environ and nodes:
        job = os.environ.get("SLURM_JOB_ID", "")
        # Below the range from which systems hand out ports; different for jobs that share a node.
        os.environ["MASTER_PORT"] = str(12000 + int(job if job.isdecimal() else "0") % 20000)
    if world.size > 1 and world.local_size == world.size:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if world.size > 1 and "MASTER_ADDR" in os.environ:
        os.environ.setdefault("MASTER_PORT", str(MASTER_PORT))
    if world.local_size is not None and world.local_size < world.size and not os.environ.get(INTERFACE_VARIABLE):
        interface = interface_for_peers(os.environ.get("MASTER_ADDR", ""))
        if interface is not None:
            os.environ[INTERFACE_VARIABLE] = interface


def first_host(nodes: str) -> str:
    """Return the first host of Slurm's compressed list, e.g. `node03` for `node[03-05,9],login1`."""
    return re.split(r",(?![^\[]*\])", re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes))[0]


def gpu_count(environ: Mapping[str, str]) -> int:
    """Return the number of NVIDIA GPUs that this process may use, without loading a CUDA library."""
    count = sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or count == 0:
        return count
    usable = 0
    for item in (text.strip() for text in visible.split(",")):
        is_index = item.isdecimal() and int(item) < count
        # CUDA ignores the entries after the first one that names no device.
        if not is_index and not item.startswith(("GPU-", "MIG-")):
            break
        usable += 1
    return usable


def prepare_environment(on_cpu: bool) -> None:
    """Set the variables that DeepSpeed and torch read. Call it before importing them."""
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR")
    if extensions == "":
        # Otherwise torch would compile in the working folder.
        del os.environ["TORCH_EXTENSIONS_DIR"]
    elif extensions is not None:
        with suppress(RuntimeError):
            os.environ["TORCH_EXTENSIONS_DIR"] = str(Path(extensions).expanduser().absolute())
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # A virtual environment's ninja is found even when the environment is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
