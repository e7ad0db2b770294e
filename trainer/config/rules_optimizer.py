"""Rules about the optimizer: every key has an effect, and every rate belongs to a part of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainer.config.keys import did_you_mean, joined
from trainer.config.models import make_model
from trainer.config.rules_common import Case, Rule
from trainer.config.schema import AdamImplementation, OffloadKind, OptimizerConfig, StepRule
from trainer.config.step_rates import MATRICES, parse_rate, tensors_rated
from trainer.spec.frozen import KINDS, frozen_tensors
from trainer.spec.model import Model


def keys_of_adamw(case: Case) -> Iterator[str]:
    """Keys that only AdamW reads are given to it alone, and only it can be stepped on a disk."""
    optimizer, name = case.config.optimizer, case.config.optimizer.kind.value
    if optimizer.kind is StepRule.adamw:
        return
    if optimizer.kind is StepRule.lion and optimizer.eps != OptimizerConfig.eps:
        yield f"optimizer.eps has no effect with optimizer.kind={name}; leave it out"
    if optimizer.implementation is AdamImplementation.deepspeed_cpu:
        yield (
            f"optimizer.implementation=deepspeed_cpu computes AdamW alone, but optimizer.kind is {name}; "
            "use optimizer.implementation=auto"
        )
    if case.config.zero.offload is OffloadKind.nvme and optimizer.kind is StepRule.lion:
        yield (
            f"zero.offload=nvme needs optimizer.kind=adamw, whose kernel steps state on a disk, but it is {name}; "
            "use zero.offload=cpu, or optimizer.kind=adamw"
        )


def rates(case: Case) -> Iterator[str]:
    """Every factor is a number for a part of the model that is trained, and has an effect."""
    entries = case.config.optimizer.rates
    if not entries:
        return
    model = make_model(case.config.model, 1)
    frozen, later = frozen_tensors(model, case.config.train.frozen), frozenset[str]()
    lines = []
    for entry in reversed(entries):
        word, factor = parse_rate(entry)
        named = tensors_rated(model, word)
        if not (0 < factor < math.inf):
            lines.append(f"optimizer.rates must hold PART:FACTOR with a factor above 0, but has {entry!r}")
        elif not named:
            lines.append(f"optimizer.rates must name parts of the model, but {word!r} {_no_part(model, word)}")
        elif named <= frozen:
            lines.append(f"optimizer.rates has no effect on {word!r}, which train.frozen or LoRA freezes; leave it out")
        elif named <= later:
            lines.append(f"optimizer.rates has no effect on {word!r}, which later parts name again; leave it out")
        later |= named
    yield from reversed(lines)


def _no_part(model: Model, word: str) -> str:
    if word == "head" and model.head.tied:
        return "is the embedding, model.tied_embeddings being true; use embedding"
    layers = dict.fromkeys(name.split(".")[0].replace("blocks", "layers") for name in model.tensors)
    known = [*layers, MATRICES, *(kind for kind in KINDS if tensors_rated(model, kind))]
    return f"names none{did_you_mean(word, known) or f'; use {joined(known)}'}"


def mup(case: Case) -> Iterator[str]:
    """Rates by width are for weights whose inputs grow with it."""
    if case.config.optimizer.mup_base_width is not None and case.config.model.lora.rank is not None:
        yield (
            "optimizer.mup_base_width cannot be used with model.lora.rank: the inputs of an adapter's second matrix do "
            "not grow with the width; use optimizer.rates, or leave it out"
        )


def muon(case: Case) -> Iterator[str]:
    """Muon has whole matrices to step, where the device can reach them."""
    optimizer, config = case.config.optimizer, case.config
    if optimizer.kind is not StepRule.muon:
        if optimizer.momentum != OptimizerConfig.momentum:
            yield f"optimizer.momentum has no effect with optimizer.kind={optimizer.kind.value}; leave it out"
        return
    if config.zero.offload is not OffloadKind.none:
        yield (
            f"optimizer.kind=muon multiplies whole matrices on the device and needs zero.offload=none, but it is "
            f"{config.zero.offload.value}; use zero.offload=none, or optimizer.kind=adamw"
        )
    if config.model.lora.rank is not None:
        yield (
            "optimizer.kind=muon cannot be used with model.lora.rank: an adapter is the product of two matrices, which "
            "no longer has equal singular values when each of them has; use optimizer.kind=adamw"
        )
    if optimizer.mup_base_width is not None:
        yield (
            "optimizer.mup_base_width scales rates of AdamW and Lion, but optimizer.kind is muon, whose updates have "
            "the same root mean square at every width; use optimizer.rates, or leave it out"
        )


def ema(case: Case) -> Iterator[str]:
    """An average of the weights is kept where a step can reach it, and where an evaluation asks for it."""
    config = case.config
    if config.optimizer.ema_decay is not None and config.zero.offload is OffloadKind.nvme:
        yield (
            "optimizer.ema_decay averages master weights in memory, but zero.offload=nvme keeps them on a disk; "
            "use zero.offload=cpu, or leave it out"
        )
    if config.eval.ema and config.optimizer.ema_decay is None:
        yield "eval.ema=true needs optimizer.ema_decay, the average that is evaluated, but it is null"
    if config.eval.ema and config.train.eval_every == 0:
        yield "eval.ema=true has no effect without evaluations; set train.eval_every, or leave it out"


RULES: tuple[Rule, ...] = (keys_of_adamw, rates, mup, muon, ema)
