"""The wandb run that a run belongs to in all of its attempts, and the variables that wandb may still read."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from trainer.config.schema import LoggingConfig, WandbResume
from trainer.config.wandb_variables import OF_A_SWEEP, VARIABLES, sweep_in, variable
from trainer.files import write_atomically

RUN_ID_FILE = "wandb_run_id"
"""Name of the file with the id, in the run's folder."""


def settled_run_id(run_dir: Path, logging: LoggingConfig, first_step: int, environ: Mapping[str, str]) -> str:
    """Return the id of the wandb run, and write it down.

    In a wandb sweep it is the sweep's. A run that goes on has the one in its folder, unless the command line gives
    another: a variable may be left over from another run. Otherwise it is the one asked for, or a new one.
    """
    path, asked = run_dir / RUN_ID_FILE, logging.wandb_run_id
    known = path.read_text(encoding="utf-8").strip() if first_step > 1 and path.is_file() else ""
    in_environment = variable(environ, "WANDB_RUN_ID")
    if sweep_in(environ) is not None and in_environment is not None:
        run_id = in_environment
    elif known and logging.wandb_resume is WandbResume.never:
        run_id = secrets.token_hex(4) if asked in (None, known, in_environment) else str(asked)
    elif known and asked in (None, in_environment):
        run_id = known
    else:
        run_id = asked or secrets.token_hex(4)
    write_atomically(path, run_id + "\n")
    return run_id


def clear_environment(environ: MutableMapping[str, str]) -> None:
    """Remove the variables that would mislead wandb: blank ones, and those that the config has settled.

    Variables of a sweep stay, because wandb reads them from nowhere else; the id stays for `settled_run_id`.
    """
    stays = OF_A_SWEEP if sweep_in(environ) is not None else ("WANDB_RUN_ID",)
    settled = {"WANDB_MODE", "WANDB_DISABLED", *VARIABLES} - set(stays)
    for name in [name for name in environ if name.startswith("WANDB_")]:
        if name in settled or variable(environ, name) is None:
            del environ[name]
