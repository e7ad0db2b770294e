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
    """auto | online | offline | disabled."""
    wandb_project: str = "trident"
    """Project name in wandb."""
    wandb_entity: str | None = None
    """Team or user in wandb; null: the account's default."""
    wandb_group: str | None = None
    """Runs of one group are shown together in wandb. null: the run's name."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run in wandb."""
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
