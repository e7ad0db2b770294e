"""Rows, texts and checkpoints to Weights & Biases. Nothing that wandb does, or fails to do, can stop or slow training.

wandb is only ever called in threads of its own: the loop hands over the data to log and goes on.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from trainer.config.places import absolute_path
from trainer.config.schema import LoggingConfig, WandbMode
from trainer.config.wandb_variables import sweep_in, variable
from trainer.errors import NumericsError
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.bounded import bounded
from trainer.metrics.jsonl import read_rows
from trainer.metrics.redact import redacted
from trainer.metrics.sink import Row, Sample, Sink
from trainer.metrics.sink_thread import Background
from trainer.metrics.stall import StallWatch
from trainer.metrics.wandb_identity import RUN_ID_FILE, clear_environment, settled_run_id
from trainer.metrics.wandb_mode import WandbChoice, is_reachable, server_url
from trainer.restarts import read_restarts
from trainer.run_paths import SAMPLES

Checkpoints = Callable[[], tuple[int, Path] | None]
"""Returns step and folder of the newest checkpoint that is whole, if there is one."""
_INIT_S = 30.0
_FINISH_S = 60.0
_FINISH_AFTER_FAILURE_S = 5.0
_UPLOAD_S = 600.0
_TEARDOWN_S = 2.0
_TABLE_ROWS = 200


@dataclass(frozen=True)
class Tell:
    """Ways in which the sink tells the user a line."""

    now: Callable[[str], None]
    at_the_end: Callable[[str], None]
    """Tells the line when all is done."""
    as_warning: Callable[[str], None]


class WandbSink(Sink):
    """Logs rows to one wandb run a run folder: files lie in `run_dir/wandb`, the run's id in `run_dir/wandb_run_id`.

    The first failure, or a call that takes too long, switches the sink off with one warning.

    Args:
        run_dir: the run's folder.
        logging: project, entity, tags, alerts, artifacts.
        choice: mode, decided beforehand (`choose_mode`).
        group: wandb group; runs of one name belong together.
        tags: more tags.
        config: the run's config as wandb shows it; secrets are removed here.
        tell: tells the user a line.
        checkpoints: finds the checkpoint that `logging.wandb_artifacts` uploads.
    """

    def __init__(
        self,
        run_dir: Path,
        logging: LoggingConfig,
        choice: WandbChoice,
        group: str,
        tags: tuple[str, ...],
        config: Mapping[str, object],
        tell: Tell,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._logging = logging
        self._choice = choice
        self._group = group
        self._tags = tags
        self._config = redacted(config)
        self._tell = tell
        self._run: Any = None
        self._folder: str | None = None
        self._elsewhere = ""
        self._calls = Background("wandb")
        self._is_on = False
        self._stall = StallWatch(max(1, logging.stall_alert_s), self._on_stall)
        self._texts: list[list[object]] = []
        self._table_error: Exception | None = None
        self._is_table_told = False
        self._evals: dict[int, float] = {}
        self._uploads = _Uploads(checkpoints if logging.wandb_artifacts else None)

    def start(self, first_step: int) -> None:
        """Start the wandb run, or continue it when the run resumes."""
        if self._choice.mode is WandbMode.disabled:
            return
        self._is_on = True
        # wandb's reports of its own errors would hold up the process's end if its server does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        clear_environment(os.environ)
        run_id = settled_run_id(self._run_dir, self._logging, first_step, os.environ)
        # Tables and artifacts are built in this folder: the home folder may be read-only or small, and offline it must
        # stay.
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            os.environ.setdefault(name, str(self._run_dir / "wandb" / "artifacts"))
        earlier = [row for row in read_rows(self._run_dir / SAMPLES) if row["step"] < first_step]
        self._texts = [[row["step"], row.get("prompt"), row.get("text")] for row in earlier]
        self._calls.submit(lambda: self._init(run_id))
        self._tell_restart(first_step)
        if self._logging.stall_alert_s > 0:
            self._stall.start(first_step - 1)

    def advance(self, step: int) -> None:
        """Note that the run is alive."""
        self._stall.beat(step)

    def rewind(self, step: int) -> None:
        """Go on with the same wandb run; its rows have an axis of their own, on which `step` comes again."""
        self._stall.beat(step)
        self._texts = [text for text in self._texts if int(str(text[0])) <= step]
        self._evals = {at: loss for at, loss in self._evals.items() if at <= step}
        self._uploads.rewind(step)
        if self._still_on():
            self._alert("Training went back", f"{self._run_dir} goes on from the checkpoint of step {step}", "WARN")

    def write(self, row: Row, report: StepReport) -> None:
        """Hand the row over; while online, a new checkpoint too."""
        if report.eval_loss is not None:
            self._evals[report.step] = report.eval_loss
        if self._still_on():
            self._calls.submit(lambda: self._run.log(dict(row)))
        if self._choice.mode is WandbMode.online and self._is_on and self._run is not None:
            self._uploads.offer(self._run)

    def show(self, samples: Sequence[Sample]) -> None:
        """Hand over the table of texts, with those of this run so far."""
        self._texts += [[sample.step, sample.prompt, sample.text] for sample in samples]
        self._texts = self._texts[-_TABLE_ROWS:]
        rows, step = list(self._texts), samples[-1].step
        if self._still_on() and not self._table_error:
            self._calls.submit(lambda: self._log_table(step, rows))

    def end(self, end: RunEnd) -> None:
        """Close the run; offline, say how to upload it."""
        self._stall.stop()
        if self._still_on():
            self._close(end)
        if self._choice.mode is WandbMode.disabled:
            return
        if not self._still_on():
            _end_service()
        elif self._choice.mode is WandbMode.offline:
            self._tell.at_the_end(f"wandb is offline; upload with: wandb sync {self._to_upload()}")

    def _close(self, end: RunEnd) -> None:
        is_gone = self._choice.mode is WandbMode.online and not is_reachable(server_url(os.environ))
        seconds = _FINISH_AFTER_FAILURE_S if end.status == "failed" or is_gone else _FINISH_S
        if end.status == "finished" and not is_gone and self._uploads.has_new():
            self._tell.now("adding the last checkpoint to wandb")
            # The run's start may still be under way.
            self._calls.finish(seconds)
            if self._run is not None and self._calls.failure is None:
                # An upload may be under way.
                self._uploads.finish(_UPLOAD_S)
                self._uploads.offer(self._run)
                self._uploads.finish(_UPLOAD_S)
                seconds = _UPLOAD_S
        if end.status == "failed":
            what = "Loss or gradients not finite" if end.error.startswith(NumericsError.__name__) else "Training failed"
            self._alert(what, f"after step {end.step}: {end.error}", "ERROR")
        self._calls.submit(lambda: self._run.summary.update(self._summary(end)))
        self._calls.submit(lambda: self._finish(end))
        self._calls.finish(seconds)

    def _log_table(self, step: int, rows: list[list[object]]) -> None:
        import wandb

        # Unlike for a row, wandb talks to its server about a table.
        try:
            table = wandb.Table(columns=["step", "prompt", "text"], data=rows)
            self._run.log({"step": step, "samples": table})
        except Exception as error:
            self._table_error = error

    def _alert(self, title: str, text: str, level: str) -> None:
        self._calls.submit(lambda: self._run.alert(title=title, text=text, level=level))

    def _on_stall(self, step: int, seconds: float) -> None:
        self._alert("No step ends", f"{self._run_dir}: nothing for {seconds:.0f} s after step {step}", "WARN")

    def _tell_restart(self, first_step: int) -> None:
        restarts = read_restarts(self._run_dir)
        if first_step == 1 and not restarts:
            return
        text = f"{self._run_dir} goes on at step {first_step}"
        if restarts:
            last = restarts[-1]
            text += f"; restart {len(restarts)}, after exit code {last.get('exit_code')} at step {last.get('step')}"
            lost = last.get("lost_ranks")
            text += f", ranks lost: {lost}" if lost else ""
        self._alert("Training started again", text, "WARN" if restarts else "INFO")

    def _still_on(self) -> bool:
        """Return whether wandb still accepts data; warn once when it no longer does."""
        if error := self._uploads.take_error():
            self._tell.as_warning(f"a checkpoint was not added to wandb ({_told(error)})")
        if self._elsewhere:
            elsewhere, self._elsewhere = self._elsewhere, ""
            self._tell.as_warning(elsewhere)
        if self._table_error is not None and not self._is_table_told:
            self._is_table_told = True
            self._tell.as_warning(f"texts are no longer added to wandb ({_told(self._table_error)})")
        if self._is_on and (error := self._calls.failure) is not None:
            self._is_on = False
            self._stall.stop()
            kept = f"; what it has: wandb sync --include-online {shlex.quote(self._folder)}" if self._folder else ""
            self._tell.as_warning(f"wandb is off for the rest of this run ({_told(error)}){kept}")
        return self._is_on

    def _to_upload(self) -> str:
        """Return the words after `wandb sync` that upload every attempt of this run, quoted for a shell."""
        if self._logging.wandb_dir is None:
            return shlex.quote(str(self._run_dir / "wandb"))
        run_id = (self._run_dir / RUN_ID_FILE).read_text(encoding="utf-8").strip()
        # Other runs have files in the same folder; wandb uses another folder if this one cannot be written.
        folder = self._root() / "wandb" if self._folder is None else Path(self._folder).parent
        return f"{shlex.quote(str(folder))}/offline-run-*-{shlex.quote(run_id)}"

    def _root(self) -> Path:
        given = self._logging.wandb_dir
        return self._run_dir if given is None else absolute_path(given, "logging.wandb_dir")

    def _writable_root(self) -> Path:
        """Return the folder that wandb shall write to: the run's, if that of `logging.wandb_dir` cannot be written.

        wandb itself would use the one for temporary files, which differs from machine to machine and does not last.
        """
        root = self._root()
        folder = root / "wandb"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            reason = "" if os.access(folder, os.W_OK | os.R_OK | os.X_OK) else "Permission denied"
        except OSError as error:
            reason = error.strerror or type(error).__name__
        if not reason:
            return root
        self._elsewhere = (
            f"logging.wandb_dir must be a folder that can be written, but {folder} cannot ({reason}); what wandb "
            f"writes is in {self._run_dir / 'wandb'} instead"
        )
        return self._run_dir

    def _init(self, run_id: str) -> None:
        import wandb

        run = wandb.init(
            **self._place(run_id),
            dir=str(self._writable_root()),
            # Offline it is kept for `wandb sync`, which then continues the run instead of writing over it.
            resume=self._logging.wandb_resume.value,
            mode="online" if self._choice.mode is WandbMode.online else "offline",
            name=self._logging.wandb_name or self._run_dir.name,
            notes=self._logging.wandb_notes,
            group=self._group,
            job_type=self._logging.wandb_job_type,
            tags=[*self._logging.wandb_tags, *self._tags],
            config=self._config,
            # console=off: wandb must not stand between the live view and the terminal.
            settings=wandb.Settings(
                init_timeout=float(variable(os.environ, "WANDB_INIT_TIMEOUT") or _INIT_S),
                finish_timeout=_UPLOAD_S if self._logging.wandb_artifacts else _FINISH_S,
                console="off",
                silent=True,
                disable_code=True,
            ),
        )
        # Our own step axis: a run that resumes from an earlier step would otherwise lose rows, because wandb drops
        # what is not beyond its own step.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        self._folder = str(run.settings.sync_dir)
        self._run = run

    def _place(self, run_id: str) -> dict[str, Any]:
        """Return the wandb project and entity; nothing in a sweep, where wandb knows them and would warn."""
        if sweep_in(os.environ) is not None:
            return {}
        logging = self._logging
        return {"project": logging.wandb_project, "entity": logging.wandb_entity, "id": run_id}

    def _summary(self, end: RunEnd) -> dict[str, object]:
        found: dict[str, object] = {"run/status": end.status, "run/wall_time_s": end.wall_time_s}
        found["run/restarts"] = len(read_restarts(self._run_dir))
        return found | ({"eval/best_loss": min(self._evals.values())} if self._evals else {})

    def _finish(self, end: RunEnd) -> None:
        if end.status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if end.status == "finished" else 1)


class _Uploads:
    """Adds new checkpoints to the wandb run, one at a time, in a thread of its own: rows must not wait for them."""

    def __init__(self, checkpoints: Checkpoints | None) -> None:
        self._checkpoints = checkpoints
        self._calls = Background("wandb-artifacts")
        self._done_step = 0
        self._is_busy = False
        self._error: Exception | None = None

    def has_new(self) -> bool:
        """Return whether there is a checkpoint that was not added yet."""
        newest = self._checkpoints() if self._checkpoints else None
        return newest is not None and newest[0] > self._done_step

    def offer(self, run: Any) -> None:
        """Add the newest checkpoint, unless it was added or another one is under way."""
        newest = self._checkpoints() if self._checkpoints and not self._is_busy else None
        if newest is None or newest[0] <= self._done_step:
            return
        self._done_step, self._is_busy = newest[0], True
        self._calls.submit(lambda: self._add(run, *newest))

    def rewind(self, step: int) -> None:
        """Add the checkpoints after `step` once more, which will be others."""
        self._done_step = min(self._done_step, step)

    def finish(self, seconds: float) -> None:
        """Wait at most `seconds` until everything was handed to wandb."""
        self._calls.finish(seconds)
        self._error = self._error or self._calls.failure

    def take_error(self) -> Exception | None:
        """Return a failure that was not reported yet."""
        error, self._error = self._error, None
        return error

    def _add(self, run: Any, step: int, folder: Path) -> None:
        import wandb

        try:
            artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model", metadata={"step": step})
            # wandb copies the files first: this run may delete them before they are uploaded.
            artifact.add_dir(str(folder))
            run.log_artifact(artifact, aliases=[f"step_{step}"])
        # Not even a checkpoint that was deleted meanwhile is a reason to stop logging.
        except Exception as error:
            self._error = error
        finally:
            self._is_busy = False


def _told(error: Exception) -> str:
    """Return an error's text in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _end_service() -> None:
    """Kill wandb's helper processes: at its end this process would wait for them, and they for the network."""
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if child.name().startswith(("wandb", "gpu_stats")):
                    child.kill()
    # Otherwise wandb would look for them.
    with suppress(Exception):
        import wandb

        bounded(wandb.teardown, _TEARDOWN_S)
