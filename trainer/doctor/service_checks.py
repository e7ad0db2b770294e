"""wandb and the Hugging Face hub, where a run uses them. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator

from trainer.config.blend_sources import source_configs
from trainer.config.schema import DataSource, TokenizerKind, TridentConfig, WandbMode
from trainer.doctor.finding import Check, Finding, ok, skip, warn
from trainer.doctor.surroundings import Surroundings

_HUB = "https://huggingface.co"


def look_at_wandb(around: Surroundings) -> Iterator[Finding]:
    """Decide about wandb as a run would."""
    from trainer.metrics.wandb_mode import choose_mode, server_url

    name, asked = "wandb", around.config.logging.wandb
    found = choose_mode(asked, around.environ)
    if found.mode is WandbMode.online:
        yield ok(name, f"{server_url(around.environ)} answers, and there is an API key")
    elif asked in (WandbMode.disabled, WandbMode.offline):
        yield skip(name, found.reason)
    elif "API key" in found.reason and asked is WandbMode.auto:
        yield ok(name, f"runs are recorded offline, since {found.reason}")
    elif "API key" in found.reason:
        yield warn(name, f"runs would be recorded offline, since {found.reason}", "`wandb login`, or set WANDB_API_KEY")
    else:
        yield warn(
            name,
            f"runs would be recorded offline, since {found.reason}",
            "send them later with `wandb sync`, set HTTPS_PROXY or WANDB_BASE_URL, or set logging.wandb=offline",
        )


def hub_words(config: TridentConfig) -> list[str]:
    """Return the settings for which a run fetches something from the Hugging Face hub."""
    found = []
    for data in [one.data for one in source_configs(config).values()] or [config.data]:
        if data.source is DataSource.hub and not os.path.isdir(os.path.expanduser(data.hub_path or "")):
            found.append(f"data.hub_path={data.hub_path}")
    tokenizer = config.tokenizer
    if tokenizer.kind is TokenizerKind.pretrained and not os.path.exists(os.path.expanduser(tokenizer.path or "")):
        found.append(f"tokenizer.path={tokenizer.path}")
    return found


def look_at_hub(around: Surroundings) -> Iterator[Finding]:
    """Find a hub that a run needs and cannot reach."""
    from trainer.metrics.wandb_mode import is_reachable

    name, words = "Hugging Face hub", hub_words(around.config)
    url = around.environ.get("HF_ENDPOINT") or _HUB
    if not words:
        yield skip(name, "nothing is fetched from it")
    elif around.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield warn(
            name,
            f"HF_HUB_OFFLINE is set, so {' and '.join(words)} must be in the cache",
            "`unset HF_HUB_OFFLINE`, or prepare the data where there is a network: `trident data`",
        )
    elif is_reachable(url):
        yield ok(name, f"{url} answers")
    else:
        yield warn(
            name,
            f"{url} cannot be reached from here, and the run fetches {' and '.join(words)} from it",
            "prepare the data where there is a network (`trident data` with the same words), or set HTTPS_PROXY",
        )


CHECKS = (
    Check("wandb", "services", look_at_wandb),
    Check("Hugging Face hub", "services", look_at_hub),
)
"""Checks of this file."""
