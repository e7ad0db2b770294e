"""The part of the config schema that says what a run shows: metrics, texts, terminal. Part of `schema.py`.

A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class WandbMode(Enum):
    """Mode of wandb. `auto`: online if an API key is found, otherwise offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class WandbResume(Enum):
    """`allow`: a run that goes on continues its wandb run. `must`: wandb must know it. `never`: a new one."""

    allow = "allow"
    must = "must"
    never = "never"


class ConsoleKind(Enum):
    """`auto`: a live view on a terminal, plain lines elsewhere. `plain`: lines. `quiet`: errors and the last line."""

    auto = "auto"
    plain = "plain"
    quiet = "quiet"


@dataclass(frozen=True)
class EvalConfig:
    """Texts that the model writes at each evaluation, so that a person can read how far it has come, and tasks."""

    samples: int = 0
    """Number of texts for each prompt. 0: none."""
    prompts: tuple[str, ...] = ("",)
    """Beginnings that the texts continue; an empty prompt begins a document."""
    max_tokens: int = 64
    """Largest number of tokens in a text, without its prompt."""
    temperature: float = 0.8
    """Divides the logits before a token is drawn. 0: always the likeliest token (greedy)."""
    seed: int = 0
    """Seed of the draws; the same at every evaluation, so that texts differ only by what the model has learned."""
    ema: bool = False
    """Evaluate the average of the weights (optimizer.ema_decay) instead of the weights: loss, texts and tasks."""
    tasks: tuple[str, ...] = ()
    """Tasks of the Language Model Evaluation Harness that are run at evaluations: names, or .yaml files. Needs lm-eval.
    Scores are in the rows as eval/<task>/<metric>."""
    tasks_every: int = 0
    """Number of steps between runs of the tasks, a multiple of train.eval_every. 0: at each evaluation."""
    tasks_include_path: str | None = None
    """Folder with further tasks of your own."""
    tasks_num_fewshot: int | None = None
    """Number of solved examples before each question. null: as each task says."""
    tasks_limit: int | None = None
    """Largest number of questions of each task. null: all."""
    tasks_batch_size: int = 8
    """Largest number of sequences that are computed at once."""


@dataclass(frozen=True)
class LoggingConfig:
    """Places where metrics go. metrics.jsonl is always written."""

    console: ConsoleKind = ConsoleKind.auto
    """auto | plain | quiet. `--quiet` is short for logging.console=quiet."""
    wandb: WandbMode = WandbMode.auto
    """auto | online | offline | disabled. Environment variables: WANDB_MODE, WANDB_DISABLED."""
    wandb_project: str = "trident"
    """Project name in wandb. Environment variable: WANDB_PROJECT."""
    wandb_entity: str | None = None
    """Team or user in wandb; null: the account's default. Environment variable: WANDB_ENTITY."""
    wandb_name: str | None = None
    """Name of the run in wandb; null: the name of the run's folder. Environment variable: WANDB_NAME."""
    wandb_group: str | None = None
    """Group of the run in wandb, which shows the runs of a group together. null: the run's name. Environment variable:
    WANDB_RUN_GROUP."""
    wandb_job_type: str = "train"
    """Kind of the run in wandb. Environment variable: WANDB_JOB_TYPE."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run in wandb, besides its layout. Environment variable: WANDB_TAGS, with commas."""
    wandb_notes: str | None = None
    """Longer description of the run in wandb. Environment variable: WANDB_NOTES."""
    wandb_run_id: str | None = None
    """Id of the wandb run; null: a new one is made. A run that goes on keeps the id in its folder, unless the command
    line gives another. Environment variable: WANDB_RUN_ID."""
    wandb_resume: WandbResume = WandbResume.allow
    """allow | must | never. Environment variable: WANDB_RESUME."""
    wandb_dir: str | None = None
    """Folder in which wandb makes its own folder `wandb`; null: the run's. Environment variable: WANDB_DIR."""
    wandb_artifacts: bool = False
    """Upload checkpoints to wandb: each one while online, the last one when the run ends offline."""
    stall_alert_s: int = 600
    """Seconds without a finished step after which an alert is sent to wandb. 0: never."""
    plan_alarm_factor: float | None = None
    """Multiple of the predicted time of a step, and of the predicted memory, from which on a warning is given. 0: none.
    null: 1.3 for the time and 1.1 (and a GiB) for the memory, or more where the prediction is less sure of itself, and
    none where it may be off by half or more."""
    system_metrics: bool = True
    """Add processor, memory, network and GPU use of every node to the rows, every few seconds."""
    csv: bool = False
    """Write metrics.csv too."""
    timeline_step: int | None = None
    """Step whose timeline is written: what each pipeline stage did with each micro-batch, and when (timeline.json).
    Counted as in metrics.jsonl. null: the fifth step of each start, or the last one of a start that has fewer. 0: none.
    On GPUs that one step waits for the device at its beginning and end (docs/profiling.md)."""
    tensorboard: bool = False
    """Write files for TensorBoard too; needs the package tensorboard."""
    report: bool = False
    """Write report.html into the run's folder when the run ends: one page with everything that it left, as `trident
    report` makes it (docs/report.md)."""
