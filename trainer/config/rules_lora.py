"""Rules about LoRA: adapters have a base, every target is there once, and every key has an effect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from trainer.config.keys import joined, shown_value
from trainer.config.lora import FUSED, adapted_linears
from trainer.config.models import is_gated, make_model
from trainer.config.rules_common import Case, Rule
from trainer.config.schema import LoraConfig, LoraTarget
from trainer.spec.frozen import tensors_named


def only_with_a_rank(case: Case) -> Iterator[str]:
    """The other keys say nothing where there are no adapters."""
    lora, plain = case.config.model.lora, LoraConfig()
    if lora.rank is not None:
        return
    for field in fields(LoraConfig):
        value = getattr(lora, field.name)
        if value != getattr(plain, field.name):
            yield (
                f"model.lora.{field.name} ({shown_value(value)}) has no effect without model.lora.rank; set a rank, "
                "or leave it out"
            )
    if case.config.checkpoint.with_base:
        yield "checkpoint.with_base=true has no effect without model.lora.rank; leave it out"


def targets(case: Case) -> Iterator[str]:
    """Every target is in the model, and none is named twice."""
    lora, gated = case.config.model.lora, is_gated(case.config.model)
    if lora.rank is None:
        return
    if not lora.targets:
        yield "model.lora.targets must name at least one linear layer, but is empty; use all"
    seen: set[LoraTarget] = set()
    for target in lora.targets:
        if target in (LoraTarget.gate, LoraTarget.gate_up) and not gated:
            yield f"model.lora.targets must be layers of the model, but its MLP has no gate for {target.value}; use up"
        if target in seen or (LoraTarget.all in lora.targets and target is not LoraTarget.all):
            again = "there twice" if target in seen else "in all, too"
            yield f"model.lora.targets must name a layer once, but {target.value} is {again}; leave one of them out"
        elif seen & set(FUSED.get(target, ())) or any(target in FUSED.get(other, ()) for other in seen):
            yield (
                f"model.lora.targets must name a layer once, but has {target.value} beside "
                f"{joined(other.value for other in lora.targets if other is not target)}; leave one of them out"
            )
        seen.add(target)


def rank(case: Case) -> Iterator[str]:
    """A product of narrow matrices is narrower than what it is added to."""
    lora = case.config.model.lora
    if lora.rank is None or lora.rank < 1 or list(targets(case)):
        return
    narrowest: dict[str, int] = {}
    # The width of every layer follows from keys that are valid by now.
    model = make_model(replace(case.config.model, lora=replace(lora, rank=1)), 1)
    for linear in adapted_linears(model.blocks[0]).values():
        for adapter in linear.adapters:
            narrowest[adapter.name] = min(linear.in_features, linear.adapted(adapter).out_features)
    name = min(narrowest, key=lambda name: narrowest[name])
    if lora.rank > narrowest[name]:
        yield (
            f"model.lora.rank must be at most {narrowest[name]}, the smaller side of the matrix {name}, but is "
            f"{lora.rank}"
        )


def base(case: Case) -> Iterator[str]:
    """Adapters are added to weights that somebody has trained."""
    checkpoint = case.config.checkpoint
    if case.config.model.lora.rank is not None and checkpoint.init_from is None and checkpoint.resume == "auto":
        yield (
            "model.lora.rank needs checkpoint.init_from, the model whose weights the adapters are added to, but that "
            "is null"
        )


def frozen(case: Case) -> Iterator[str]:
    """The model's own weights are frozen anyway."""
    if case.config.model.lora.rank is None:
        return
    model = make_model(case.config.model, 1)
    for word in case.config.train.frozen:
        named = tensors_named(model, word)
        if named and named <= model.base_tensors.keys():
            yield (
                f"train.frozen has no effect on {word!r} with model.lora.rank, which leaves the model's own weights as "
                "they are; leave it out"
            )


RULES: tuple[Rule, ...] = (only_with_a_rank, targets, rank, base, frozen)
