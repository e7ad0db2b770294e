"""Rows to Weights & Biases. Nothing that wandb does, or fails to do, can stop or hang training."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.config.schema import LoggingConfig, WandbMode
from trainer.files import write_atomically
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.bounded import bounded
from trainer.metrics.redact import redacted
from trainer.metrics.sink import Row
from trainer.metrics.wandb_mode import WandbChoice

RUN_ID_FILE = "wandb_run_id"
_INIT_S = 30.0
_LOG_S = 10.0
_FINISH_S = 60.0
_FINISH_AFTER_FAILURE_S = 5.0


class WandbSink:
    """Logs rows to one wandb run a run folder: files lie in `run_dir/wandb`, the run's id in `run_dir/wandb_run_id`.

    The first failure, or a call that takes too long, switches the sink off with one warning.

    Args:
        run_dir: the run's folder.
        logging: project, entity, tags.
        choice: mode, decided beforehand (`choose_mode`).
        group: wandb group; runs of one name belong together.
        tags: more tags.
        config: what wandb shows as the run's config; secrets are taken out here.
        say: tells the user a line.
        warn: warns the user.
    """

    def __init__(
        self,
        run_dir: Path,
        logging: LoggingConfig,
        choice: WandbChoice,
        group: str,
        tags: tuple[str, ...],
        config: Mapping[str, object],
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._run_dir = run_dir
        self._logging = logging
        self._choice = choice
        self._group = group
        self._tags = tags
        self._config = redacted(config)
        self._say, self._warn = say, warn
        self._run: Any = None
        self._sync_dir: str | None = None

    def start(self, first_step: int) -> None:
        """Start the wandb run, or continue it when the run resumes."""
        if self._choice.mode is WandbMode.disabled:
            return
        run_id = self._run_id(first_step)
        self._run = self._guarded("start", lambda: self._init(run_id), _INIT_S + 5)

    def advance(self, step: int) -> None:
        """Do nothing."""

    def write(self, row: Row, report: StepReport) -> None:
        """Log the row."""
        if self._run is not None:
            self._guarded("log", lambda: self._run.log(dict(row)), _LOG_S)

    def end(self, end: RunEnd) -> None:
        """Close the run; offline, tell how to upload it."""
        if self._run is None:
            return
        seconds = _FINISH_AFTER_FAILURE_S if end.status == "failed" else _FINISH_S
        self._guarded("finish", lambda: self._finish(end), seconds)
        self._run = None
        if self._choice.mode is WandbMode.offline and self._sync_dir:
            self._say(f"wandb is offline ({self._choice.reason}); upload with: wandb sync {self._sync_dir}")

    def _run_id(self, first_step: int) -> str:
        """Return the id of the run to continue; a run that starts from step 1 gets a new one."""
        path = self._run_dir / RUN_ID_FILE
        if first_step > 1 and path.is_file() and (known := path.read_text(encoding="utf-8").strip()):
            return known
        run_id = secrets.token_hex(4)
        write_atomically(path, run_id + "\n")
        return run_id

    def _init(self, run_id: str) -> Any:
        import wandb

        online = self._choice.mode is WandbMode.online
        run = wandb.init(
            project=self._logging.wandb_project,
            entity=self._logging.wandb_entity,
            dir=str(self._run_dir),
            id=run_id,
            # Offline there is nothing to look up: wandb would only warn.
            resume="allow" if online else None,
            mode="online" if online else "offline",
            name=self._run_dir.name,
            group=self._group,
            job_type="train",
            tags=[*self._logging.wandb_tags, *self._tags],
            config=self._config,
            # console=off: wandb must not stand between the progress bar and the terminal.
            settings=wandb.Settings(
                init_timeout=_INIT_S, finish_timeout=_FINISH_S, console="off", silent=True, disable_code=True
            ),
        )
        # Our own step axis: a run that resumes from an earlier step would otherwise lose rows, because wandb drops
        # what is not beyond its own step.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._sync_dir = str(run.settings.sync_dir)
        return run

    def _finish(self, end: RunEnd) -> None:
        if end.status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if end.status == "finished" else 1)

    def _guarded(self, what: str, call: Callable[[], Any], seconds: float) -> Any:
        """Return `call()`; if it fails or takes too long, warn, switch the sink off and return None."""
        try:
            return bounded(call, seconds)
        except Exception as error:
            self._run = None
            self._sync_dir = None
            self._warn(f"wandb is off for the rest of this run ({what} failed: {type(error).__name__}: {error})")
            return None
