"""Values of the config that wandb's environment variables give: command line > environment > file > default.

Under `wandb agent` the project, the entity and the id of the run are the sweep's: wandb itself takes them from the
environment then, whatever it is told. No torch, no wandb.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from trainer.config.keys import joined
from trainer.errors import ConfigError

MODE_KEY = "logging.wandb"
VARIABLES: dict[str, str] = {
    "WANDB_PROJECT": "logging.wandb_project",
    "WANDB_ENTITY": "logging.wandb_entity",
    "WANDB_NAME": "logging.wandb_name",
    "WANDB_RUN_GROUP": "logging.wandb_group",
    "WANDB_JOB_TYPE": "logging.wandb_job_type",
    "WANDB_TAGS": "logging.wandb_tags",
    "WANDB_NOTES": "logging.wandb_notes",
    "WANDB_RUN_ID": "logging.wandb_run_id",
    "WANDB_RESUME": "logging.wandb_resume",
    "WANDB_DIR": "logging.wandb_dir",
}
"""Variable -> the key that it sets, besides `WANDB_MODE` and `WANDB_DISABLED`. An empty one counts as not set."""
OF_A_SWEEP = ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID")
"""Variables that wandb reads from the environment in a sweep, and from nowhere else."""
_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_RESUME = {"allow": "allow", "auto": "allow", "true": "allow", "must": "must", "never": "never", "false": "never"}
_YES, _NO = ("true", "1", "yes", "on", "y", "t"), ("false", "0", "no", "off", "n", "f")


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """Return the value of a variable, or None if it is not set or blank."""
    return environ.get(name, "").strip() or None


def mode_in(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the mode that the environment asks for and the variable that does, as in ("offline", "WANDB_MODE=dryrun").

    Raises:
        ConfigError: the variable's value is none of wandb's.
    """
    off = variable(environ, "WANDB_DISABLED")
    if off is not None and off.lower() not in (*_YES, *_NO):
        raise ConfigError(f"WANDB_DISABLED must be true or false, but is {off!r}; unset it, or set it to true")
    if off is not None and off.lower() in _YES:
        return "disabled", f"WANDB_DISABLED={off}"
    mode = variable(environ, "WANDB_MODE")
    if mode is None:
        return None
    if mode.lower() not in _MODES:
        raise ConfigError(
            f"WANDB_MODE must be one of {joined(_MODES)}, but is {mode!r}; unset it, or say {MODE_KEY}=... on the "
            "command line"
        )
    return _MODES[mode.lower()], f"WANDB_MODE={mode}"


def who_asks_for(mode: str, environ: Mapping[str, str]) -> str | None:
    """Return the variable that asks for `mode`, as in `WANDB_MODE=dryrun`, or None. Never raises."""
    try:
        found = mode_in(environ)
    except ConfigError:
        return None
    return found[1] if found is not None and found[0] == mode else None


def values_in(environ: Mapping[str, str], said: Mapping[str, object], keeps_off: bool = False) -> dict[str, object]:
    """Return key -> value for the keys that the environment decides.

    Args:
        environ: environment variables.
        said: key -> value on the command line, which wins; but `logging.wandb=auto` decides nothing.
        keeps_off: the command line chose a file of the group `logging` that turns wandb off.

    Raises:
        ConfigError: a variable holds a value that wandb does not know, or the command line contradicts a sweep.
    """
    found: dict[str, object] = {}
    for name, key in VARIABLES.items():
        value = variable(environ, name)
        if value is not None and key not in said:
            found[key] = _value(name, value)
    is_said = said.get(MODE_KEY, "auto") != "auto" or (keeps_off and MODE_KEY not in said)
    if not is_said and (mode := mode_in(environ)) is not None:
        found[MODE_KEY] = mode[0]
    if sweep_in(environ) is not None:
        _check_sweep(environ, said)
    return found


def _value(name: str, value: str) -> object:
    if name == "WANDB_TAGS":
        return [tag.strip() for tag in value.split(",") if tag.strip()]
    if name == "WANDB_RESUME":
        if value.lower() not in _RESUME:
            raise ConfigError(f"WANDB_RESUME must be one of {joined(_RESUME)}, but is {value!r}; unset it")
        return _RESUME[value.lower()]
    return value


def sweep_in(environ: Mapping[str, str]) -> str | None:
    """Return the id of the wandb sweep whose agent started this process."""
    return variable(environ, "WANDB_SWEEP_ID") if variable(environ, "WANDB_RUN_ID") else None


def _check_sweep(environ: Mapping[str, str], said: Mapping[str, object]) -> None:
    wrong = []
    for name in OF_A_SWEEP:
        key, value = VARIABLES[name], variable(environ, name)
        if said.get(key) is not None and value is not None and said[key] != value:
            wrong.append(f"{key} must be left out in a wandb sweep, which has its own ({name}={value})")
    if wrong:
        raise ConfigError(wrong)


def folder_in_sweep(run_dir: str, environ: Mapping[str, str]) -> str:
    """Return the run's folder: in a wandb sweep each run has one below `run_dir`, named after its wandb id."""
    run_id = variable(environ, "WANDB_RUN_ID")
    if sweep_in(environ) is None or run_id is None or run_id in run_dir:
        return run_dir
    return str(Path(run_dir, run_id))


def told(environ: Mapping[str, str], values: Mapping[str, object]) -> list[str]:
    """Return the variables that decided, as in `WANDB_PROJECT=mine`; one that the command line overrules is included.

    Args:
        environ: environment variables.
        values: key -> value of the resolved config.
    """
    lines = []
    for name, key in VARIABLES.items():
        value = variable(environ, name)
        if value is not None:
            ignored = "" if _agrees(name, value, values[key]) else f" (overruled by {key})"
            lines.append(f"{name}={value}{ignored}")
    return lines


def _agrees(name: str, value: str, resolved: object) -> bool:
    try:
        asked = _value(name, value)
    except ConfigError:
        return False
    if isinstance(resolved, tuple):
        return asked == list(resolved)
    return asked == (resolved.value if isinstance(resolved, Enum) else resolved)
