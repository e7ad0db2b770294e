from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.launcher import environment
from trainer.launcher.environment import (
    World,
    find_world,
    first_host,
    gpu_count,
    node_of,
    prepare_environment,
    publish_world,
)

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
DEEPSPEED = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1(x2)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "node03",
}
MPICH = {
    "PMI_RANK": "3",
    "PMI_SIZE": "8",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
    "MASTER_ADDR": "node03",
}
HELPER_OF_MPIRUN = {**SRUN, "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
"""What mpirun's ranks inherit inside a Slurm job: the facts of the helper that started them."""
NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_STEP_NODELIST", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "TRIDENT_VISIBLE_DEVICES", "DS_ACCELERATOR"),
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what a test leaves behind is undone.
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", os.environ["PATH"])


@pytest.mark.parametrize(
    "variables",
    [
        *(TORCHRUN, DEEPSPEED, SRUN, OPEN_MPI, MPICH, {**HELPER_OF_MPIRUN, **OPEN_MPI}, {**HELPER_OF_MPIRUN, **MPICH}),
        {**SRUN, "PMI_RANK": "3", "PMI_SIZE": "8"},
        {**OPEN_MPI, **TORCHRUN, "OMPI_COMM_WORLD_RANK": "0"},
    ],
    ids=[
        *("torchrun", "deepspeed", "srun", "Open MPI", "MPICH", "Open MPI in a job", "MPICH in a job"),
        *("srun --mpi=pmi2", "torchrun under mpirun"),
    ],
)
def test_every_launcher_gives_the_same_world(variables: Mapping[str, str]) -> None:
    assert find_world(variables) == World(rank=3, local_rank=1, size=8, local_size=2)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "8"},
        {"RANK": "0"},
        {"LOCAL_RANK": "3"},
        {"RANK": "0", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "node17", "MASTER_PORT": "29500"},
        {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
        {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "1"},
        {"PMI_RANK": "1"},
        {"OMPI_COMM_WORLD_RANK": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
        {**SRUN, "SLURM_NTASKS": "1"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {"JOB_COMPLETION_INDEX": "1"},
    ],
    ids=[
        *("nothing", "no rank", "no world", "no rank and no world", "rank 0 of no world", "pod of one"),
        *(
            "empty",
            "of torchrun's agent",
            "no size of PMI",
            "no size of Open MPI",
            "batch script",
            "one task",
            "shell of an allocation",
            "mpirun -n 1",
            "mpiexec -n 1",
        ),
        "one of many independent pods",
    ],
)
def test_alone(variables: Mapping[str, str]) -> None:
    assert find_world(variables) is None


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RANK": "1", "LOCAL_RANK": "1"}, r"but WORLD_SIZE is not set \(RANK=1, LOCAL_RANK=1\)"),
        ({"RANK": "3"}, r"but WORLD_SIZE and LOCAL_RANK are not set \(RANK=3\)"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "needs RANK, WORLD_SIZE, LOCAL_RANK in its environment, but LOCAL_RANK is"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "but RANK is not set"),
        ({**TORCHRUN, "RANK": ""}, "but RANK is not set"),
        ({**TORCHRUN, "RANK": "-1"}, "needs the number RANK in its environment, but it is '-1'"),
        ({**TORCHRUN, "WORLD_SIZE": "²"}, "needs the number WORLD_SIZE in its environment, but it is '²'"),
        ({**TORCHRUN, "RANK": "8"}, r"RANK must be less than WORLD_SIZE \(8\), but is 8"),
        ({**SRUN, "SLURM_NTASKS": "many"}, "needs the number SLURM_NTASKS in its environment, but it is 'many'"),
        ({**SRUN, "SLURM_PROCID": "x"}, "needs the number SLURM_PROCID in its environment, but it is 'x'"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_LOCAL_RANK are not set"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "x"}, "needs the number OMPI_COMM_WORLD_SIZE in its environment"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "8"}, r"OMPI_COMM_WORLD_RANK must be less than OMPI_COMM_WORLD_SIZE"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "but MPI_LOCALRANKID is not set"),
        ({**OPEN_MPI, "MASTER_ADDR": ""}, "several machines need MASTER_ADDR, the host of rank 0, in their"),
        ({**MPICH, "MPI_LOCALNRANKS": "", "MASTER_ADDR": ""}, "several machines need MASTER_ADDR, the host of rank 0"),
    ],
)
def test_incomplete_and_nonsense_variables(variables: Mapping[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        find_world(variables)


@pytest.mark.parametrize(
    ("tasks", "node", "size"), [("4", "0", 4), ("2(x2),1", "2", 1), ("2", "1", None), ("", "0", None), ("2", "", None)]
)
def test_ranks_of_a_slurm_node(tasks: str, node: str, size: int | None) -> None:
    world = find_world({**SRUN, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node})
    assert world == World(3, 1, 8, size)


def test_what_another_launcher_said_of_this_machine_does_not_count() -> None:
    assert find_world({**TORCHRUN, "LOCAL_WORLD_SIZE": "16"}) == World(3, 1, 8, None)
    assert find_world({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}) == World(3, 1, 8, None)


def test_publish_gives_torch_its_names() -> None:
    publish_world(World(3, 1, 8, 2))
    found = {name: os.environ.get(name) for name in NAMES if name in os.environ}
    assert found == {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}


def test_a_rendezvous_that_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[03-05]")
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    monkeypatch.setenv("MASTER_PORT", "1234")
    publish_world(World(3, 1, 8))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("elsewhere", "1234")


def test_ranks_of_a_slurm_job_meet_on_its_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[03-05]")
    ports = []
    for job in ("77", "78", "not a number"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.delenv("MASTER_PORT", raising=False)
        publish_world(World(3, 1, 8))
        ports.append(int(os.environ["MASTER_PORT"]))
    assert os.environ["MASTER_ADDR"] == "node03"
    assert len(set(ports)) == 3
    assert all(1024 <= port < 32768 for port in ports)


@pytest.mark.parametrize("variables", [OPEN_MPI, MPICH])
def test_ranks_of_mpirun_on_one_machine_meet_there(variables: Mapping[str, str]) -> None:
    local = {name: "8" if value == "2" else value for name, value in variables.items() if name != "MASTER_ADDR"}
    world = find_world(local)
    assert world == World(3, 1, 8, 8)
    publish_world(world)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "29500")


def test_an_address_without_a_port_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node03")
    publish_world(World(3, 1, 8, 2))
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("node03", "29500")


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("alone", "alone"),
        ("a,b", "a"),
        ("node[03-05,9],login1", "node03"),
        ("node[7,9]", "node7"),
        ("rack[1-2]node[3-4]", "rack1node3"),
        ("gpu-1.site.org,gpu-2.site.org", "gpu-1.site.org"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_the_users_devices_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    publish_world(World(0, 0, 2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.setenv("TRIDENT_VISIBLE_DEVICES", "2,3")
    publish_world(World(0, 0, 2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


class _FourGpus:
    def __init__(self, path: str) -> None:
        assert path == "/dev"

    def glob(self, pattern: str) -> list[Path]:
        assert pattern == "nvidia[0-9]*"
        return [Path(f"/dev/nvidia{index}") for index in range(4)]


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("0", 1),
        ("2, 3", 2),
        ("0,1,2,3", 4),
        ("0,-1,2", 1),
        ("0,1,9", 2),
        ("NoDevFiles", 0),
        ("GPU-5ebe9f43,GPU-8f1b", 2),
        ("MIG-1,MIG-2,MIG-3", 3),
    ],
)
def test_visible_gpus(visible: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "Path", _FourGpus)
    assert gpu_count({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == count


def test_visible_devices_make_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGpu(_FourGpus):
        def glob(self, pattern: str) -> list[Path]:
            return []

    monkeypatch.setattr(environment, "Path", NoGpu)
    assert gpu_count({"CUDA_VISIBLE_DEVICES": "0,1"}) == 0


def test_accelerator_is_named_only_on_a_cpu() -> None:
    prepare_environment(on_cpu=False)
    assert "DS_ACCELERATOR" not in os.environ
    prepare_environment(on_cpu=True)
    assert os.environ["DS_ACCELERATOR"] == "cpu"


@pytest.mark.parametrize(
    ("world", "variables", "expected"),
    [
        (World(5, 1, 8, 4), {}, (1, 2)),
        (World(5, 1, 8, None), {}, (0, 1)),
        (World(5, 2, 8, 3), {}, (0, 1)),
        # Nodes with different numbers of tasks: Slurm tells.
        (World(5, 2, 7, 3), {"SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2"}, (1, 2)),
        (World(5, 2, 7, 3), {"SLURM_NODEID": "2", "SLURM_STEP_NUM_NODES": "2"}, (0, 1)),
    ],
)
def test_the_machine_among_the_machines(world: World, variables: dict[str, str], expected: tuple[int, int]) -> None:
    slurm = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "7"} if variables else {}
    assert node_of(world, {**slurm, **variables}) == expected
