"""Which wandb run a run is; and the same with the real wandb, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.wandb_file import OfflineRun, offline_files, read_offline
from trainer.config.schema import LoggingConfig, WandbResume
from trainer.metrics.wandb_identity import RUN_ID_FILE, clear_environment, settled_run_id

LEFT_OVER = {"WANDB_RUN_ID": "of-env"}
SWEEP = {"WANDB_RUN_ID": "of-sweep", "WANDB_SWEEP_ID": "swp1"}
OF_ENV, SAID = LoggingConfig(wandb_run_id="of-env"), LoggingConfig(wandb_run_id="said")


@pytest.mark.parametrize(
    ("logging", "environ", "first_step", "known", "run_id"),
    [
        (OF_ENV, LEFT_OVER, 1, "", "of-env"),
        (SAID, LEFT_OVER, 1, "", "said"),
        (SAID, {}, 1, "", "said"),
        (LoggingConfig(), {}, 4, "kept", "kept"),
        (OF_ENV, LEFT_OVER, 4, "kept", "kept"),
        (SAID, LEFT_OVER, 4, "kept", "said"),
        (OF_ENV, LEFT_OVER, 4, "", "of-env"),
        (OF_ENV, LEFT_OVER, 1, "of-the-run-before", "of-env"),
        (LoggingConfig(wandb_run_id="of-sweep"), SWEEP, 4, "kept", "of-sweep"),
        (LoggingConfig(wandb_run_id="said", wandb_resume=WandbResume.never), {}, 4, "kept", "said"),
    ],
)
def test_the_id(
    logging: LoggingConfig, environ: dict[str, str], first_step: int, known: str, run_id: str, tmp_path: Path
) -> None:
    if known:
        (tmp_path / RUN_ID_FILE).write_text(known + "\n")
    assert settled_run_id(tmp_path, logging, first_step, environ) == run_id
    assert (tmp_path / RUN_ID_FILE).read_text() == run_id + "\n"


@pytest.mark.parametrize("asked", [None, "of-env", "kept"])
def test_never_resuming_each_attempt_is_a_wandb_run_of_its_own(asked: str | None, tmp_path: Path) -> None:
    (tmp_path / RUN_ID_FILE).write_text("kept\n")
    logging = LoggingConfig(wandb_run_id=asked, wandb_resume=WandbResume.never)
    assert settled_run_id(tmp_path, logging, 4, LEFT_OVER) not in ("kept", "of-env")


def test_only_what_wandb_needs_stays_in_the_environment() -> None:
    settled = {
        "WANDB_MODE": "dryrun",
        "WANDB_TAGS": "a",
        "WANDB_PROJECT": "p",
        "WANDB_SILENT": "",
        "WANDB_CONSOLE": " ",
    }
    environ = {**settled, **LEFT_OVER, "WANDB_API_KEY": "k", "HOME": ""}
    clear_environment(environ)
    assert environ == {**LEFT_OVER, "WANDB_API_KEY": "k", "HOME": ""}
    environ = {**settled, **SWEEP}
    clear_environment(environ)
    assert environ == {**SWEEP, "WANDB_PROJECT": "p"}


SCRIPT = """
import dataclasses, sys
from pathlib import Path
from trainer.config.compose import compose
from trainer.config.schema import WandbMode
from trainer.loop.events import RunEnd
from trainer.metrics.wandb_mode import choose_mode
from trainer.metrics.wandb_sink import Tell, WandbSink
config = compose(sys.argv[1:])
choice, group = choose_mode(config.logging.wandb), config.logging.wandb_group or config.name
values = {"optimizer": {"lr": 1.0}}
sink = WandbSink(Path("run"), config.logging, choice, group, ("dp1",), values, Tell(print, print, sys.exit))
sink.start(1)
sink.end(RunEnd("finished", 1, 1.0))
"""


def really(place: Path, environ: dict[str, str], *words: str) -> tuple[list[OfflineRun], str]:
    (place / "run").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env={**kept, "PYTHONPATH": os.getcwd(), "HOME": str(place), **environ},
        cwd=place,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    folder = Path(environ.get("WANDB_DIR") or place / "run") / "wandb"
    return [read_offline(path) for path in offline_files(folder)], done.stdout


def test_the_offline_file_has_what_the_environment_said(tmp_path: Path) -> None:
    environ = {
        "WANDB_PROJECT": "mine",
        "WANDB_ENTITY": "team",
        "WANDB_NAME": "a name",
        "WANDB_RUN_GROUP": "g",
        "WANDB_JOB_TYPE": "j",
        "WANDB_TAGS": "a,b",
        "WANDB_NOTES": "what for",
        "WANDB_RUN_ID": "id-of-env",
        "WANDB_RESUME": "must",
        "WANDB_DIR": str(tmp_path / "else where"),
        "WANDB_MODE": "dryrun",
    }
    [found], said = really(tmp_path, environ)
    assert (found.project, found.entity, found.name, found.group) == ("mine", "team", "a name", "g")
    assert (found.job_type, found.notes, found.run_id) == ("j", "what for", "id-of-env")
    assert sorted(found.tags) == ["a", "b", "dp1"]
    assert (found.exit_code, found.config["optimizer"]) == (0, {"lr": 1.0})
    pattern = f"'{tmp_path}/else where/wandb'/offline-run-*-id-of-env"
    assert said == f"wandb is offline; upload with: wandb sync {pattern}\n"
    listed = subprocess.run(f"ls -d {pattern}", shell=True, capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 1


def test_blank_variables_do_not_turn_it_off(tmp_path: Path) -> None:
    names = ("MODE", "RUN_ID", "TAGS", "RESUME", "SILENT", "CONSOLE", "BASE_URL", "INIT_TIMEOUT", "SWEEP_ID", "DIR")
    [found], _ = really(tmp_path, {f"WANDB_{name}": "" for name in names}, "logging.wandb_project=said")
    assert (found.project, found.name, found.group) == ("said", "run", "default")
    assert found.run_id == (tmp_path / "run" / RUN_ID_FILE).read_text().strip()
