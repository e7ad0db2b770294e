"""The launch scripts without training: lint, help, what they would run, and what they refuse."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.launch_fixtures import GOLDEN, LAUNCH, ROOT, SCRIPTS, STUBS, call, noted, with_stubs
from trainer.config.compose import compose

pytestmark = pytest.mark.timeout(120)
NODES = (1, 2, 128)
RUN = ("layout=tp4_pp2_sp", "model=llama3_8b", "run_dir=/shared/runs/a b")
QUOTED = ("layout=tp4_pp2_sp", "model=llama3_8b", 'data.files="[/data/a b.txt,$HOME/*%h]"', "data.source=files")
BATCH = "batch.global_batch_size=128"
UPDATE = "TRIDENT_UPDATE_GOLDEN"
STARTERS = ("local.sh", "node.sh", "ssh.sh", "slurm.sbatch", "slurm_sweep.sh")


def test_shellcheck() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    files = [*SCRIPTS, ROOT / ".ci" / "run", STUBS / "ssh"]
    done = subprocess.run([shellcheck, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_lines_are_short_and_files_can_be_run(script: Path) -> None:
    if script.name not in ("setup.sh", "demo.sh", "test.sh"):
        assert [line for line in script.read_text().splitlines() if len(line) > 120] == []
    assert os.access(script, os.X_OK) or script.name == "common.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize("script", STARTERS)
def test_help_names_every_option(script: str) -> None:
    done = call(LAUNCH / script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout
    handled = set(re.findall(r"^ +(--[a-z-]+)\) ", (LAUNCH / script).read_text(), re.MULTILINE))
    assert handled
    assert {option for option in handled if option not in done.stdout} == set()
    assert "#SBATCH" not in done.stdout


def agree(name: str, text: str) -> None:
    """Compare with the golden file."""
    # The environment may be inside the repository, but not the other way round.
    text = text.replace(sys.prefix, "VENV").replace(str(ROOT), "REPO")
    path = GOLDEN / f"{name}.txt"
    if UPDATE in os.environ:
        path.write_text(text)
    assert text == path.read_text(), f"if this is meant, run again with {UPDATE}=1"


def hostfile(folder: Path, nodes: int) -> Path:
    path = folder / "hosts"
    path.write_text("# the first one has rank 0\n\n" + "".join(f"gpu-{n:03} slots=8\n" for n in range(nodes)))
    return path


def test_local_dry_run() -> None:
    done = call(LAUNCH / "local.sh", "--dry-run", *RUN)
    assert done.stderr == ""
    agree("local", done.stdout)


@pytest.mark.parametrize("nodes", NODES)
def test_node_dry_run(nodes: int) -> None:
    facts = {"NNODES": str(nodes), "JOB_COMPLETION_INDEX": str(nodes - 1), "MASTER_ADDR": "trident-node-0-0.trident"}
    done = call(LAUNCH / "node.sh", "--ranks-per-node", "8", "--dry-run", *RUN, environment=facts)
    assert done.stderr == ""
    agree(f"node_{nodes}", done.stdout)


@pytest.mark.parametrize("nodes", NODES)
def test_ssh_dry_run(nodes: int, tmp_path: Path) -> None:
    facts = {"OMP_NUM_THREADS": "4", "NCCL_DEBUG": "WARN", "WANDB_API_KEY": "canary", "HF_HOME": "a$b", "MINE": "1"}
    options = ("--hostfile", hostfile(tmp_path, nodes), "--ssh-port", "2222", "--export", "MINE", "--dry-run")
    environment = {**facts, "HOME": str(tmp_path), "WANDB_MODE": "offline", "TRIDENT_CACHE": "/cache"}
    done = call(LAUNCH / "ssh.sh", *options, *QUOTED, BATCH, environment=environment, cwd=tmp_path)
    assert done.stderr.splitlines() == [
        "warning: HF_HOME is not handed to the nodes: its value has characters that a shell would read",
        "warning: WANDB_API_KEY is not handed to the nodes, where everyone could read it; log in there once",
    ]
    assert "canary" not in done.stdout
    agree(f"ssh_{nodes}", done.stdout.replace(str(tmp_path), "HERE"))


@pytest.mark.parametrize("nodes", NODES)
def test_no_ssh_dry_run(nodes: int, tmp_path: Path) -> None:
    options = ("--hostfile", hostfile(tmp_path, nodes), "--no-ssh", "--node-rank", str(nodes - 1), "--dry-run")
    done = call(LAUNCH / "ssh.sh", *options, *QUOTED, BATCH)
    assert done.stderr == ""
    agree(f"no_ssh_{nodes}", done.stdout.replace(str(tmp_path), "HERE"))


@pytest.mark.parametrize("nodes", NODES)
def test_slurm_dry_run(nodes: int, tmp_path: Path) -> None:
    facts = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_NTASKS": str(nodes * 8)}
    texts = []
    for container in ("", "/images/trident.sqsh", "/images/trident.sif"):
        environment = {**facts, "SLURM_CPUS_PER_TASK": "8", "TRIDENT_CONTAINER": container, "TRIDENT_MOUNTS": "/d:/d"}
        done = call(LAUNCH / "slurm.sbatch", "--dry-run", *RUN, environment=environment, cwd=tmp_path)
        assert done.stderr == ""
        texts.append(done.stdout.replace(str(tmp_path), "HERE"))
    agree(f"slurm_{nodes}", "\n".join(texts))


SWEEP = ("model=gpt2_124m", "optimizer.lr=3e-4,6e-4", "layout=single,tp2")


def test_sweep_dry_run(tmp_path: Path) -> None:
    options = ("--dry-run", "--nodes=2", "--max-restarts", "3", "--time=4:00:00")
    done = call(LAUNCH / "slurm_sweep.sh", *options, *SWEEP, "run_dir=/shared/it is", cwd=tmp_path)
    assert done.stderr == ""
    agree("slurm_sweep", done.stdout.replace(str(tmp_path), "HERE"))


def test_a_sweep_submits_an_array_and_each_of_its_jobs_trains_its_point(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ("--nodes=2", "--limit", "3", "--max-restarts", "1", *SWEEP, "run_dir=a b")
    done = call(LAUNCH / "slurm_sweep.sh", *words, environment=with_stubs(log), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    [[sbatch, *options, script, own, count, points, file]] = noted(log)
    assert [sbatch, *options] == [
        *("sbatch", "--job-name=trident-sweep", "--array=1-4%3", "--output=slurm-%A_%a.out", "--nodes=2")
    ]
    assert (script, own, count, points) == (str(LAUNCH / "slurm.sbatch"), "--max-restarts", "1", "--points")
    started = []
    for number in ("1", "4"):
        facts = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": number, "SLURM_NTASKS": "8"}
        job = call(script, "--dry-run", "--points", file, environment=facts, cwd=tmp_path)
        assert job.stderr == ""
        command = shlex.split(job.stdout.splitlines()[1])
        started.append(command[command.index("train") + 1 :])
    assert started[1][:3] == ["model=gpt2_124m", "optimizer.lr=0.0006", "layout=tp2"]
    names = ["optimizer.lr=0.0003,layout=single", "optimizer.lr=0.0006,layout=tp2"]
    assert [compose(words).run_dir for words in started] == [str(tmp_path / "a b" / name) for name in names]


def test_points_that_have_finished_are_not_submitted_again(tmp_path: Path) -> None:
    log, words = tmp_path / "log", ("optimizer.lr=3e-4,6e-4", "train.steps=5", "run_dir=S")
    for lr in ("0.0003", "0.0006"):
        folder = tmp_path / "S" / f"optimizer.lr={lr}"
        folder.mkdir(parents=True)
        done = call(LAUNCH / "slurm_sweep.sh", "--output=mine", *words, environment=with_stubs(log), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (folder / "summary.json").write_text('{"status": "finished", "step": 5}')
    assert [[word for word in words if word.startswith(("--array", "--output"))] for words in noted(log)] == [
        ["--array=1-2", "--output=mine"],
        ["--array=1-1", "--output=mine"],
    ]
    done = call(LAUNCH / "slurm_sweep.sh", *words, environment=with_stubs(log), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "every point has finished before\n")
    assert len(noted(log)) == 2


@pytest.mark.parametrize(
    ("facts", "line", "problem"),
    [
        ({}, "trident train a=1", "--points needs an array of jobs (sbatch --array), but SLURM_ARRAY_TASK_ID is ''"),
        (
            {"SLURM_ARRAY_TASK_ID": "2"},
            "trident train a=1",
            "line 2 of FILE must be a command 'trident train ...', but is ''",
        ),
        (
            {"SLURM_ARRAY_TASK_ID": "1"},
            "rm -r x",
            "line 1 of FILE must be a command 'trident train ...', but is 'rm -r x'",
        ),
    ],
)
def test_a_job_without_its_point(facts: dict[str, str], line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "points").write_text(f"{line}\n")
    done = call(LAUNCH / "slurm.sbatch", "--dry-run", "--points", "points", environment=facts, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: {problem.replace('FILE', 'points')}\n")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--nodes", "2"], "an option of sbatch must be written --name=value, but is --nodes"),
        (["--max-restarts", "x"], "--max-restarts must be a number, but is 'x'"),
        (["--limit", "0"], "--limit must be at least 1, but is 0"),
        (["--array=1-3"], "the array is made of the points of the sweep, but --array=1-3 is given"),
        (["--limit", "2", "sweeper=tpe", "train.seed=1,2"], "sweeper=tpe has no points to list"),
        (["optimizer.lr=1"], "--multirun needs a key with several values"),
        (["layout=tp2,tp2_tp3"], "layout=tp2_tp3 must name each part once"),
    ],
)
def test_what_a_sweep_refuses(words: list[str], problem: str, tmp_path: Path) -> None:
    done = call(LAUNCH / "slurm_sweep.sh", *words, environment=with_stubs(tmp_path / "log"), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr.splitlines()[0]
    assert not (tmp_path / "log").exists()


def test_sbatch_lines_are_where_sbatch_looks() -> None:
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    first_command = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    asked = [line.split()[1] for line in lines[:first_command] if line.startswith("#SBATCH")]
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(asked)
    assert sum(line.startswith("#SBATCH") for line in lines) == len(asked)


@pytest.mark.parametrize(
    ("words", "facts", "problem"),
    [
        (["--nodes", "2"], {}, "--node-rank must say which of 2 nodes this is, but nothing does"),
        (["--nodes", "2", "--node-rank", "0"], {}, "--master-addr (MASTER_ADDR) must name node 0, but is not set"),
        (["--nodes", "two"], {}, "--nodes (NNODES) must be a number, but is 'two'"),
        ([], {"NNODES": "2", "NODE_RANK": "x", "MASTER_ADDR": "a"}, "--node-rank (NODE_RANK) must be a number"),
        (
            [],
            {"NNODES": "2", "JOB_COMPLETION_INDEX": "2", "MASTER_ADDR": "a"},
            "must be less than --nodes (2), but is 2",
        ),
        (["--ranks-per-node", "0"], {}, "--ranks-per-node must say how many ranks to start"),
        (["--ranks-per-node"], {}, "must be a number, but is 'layout=tp4_pp2_sp'"),
        (["--master-port", "x"], {}, "--master-port (MASTER_PORT) must be a number, but is 'x'"),
        (["--max-restarts", "often"], {}, "--max-restarts must be a number, but is 'often'"),
        (["--hosts", "a"], {}, "there is no option --hosts"),
    ],
)
def test_what_a_node_refuses(words: list[str], facts: dict[str, str], problem: str) -> None:
    done = call(LAUNCH / "node.sh", *words, *RUN, environment=facts)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert problem in done.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("hosts", "words", "problem"),
    [
        (None, [], "--hostfile must name a file, but nowhere cannot be read"),
        ("", [], "must name a host, but names none"),
        ("a slots=8\nb 8\n", [], "must read 'HOST slots=RANKS', but is 'b 8'; write it as 'b slots=8'"),
        ("localhost slots=8\nb slots=8\n", [], "must have a name by which the others reach it, but localhost leads"),
        ("a slots=8\n", ["layout=tp2_pp2_dp2", "layout.data_parallel_size=4"], "must equal the number of ranks (8)"),
        ("a slots=8\n", ["model.hiden_size=1"], "there is no key 'model.hiden_size'"),
        ("a slots=8\n", ["--max-restarts", "x"], "--max-restarts must be a number, but is 'x'"),
        ("a slots=8\nb slots=8\n", ["--no-ssh"], "must say which line of"),
        ("a slots=8\n", ["--no-ssh", "--node-rank", "1"], "--node-rank must be less than 1 (hosts), but is 1"),
    ],
)
def test_what_ssh_refuses(hosts: str | None, words: list[str], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    if hosts is not None:
        path.write_text(hosts)
    name = "nowhere" if hosts is None else str(path)
    done = call(LAUNCH / "ssh.sh", "--hostfile", name, "--dry-run", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr.splitlines()[0]


def test_ssh_reads_a_last_line_without_newline_and_leaves_users_out_of_addresses(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"ann@gpu-0 slots=1 # the first\r\n\r\nann@gpu-1 slots=1")
    words = ("--hostfile=hosts", "--dry-run", "layout=dp2", "data=synthetic", "model.vocab_size=256")
    done = call(LAUNCH / "ssh.sh", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--hostfile hosts --master_addr gpu-0 " in done.stdout
    done = call(LAUNCH / "ssh.sh", "--no-ssh", "--node-rank=1", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--no_ssh --node_rank 1" in done.stdout


def test_ssh_warns_before_it_logs_in_anywhere_of_tensor_ranks_over_hosts(tmp_path: Path) -> None:
    words = ("model=gpt2_124m", "layout.tensor_parallel_size=4", "batch.global_batch_size=64", "--dry-run")
    for slots, warned in ((4, False), (2, True)):
        (tmp_path / "hosts").write_text(f"gpu-0 slots={slots}\ngpu-1 slots={slots}\n")
        done = call(LAUNCH / "ssh.sh", "--hostfile", tmp_path / "hosts", words[-1], *words[:-1], cwd=tmp_path)
        assert done.returncode == 0
        assert ("warning: tensor-parallel ranks should share a machine" in done.stderr) == warned
        assert ("ranks 0, 1, 2, 3 are on gpu-0 and gpu-1" in done.stderr) == warned


def test_slurm_refuses_to_run_outside_a_job_and_misplaced_options() -> None:
    done = call(LAUNCH / "slurm.sbatch", *RUN)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1)
    done = call(LAUNCH / "slurm.sbatch", "--nodes=4", *RUN)
    assert done.stderr == "error: there is no option --nodes=4; options of sbatch go before the script's name\n"
    assert done.returncode == 2
    done = call(LAUNCH / "slurm.sbatch", "--max-restarts", *RUN)
    assert done.stderr.startswith("error: --max-restarts must be a number, but is 'layout=")
    assert done.returncode == 2


def test_an_environment_without_trident_is_told(tmp_path: Path) -> None:
    done = call(LAUNCH / "local.sh", "--dry-run", environment={"TRIDENT_VENV": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: {tmp_path}/bin/python must have Trident installed, but has not"
