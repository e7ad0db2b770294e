"""Runs tasks at evaluations, as a hook of the loop.

As for the texts of an evaluation (`samples/`), the live weights go to the reporting rank's CPU the way they go into a
checkpoint, and a plain model in one piece answers there, whatever the layout. The other ranks wait, and hear now and
then that it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.config.schema import EvalConfig
from trainer.data.tokenizer import load_tokenizer
from trainer.engine.face import Engine
from trainer.errors import ConfigError, NumericsError, first_line
from trainer.evaluation.leading import Lead
from trainer.evaluation.task_names import find_tasks
from trainer.evaluation.task_results import numbers_of
from trainer.evaluation.team import Team
from trainer.inference.model_source import end_ids, exported_tokenizer
from trainer.inference.stage import stage_model
from trainer.log import say, warn
from trainer.loop.events import Hook
from trainer.loop.session import Session
from trainer.samples.weights import WeightGatherer
from trainer.tensor_parallel.init import fill
from trainer.tensor_parallel.shard import with_padding
from trainer.topology.agreement import together
from trainer.topology.groups import single_process_groups

KEY = "eval.tasks"
_PULSE_S = 5.0
"""Seconds between signs of life to the ranks that wait."""


class TasksHook(Hook):
    """Lives on every rank; the reporting rank runs the tasks.

    Args:
        session: the rank's session; scores are noted in its measures.
        engine: this rank's engine.
        tokenizer: the run's tokenizer; read by the reporting rank.
        kept: the run's folder of small files of the Hugging Face model that it began with, if it did.
    """

    def __init__(self, session: Session, engine: Engine, tokenizer: Path, kept: Path) -> None:
        self._session, self._tokenizer, self._kept = session, tokenizer, kept
        self._plan, groups = session.plan, session.groups
        self._wanted: EvalConfig = session.plan.evaluation
        self._weights = WeightGatherer(engine, session.plan.zero_stage == 3, groups)
        self._lead = Lead(groups.control, lambda _: session.progress.beat())
        self._pulse_at = 0.0
        self._tasks: tuple[Any, Mapping[str, Any]] | None = None

    def on_start(self, first_step: int) -> None:
        """Load the tasks, so that a run does not end after its first steps for want of them. Collective."""
        groups = self._session.groups
        self._tasks = together(groups.control, lambda: self._loaded() if groups.is_reporting_rank else None)

    def on_evaluate(self, step: int) -> None:
        """Run the tasks, if it is their turn. Collective over the world then."""
        every = self._wanted.tasks_every
        if every > 0 and step % every:
            return
        weights = self._weights.gather()
        self._lead.run(lambda: self._score(step, weights or {}))

    def _loaded(self) -> tuple[Any, Mapping[str, Any]]:
        from trainer.evaluation.task_loading import load_tasks

        folder = self._wanted.tasks_include_path
        manager = find_tasks(self._wanted.tasks, () if folder is None else (folder,), KEY)
        return manager, load_tasks(self._wanted.tasks, manager, KEY)

    def _score(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        from trainer.evaluation.harness import TaskOptions, TridentLM, asked_penalty, harness_tokenizer, run_tasks

        assert self._tasks is not None, "on_start loads them"
        # Built anew, which takes no memory; it is filled with the gathered tensors themselves, and goes with them.
        model = stage_model(self._plan.model, self._plan.execution)
        fill(model, lambda spec, _: with_padding(weights[spec.name], spec))
        own = load_tokenizer(self._tokenizer)
        folder = exported_tokenizer(self._tokenizer, self._kept)
        # The tokenizer is asked for by the harness; a text is decoded by the same.
        tokenizer = harness_tokenizer(folder)
        team = Team(
            model,
            single_process_groups(),
            self._wanted.tasks_batch_size,
            lambda: lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)),
            self._pulse,
        )
        ends = end_ids(own, None if folder == self._tokenizer else folder)
        asked = TaskOptions(self._wanted.tasks_num_fewshot, self._wanted.tasks_limit, in_run=True)
        try:
            results = run_tasks(TridentLM(team, tokenizer, ends, asked_penalty(folder)), *self._tasks, asked)
        except (ConfigError, NumericsError) as error:
            # What somebody wrote into a task must not cost the steps of a run.
            warn(f"step {step} has no scores of tasks: {first_line(error)}")
            return
        found = numbers_of(results)
        for name, value in found.items():
            self._session.measures.note(f"eval/{name}", value)
        say(f"tasks   step {step}: {', '.join(f'{name} {value:.4f}' for name, value in found.items())}")

    def _pulse(self) -> None:
        now = time.monotonic()
        if now - self._pulse_at >= _PULSE_S:
            self._pulse_at = now
            self._lead.ask(None)
