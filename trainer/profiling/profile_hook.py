"""A hook of the loop that records chosen steps on chosen ranks; it exists only with `runtime.profile`."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.config.schema import PROFILE_AFTER_STEPS, TridentConfig
from trainer.errors import StorageError
from trainer.files import storage_faults, write_atomically
from trainer.log import say, terminal, warn
from trainer.loop.events import Hook, RunEnd
from trainer.metrics.screen import speaks_unicode
from trainer.profiling.breakdown import Breakdown, break_down
from trainer.profiling.marks import CommunicationMarks
from trainer.profiling.phases import MarkedProgress
from trainer.profiling.report import record, screen, summarise
from trainer.run_paths import PROFILE
from trainer.topology.agreement import gather, together
from trainer.topology.groups import ParallelGroups


class ProfileHook(Hook):
    """Lives on every rank; some of them record. List it last, so that a step ends before recording starts or stops.

    Args:
        config: the run's config, with `runtime.profile` true.
        run_dir: the run's folder.
        progress: progress of the loop and the engine; its notes become ranges in the trace.
        groups: this rank's place.
    """

    def __init__(
        self,
        config: TridentConfig,
        run_dir: Path,
        progress: MarkedProgress,
        groups: ParallelGroups,
    ) -> None:
        self._runtime, self._last_of_run = config.runtime, config.train.steps
        self._folder = run_dir / PROFILE
        self._progress, self._groups = progress, groups
        mesh = groups.mesh
        self._marks = CommunicationMarks(mesh)
        self._ranks = config.runtime.profile_ranks or tuple(
            mesh.rank(stage, 0, 0) for stage in range(mesh.pipeline_parallel_size)
        )
        self._window: range | None = None
        self._profiler: Any = None
        self._is_done = False

    def on_start(self, first_step: int) -> None:
        """Choose the steps, and get ready if they are near. Local."""
        if self._is_done:
            return
        first = self._runtime.profile_first_step or first_step + PROFILE_AFTER_STEPS
        window = range(first, first + self._runtime.profile_steps)
        if window[0] < first_step or window[-1] > self._last_of_run:
            warn(
                f"runtime.profile records nothing: this start of the run trains steps {first_step} to "
                f"{self._last_of_run}, but steps {window[0]} to {window[-1]} were to be recorded; change "
                "runtime.profile_first_step"
            )
            return
        self._window = window
        self._get_ready(first_step - 1)

    def on_step(self, step: int) -> None:
        """Start or stop to record. Collective over the world after the last recorded step.

        Raises:
            StorageError: the trace cannot be written; the same on every rank.
        """
        if self._window is None:
            return
        if step < self._window[-1]:
            self._get_ready(step)
            return
        window, self._window, self._is_done = self._window, None, True
        found = together(self._groups.control, lambda: self._finish(window))
        self._tell(window, gather(self._groups.control, found))

    def on_rewind(self, step: int) -> None:
        """Give up what is not complete, and choose steps anew. Local."""
        if self._window is not None:
            self._window = None
            self._stop()
            self.on_start(step + 1)

    def on_end(self, end: RunEnd) -> None:
        """Drop a recording that is not complete. Local."""
        if self._window is None:
            return
        self._window = None
        self._stop()
        warn(f"runtime.profile recorded nothing: the run {end.status} after step {end.step}, before it was done")

    def _get_ready(self, done: int) -> None:
        """Prepare for recording between step `done` and the next one."""
        assert self._window is not None
        if self._groups.rank not in self._ranks:
            return
        first = self._window[0]
        # The step before is recorded and thrown away, because the first step under a profiler is slow.
        if self._profiler is None and first - 2 <= done < first:
            self._profiler = profile(
                activities=self._activities(),
                schedule=schedule(wait=0, warmup=1, active=len(self._window), repeat=1),
                acc_events=True,
            )
            self._profiler.start()
        if done == first - 1:
            self._profiler.step()
            self._marks.put_in()
            self._progress.mark(self._finish_device)

    def _activities(self) -> list[ProfilerActivity]:
        on_gpu = [ProfilerActivity.CUDA] if self._groups.device.type == "cuda" else []
        return [ProfilerActivity.CPU, *on_gpu]

    def _finish_device(self) -> None:
        if self._groups.device.type == "cuda":
            torch.cuda.synchronize(self._groups.device)

    def _stop(self) -> Any:
        """Stop recording and return the profiler, None on ranks without one."""
        self._progress.stop()
        self._marks.take_out()
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
        return profiler

    def _finish(self, window: range) -> Breakdown | None:
        profiler = self._stop()
        if profiler is None:
            return None
        path = self._folder / f"step{window[0]}-{window[-1]}_rank{self._groups.rank}.json.gz"
        content = _exported(profiler, path)
        write_atomically(path, gzip.compress(content, compresslevel=6))
        return break_down(json.loads(content)["traceEvents"])

    def _tell(self, window: range, found: Sequence[Breakdown | None]) -> None:
        def tell() -> None:
            if not self._groups.is_reporting_rank:
                return
            ranks = {rank: breakdown for rank, breakdown in enumerate(found) if breakdown is not None}
            summary = summarise(window[0], window[-1], self._groups.device.type, ranks)
            write_atomically(self._folder / "summary.json", json.dumps(record(summary), indent=2) + "\n")
            say(screen(summary, str(self._folder), speaks_unicode(terminal(), os.environ)))

        together(self._groups.control, tell)


def _exported(profiler: Any, path: Path) -> bytes:
    """Return the trace as the profiler writes it: through a file, and without an error if the disk is full."""
    with storage_faults(path), tempfile.TemporaryDirectory(prefix="trident_") as folder:
        written = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(written))
        content = written.read_bytes() if written.is_file() else b""
    if not content.rstrip().endswith(b"}"):
        raise StorageError(
            f"the profiler's trace must fit into {tempfile.gettempdir()}, but it ends after {len(content)} bytes",
            ["free some space there, set TMPDIR to another folder, or use a smaller runtime.profile_steps"],
        )
    return content
