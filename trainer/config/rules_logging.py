"""Rules about the output of a run: wandb, and texts at evaluations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict

from trainer.config.keys import joined
from trainer.config.rules_common import Case, Rule, neighbours, use
from trainer.config.rules_ranges import MINIMA
from trainer.config.schema import DataSource, EvalConfig, LoggingConfig, OffloadKind, TokenizerKind, WandbMode
from trainer.config.schema_data import ID_FILES
from trainer.config.wandb_variables import VARIABLES, who_asks_for

_NAMES = (
    ("wandb_project", "/\\#?%:"),
    ("wandb_entity", "/"),
    ("wandb_name", ""),
    ("wandb_group", ""),
    ("wandb_job_type", ""),
    ("wandb_run_id", ":;,#?/'\\"),
)
"""Key -> signs that wandb does not accept in its value (0.31: `wandb.Settings`)."""
_OF_TASKS = "tasks"
"""Beginning of the keys of `eval` that are about tasks."""
_LONGEST_PROJECT = 128
_LONGEST_TAG = 64


def wandb_settings(case: Case) -> Iterator[str]:
    """No setting of wandb is given while wandb is off."""
    logging, default = case.config.logging, LoggingConfig()
    # A person who turns wandb off for one run by WANDB_MODE or WANDB_DISABLED means all of its settings.
    if logging.wandb is not WandbMode.disabled or who_asks_for("disabled", os.environ):
        return
    for key in ("wandb_group", "wandb_artifacts", "stall_alert_s"):
        if getattr(logging, key) != getattr(default, key):
            yield f"logging.{key} has no effect with logging.wandb=disabled; leave it out, or use logging.wandb=auto"


def wandb_names(case: Case) -> Iterator[str]:
    """The names are such that wandb accepts them."""
    logging = case.config.logging
    if logging.wandb is WandbMode.disabled:
        return
    for key, taboo in _NAMES:
        name = getattr(logging, key)
        variable = next(variable for variable, sets in VARIABLES.items() if sets == f"logging.{key}")
        what = f"logging.{key} ({variable}) must"
        if name is None:
            continue
        if not name.strip() or name != name.strip():
            yield f"{what} be a name without blanks around it, but is {name!r}"
        elif found := [sign for sign in taboo if sign in name]:
            yield f"{what} have none of {' '.join(taboo)}, but has {joined(found, 'and')}: {name!r}"
        elif key == "wandb_project" and len(name) > _LONGEST_PROJECT:
            yield f"{what} have at most {_LONGEST_PROJECT} characters, but has {len(name)}"
    for tag in logging.wandb_tags:
        if not 1 <= len(tag) <= _LONGEST_TAG:
            yield f"logging.wandb_tags (WANDB_TAGS) must have 1 to {_LONGEST_TAG} characters each, but has {tag!r}"


def artifacts(case: Case) -> Iterator[str]:
    """Checkpoints that are to be uploaded are saved."""
    checkpoint = case.config.checkpoint
    if case.config.logging.wandb_artifacts and checkpoint.every == 0 and not checkpoint.save_final:
        yield (
            "logging.wandb_artifacts=true needs checkpoints, but none are saved; "
            "use checkpoint.save_final=true or checkpoint.every > 0"
        )


def _is_given(chosen: EvalConfig, of_tasks: bool) -> Iterator[str]:
    """Yield the keys of texts, or of tasks, that are not at their default, unless they are out of range anyway."""
    for key, default in asdict(EvalConfig()).items():
        value = getattr(chosen, key)
        in_range = not isinstance(value, int | float) or value >= MINIMA.get(f"eval.{key}", 0)
        if value != default and in_range and key.startswith(_OF_TASKS) == of_tasks:
            yield f"eval.{key}"


def _without_texts(texts: EvalConfig) -> Iterator[str]:
    for key in _is_given(texts, of_tasks=False):
        yield f"{key} has no effect with eval.samples=0; use for example eval.samples=2, or leave it out"


def samples(case: Case) -> Iterator[str]:
    """Texts are written when there is an evaluation, a tokenizer and room for them."""
    config, texts = case.config, case.config.eval
    if texts.samples < 1:
        yield from _without_texts(texts) if texts.samples == 0 else ()
        return
    if config.train.eval_every == 0:
        yield "eval.samples needs evaluations, but train.eval_every is 0; use for example train.eval_every=100"
    if not texts.prompts:
        yield "eval.prompts must hold a prompt, but is empty; use eval.prompts=[''] to begin a document"
    if texts.temperature == 0 and texts.samples > 1:
        yield f"eval.samples ({texts.samples}) must be 1 with eval.temperature=0: greedy texts are all the same"
    if config.model.seq_length <= texts.max_tokens:
        yield f"eval.max_tokens ({texts.max_tokens}) must be less than model.seq_length ({config.model.seq_length})"
    yield from _from_live_weights(case, "eval.samples", "eval.samples=0")


def tasks(case: Case) -> Iterator[str]:
    """Tasks are run when there is an evaluation, a tokenizer and weights that can be put together."""
    config, chosen = case.config, case.config.eval
    if not chosen.tasks:
        for key in _is_given(chosen, of_tasks=True):
            yield f"{key} has no effect without eval.tasks; name a task, or leave it out"
        return
    every, evaluates = chosen.tasks_every, config.train.eval_every
    if not all(one.strip() for one in chosen.tasks):
        yield "eval.tasks must hold names of tasks, but one of them is empty"
    if evaluates == 0:
        yield "eval.tasks needs evaluations, but train.eval_every is 0; use for example train.eval_every=100"
    elif every > 0 and evaluates > 0 and every % evaluates:
        yield (
            f"eval.tasks_every ({every}) must be a multiple of train.eval_every ({evaluates}); "
            f"{use(neighbours(every, evaluates), every)}"
        )
    yield from _from_live_weights(case, "eval.tasks", "leave eval.tasks out")


def _from_live_weights(case: Case, key: str, otherwise: str) -> Iterator[str]:
    """Texts are read and written by weights that are put together in memory, with the tokenizer of the data."""
    config = case.config
    if config.data.source is DataSource.synthetic:
        yield f"{key} has no effect with data.source=synthetic, which has no text; leave it out"
    if config.data.source in ID_FILES and config.tokenizer.kind is not TokenizerKind.pretrained:
        yield (
            f"{key} needs the tokenizer that made the ids of data.source={config.data.source.value}; use "
            "tokenizer=pretrained with its tokenizer.path"
        )
    if config.zero.offload is OffloadKind.nvme:
        yield f"{key} needs weights in memory, but zero.offload=nvme; use zero.offload=cpu, or {otherwise}"


RULES: tuple[Rule, ...] = (wandb_settings, wandb_names, artifacts, samples, tasks)
