"""Trident against its peers on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.arena import Contender
from benchmarks.contest import held
from benchmarks.settings import Settings


def single(settings: Settings) -> Path:
    """Trident against its peers, one process each, ratios to the plain loop."""
    case, threads = settings.case, settings.threads

    def one(name: str, kind: str, **options: Any) -> Contender:
        return Contender(name, kind, case, options, threads=threads)

    contenders = [
        one("plain loop", "plain") if case.family == "gpt2" else one("transformers Trainer", "transformers_trainer"),
        one("trident", "trident"),
        *([one("transformers Trainer", "transformers_trainer")] if case.family == "gpt2" else []),
        one("plain loop, fused AdamW + compile", "plain", compile=True, fused=True),
        one("transformers Trainer + DeepSpeed", "transformers_trainer", deepspeed=True),
        one("Lightning", "lightning_trainer"),
        one("litgpt", "litgpt_gpt"),
        one("torchtitan", "torchtitan_llama"),
        one("megatron-core", "megatron_core"),
    ]
    return held("single", settings, contenders, contenders[0].name)
