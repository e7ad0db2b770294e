"""The same command under each launcher: the same files, the same numbers to the last bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.helpers.command import Ended, rows, run, trident

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STEPS = 6
SETTINGS = (
    "model=gpt_debug",
    "layout.pipeline_parallel_size=2",
    "layout.tensor_parallel_size=2",
    "layout.data_parallel_size=2",
    "zero.stage=1",
    "zero.offload=cpu",
    "data.source=stdlib",
    "model.seq_length=32",
    f"train.steps={STEPS}",
    "runtime.device=cpu",
)
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "trident": trident(),
    "deepspeed": [
        *(str(BIN / "deepspeed"), "--no_local_rank", "--num_gpus", "8", "--master_port", "29871"),
        *("--module", "trainer"),
    ],
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "8", "--master-port", "29872", "-m", "trainer"],
}
NAMES = {
    "step",
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "train/tokens_seen",
    "perf/tokens_per_second",
    "perf/tokens_per_second_per_gpu",
    "perf/tflops_per_gpu",
    "time/step_ms",
    "time/data_wait_ms",
    "time/step_p50_ms",
    "time/step_p95_ms",
    "time/step_p99_ms",
    "memory/peak_allocated_gib",
    "memory/peak_reserved_gib",
    "pipeline/bubble_fraction",
    "data/sample_ledger",
    "train/skipped_batches",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Ended]]:
    """Train once under each launcher."""
    found: dict[str, tuple[Path, Ended]] = {}
    for name, launcher in LAUNCHERS.items():
        folder = tmp_path_factory.mktemp(name)
        command = [*launcher, "train", *SETTINGS, f"run_dir={folder / 'R'}"]
        found[name] = folder / "R", run(command, folder, timeout_s=300)
    return found


_OF_A_STAGE = ("memory/stage{}/peak_allocated_gib", "memory/stage{}/peak_used_gib", "time/stage{}/busy_ms")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_run_folder_is_whole(launcher: str, trained: dict[str, tuple[Path, Ended]]) -> None:
    run_dir, ended = trained[launcher]
    assert ended.code == 0, ended.out + ended.err
    assert [row["step"] for row in rows(run_dir)] == list(range(1, STEPS + 1))
    extra = {name.format(k) for k in (0, 1) for name in _OF_A_STAGE}
    extra |= {"time/slowest_rank", "time/slowest_rank_ratio"}
    extra |= {"plan/step_ms", "plan/step_ms_ratio", "plan/peak_memory_gib", "plan/peak_memory_ratio"}
    # Of a save, only in the row after it.
    sometimes = ("system/node0/", "checkpoint/")
    assert all({name for name in row if not name.startswith(sometimes)} == NAMES | extra for row in rows(run_dir))
    assert "system/node0/cpu_percent" in rows(run_dir)[0]
    for name in ("config.yaml", "plan.json", "metrics.jsonl", "summary.json", "wandb", "checkpoints/latest"):
        assert (run_dir / name).exists(), name
    assert (run_dir / "checkpoints" / f"step_{STEPS}" / "manifest.json").is_file()
    assert sorted(path.name for path in (run_dir / "logs").glob("rank_*.log")) == [f"rank_{r}.log" for r in range(8)]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", STEPS)
    assert summary["layout"] == {"pipeline": 2, "tensor": 2, "data": 2, "world_size": 8}
    assert summary["final"] == rows(run_dir)[-1]


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_numbers_do_not_depend_on_the_launcher(launcher: str, trained: dict[str, tuple[Path, Ended]]) -> None:
    columns = [
        [(row["train/loss"], row["train/grad_norm"]) for row in rows(trained[name][0])]
        for name in ("trident", launcher)
    ]
    assert columns[0] == columns[1]
    ledgers = [
        json.loads((trained[name][0] / "summary.json").read_text())["sample_ledger"] for name in ("trident", launcher)
    ]
    assert ledgers[0] == ledgers[1] != ""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_screen_is_the_runs_not_the_libraries(launcher: str, trained: dict[str, tuple[Path, Ended]]) -> None:
    _, ended = trained[launcher]
    assert ended.out.count(f"finished at step {STEPS}") == 1
    assert "Traceback" not in ended.out + ended.err
    if launcher == "trident":
        assert ended.err == ""
        assert ended.out.splitlines()[-1].startswith(f"finished at step {STEPS}"), "the last word is the last line"
        assert "[INFO]" not in ended.out


def test_text_from_a_sharded_checkpoint(trained: dict[str, tuple[Path, Ended]], tmp_path: Path) -> None:
    run_dir, _ = trained["trident"]
    settings = (f"checkpoint={run_dir}", "prompt=import ", "max_tokens=12")
    first, second = (run(trident("generate", *settings), tmp_path) for _ in range(2))
    assert first.code == 0, first.err
    assert first.out.startswith("import ")
    assert first.out == second.out
    assert first.err.startswith("cache  ")
    ranks = run(trident("generate", *settings, "layout=tp2", "runtime.device=cpu"), tmp_path)
    assert ranks.code == 0, ranks.err
    assert ranks.out == first.out, "nothing but the text, and the same"
    assert " MiB on a rank for keys and values of 1 x " in ranks.err
