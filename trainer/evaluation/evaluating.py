"""`trident evaluate` on each rank: documents and tasks, scored by the ranks that share the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.evaluation.asked import AskedData, Evaluation
from trainer.evaluation.documents import DocumentScores, read_documents, score_documents
from trainer.evaluation.evaluate_options import AS_THE_TASK_SAYS
from trainer.evaluation.reports import Scores, publish
from trainer.evaluation.task_names import find_tasks
from trainer.evaluation.team import TELL_S, Decode, Team
from trainer.evaluation.windows import Window
from trainer.inference.loading import load_stage
from trainer.inference.model_source import end_ids, exported_tokenizer_folder, find_tokenizer, hf_files
from trainer.log import aside
from trainer.progress import LOADING, PREPARING, current
from trainer.topology.agreement import together
from trainer.topology.groups import ParallelGroups

_KEY = "tasks"


@dataclass(frozen=True)
class _Tasks:
    """Tasks with their data, on rank 0."""

    manager: Any
    loaded: dict[str, Any]


def evaluate_model(asked: Evaluation, groups: ParallelGroups) -> None:
    """Score a model, and print, write and log the scores on rank 0. Collective over the layout.

    Raises:
        CheckpointError: weights are missing or do not fit the config.
        ConfigError: a task cannot be loaded or run.
        DataError: the data cannot be read, or there are none.
        NumericsError: a score is not finite.
        StorageError: a file cannot be written.
    """
    current().enter(PREPARING)
    is_leading = groups.is_reporting_rank
    # Before the weights are read: what a user can get wrong is told first.
    tasks = together(groups.control, lambda: _loaded(asked) if is_leading and asked.options.tasks else None)
    current().enter(LOADING)
    model = load_stage(asked.source, groups)
    team = Team(model, groups, asked.options.batch_size, lambda: _decoder(asked), tell=aside)
    team.led(lambda: publish(asked, _scores(asked, team, tasks)))


def _loaded(asked: Evaluation) -> _Tasks:
    from trainer.evaluation.task_loading import load_tasks

    options = asked.options
    manager = find_tasks(options.tasks, options.include_path, _KEY)
    return _Tasks(manager, load_tasks(options.tasks, manager, _KEY))


def _scores(asked: Evaluation, team: Team, tasks: _Tasks | None) -> Scores:
    documents = tuple(score_data(one, team, asked.options.limit) for one in asked.data)
    return Scores(asked.data, documents, None if tasks is None else _task_results(asked, team, tasks))


def score_data(data: AskedData, team: Team, limit: int = 0) -> DocumentScores:
    """Return the loss on documents. On the leading rank.

    Args:
        data: the documents.
        team: the ranks that compute.
        limit: largest number of documents; 0: all.

    Raises:
        DataError: they cannot be read, or there are none.
    """
    documents = read_documents(data.config, data.tokenizer, data.part_number)

    done, told_at = 0, time.monotonic()

    def score(windows: Sequence[Window]) -> list[float]:
        nonlocal done, told_at
        found = [one.log_probability for one in team.score(windows)]
        done += sum(len(one.targets) for one in windows)
        if time.monotonic() - told_at >= TELL_S:
            told_at = time.monotonic()
            aside(f"scored {done:,} tokens so far")
        return found

    shown = "" if data.part == "all" else f" (part={data.part})"
    aside(f"scoring documents of {data.name}{shown}")
    return score_documents(islice(documents, limit or None), team.seq_length, data.stride, score, f"{data.name}{shown}")


def _task_results(asked: Evaluation, team: Team, tasks: _Tasks) -> dict[str, Any]:
    from trainer.evaluation.harness import TaskOptions, TridentLM, asked_penalty, harness_tokenizer, run_tasks

    options, found = asked.options, asked.source.found
    folder = _tokenizer_folder(asked)
    ends = end_ids(find_tokenizer(found), hf_files(found))
    model = TridentLM(team, harness_tokenizer(folder), ends, asked_penalty(folder))
    wanted = TaskOptions(
        num_fewshot=None if options.num_fewshot == AS_THE_TASK_SAYS else options.num_fewshot,
        limit=options.limit or None,
        chat=options.chat,
        keeps_samples=bool(options.samples),
    )
    aside(f"running {len(tasks.loaded['tasks'])} task{'s' * (len(tasks.loaded['tasks']) != 1)}")
    return run_tasks(model, tasks.manager, tasks.loaded, wanted)


def _decoder(asked: Evaluation) -> Decode:
    from trainer.evaluation.harness import decoder_of

    return decoder_of(_tokenizer_folder(asked))


def _tokenizer_folder(asked: Evaluation) -> Path:
    folder = exported_tokenizer_folder(asked.source.found)
    assert folder is not None, "tasks are refused without a tokenizer"
    return folder
