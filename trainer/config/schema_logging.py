"""The part of the config schema that says what a run shows: metrics, texts, terminal. Part of `schema.py`.

A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class WandbMode(Enum):
    """`auto`: online if an API key is found, otherwise offline."""

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
    """Texts that the model writes at each evaluation, to read how far it has come."""

    samples: int = 0
    """Texts for each prompt. 0: none."""
    prompts: tuple[str, ...] = ("",)
    """What the texts go on from; an empty prompt begins a document."""
    max_tokens: int = 64
    """Tokens of a text at most, without its prompt."""
    temperature: float = 0.8
    """Divides the logits. 0: always the likeliest token (greedy)."""
    seed: int = 0
    """Decides what is drawn; the same at every evaluation, so that texts differ by what the model learned."""


@dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go. metrics.jsonl is always written."""

    console: ConsoleKind = ConsoleKind.auto
    """What the terminal shows; `--quiet` is short for logging.console=quiet."""
    wandb: WandbMode = WandbMode.auto
    """auto | online | offline | disabled. Of the environment: WANDB_MODE, WANDB_DISABLED."""
    wandb_project: str = "trident"
    """Project name in wandb. Of the environment: WANDB_PROJECT."""
    wandb_entity: str | None = None
    """Team or user in wandb; null: the account's default. Of the environment: WANDB_ENTITY."""
    wandb_name: str | None = None
    """What wandb calls the run; null: the name of the run's folder. Of the environment: WANDB_NAME."""
    wandb_group: str | None = None
    """Runs of one group are shown together in wandb. null: the run's name. Of the environment: WANDB_RUN_GROUP."""
    wandb_job_type: str = "train"
    """Kind of the run in wandb. Of the environment: WANDB_JOB_TYPE."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run in wandb, besides its layout. Of the environment: WANDB_TAGS, with commas."""
    wandb_notes: str | None = None
    """A longer description of the run in wandb. Of the environment: WANDB_NOTES."""
    wandb_run_id: str | None = None
    """Id of the wandb run; null: made up. A run that goes on keeps the one in its folder, unless the command line says
    another. Of the environment: WANDB_RUN_ID."""
    wandb_resume: WandbResume = WandbResume.allow
    """Whether a run that goes on continues its wandb run. Of the environment: WANDB_RESUME."""
    wandb_dir: str | None = None
    """Folder in which wandb makes its own folder `wandb`; null: the run's. Of the environment: WANDB_DIR."""
    wandb_artifacts: bool = False
    """Upload checkpoints to wandb: each one while online, the last one when the run ends offline."""
    stall_alert_s: int = 600
    """Seconds without a finished step after which wandb is told with an alert. 0: never."""
    system_metrics: bool = True
    """Add processor, memory, network and GPU use of every node to the rows, every few seconds."""
    csv: bool = False
    """Write metrics.csv too."""
    tensorboard: bool = False
    """Write files for TensorBoard too; needs the package tensorboard."""
