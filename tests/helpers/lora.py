"""Tiny models of transformers with LoRA, by us and by PEFT, on the same batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tests.helpers.hf_families import LENGTH, TINY, VOCABULARY, hf_model
from tests.helpers.parity import Case, config_of
from trainer.checkpoint.peft_folder import PeftLayer, peft_layers
from trainer.config.hf_export import express
from trainer.config.hf_folder import read_hf_config, read_hf_model
from trainer.config.lora import without_lora
from trainer.config.models import is_gated, make_execution, make_model
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    CheckpointConfig,
    DataConfig,
    DataSource,
    LoraConfig,
    LoraTarget,
    OptimizerConfig,
)
from trainer.tensor_parallel.init import Drawn, initial_of
from trainer.tensor_parallel.shard import ShardSpec, shard_spec_of
from trainer.topology.groups import SingleGroup

STEPS, BATCH, LR = 3, 4, 1e-2
OPTIMIZER = OptimizerConfig(eps=1e-3, grad_clip=0.2)
"""Clips. Gradients of these adapters are about 5e-3 an element; Adam makes as much of the rounding of smaller ones,
and B, which begins at zero, is made of such steps alone: the epsilon bounds that."""


@dataclass(frozen=True)
class Adapted:
    """A tiny model, our targets, and the layers that PEFT calls the same."""

    family: str
    targets: tuple[LoraTarget, ...]
    modules: tuple[str, ...]
    lora: LoraConfig

    @property
    def config(self) -> LoraConfig:
        return replace(self.lora, targets=self.targets)


ADAPTED = {
    one.family: one
    for one in (
        # One layer for queries, keys and values, whose weight has inputs as rows, and biases.
        Adapted(
            "gpt2",
            (LoraTarget.qkv, LoraTarget.output, LoraTarget.up, LoraTarget.down),
            ("c_attn", "c_proj", "c_fc"),
            LoraConfig(rank=3, alpha=7.0),
        ),
        Adapted(
            "llama",
            (LoraTarget.all,),
            ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            LoraConfig(rank=2, rank_stabilised=True, alpha=3.0),
        ),
    )
}


@functools.cache
def adapted_everywhere(folder: Path) -> Adapted:
    """Return adapters of every linear layer of a tiny model: one for each of theirs, however ours are divided."""
    lora = LoraConfig(rank=2, alpha=4.0, targets=(LoraTarget.all,))
    counts = {layer.count for layer in _layers_at_first(folder, lora)}
    targets = [LoraTarget.qkv] if 3 in counts else [LoraTarget.q, LoraTarget.k, LoraTarget.v]
    if 2 in counts:
        targets.append(LoraTarget.gate_up)
    else:
        gated = is_gated(read_hf_model(folder, "SRC").model)
        targets += [LoraTarget.gate, LoraTarget.up] if gated else [LoraTarget.up]
    lora = replace(lora, targets=(*targets, LoraTarget.output, LoraTarget.down))
    found = sorted({layer.kind for layer in _layers_at_first(folder, lora)})
    return Adapted(folder.name, lora.targets, tuple(found), lora)


def _layers_at_first(folder: Path, lora: LoraConfig) -> list[PeftLayer]:
    plan = plan_for(folder, lora, Case(zero=0), 1)
    return list(layers_of(plan, drawn(plan)))


def save_base(family: str, folder: Path) -> Path:
    """Write a tiny model as transformers does."""
    hf_model(TINY[family]).save_pretrained(folder)
    return folder


def plan_for(folder: Path, lora: LoraConfig, case: Case, world_size: int) -> RunPlan:
    """Return the plan of a LoRA run on a folder's model."""
    config = config_of(case)
    model = replace(
        read_hf_model(folder, "SRC").model, vocab_pad_multiple=5, lora=lora, recompute=config.model.recompute
    )
    config = replace(
        config,
        model=model,
        optimizer=OPTIMIZER,
        data=DataConfig(source=DataSource.synthetic),
        batch=replace(config.batch, global_batch_size=BATCH, micro_batch_size=1),
        checkpoint=CheckpointConfig(init_from=str(folder)),
    )
    return make_plan(config, VOCABULARY, world_size)


def tokens_of(step: int) -> torch.Tensor:
    """Return the global batch of a step."""
    return torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(100 + step))


class Read:
    """Whole tensors by a function of kind and name."""

    def __init__(self, read: Callable[[str], torch.Tensor]) -> None:
        self._read = read

    def names(self) -> list[str]:
        return []

    def read(self, kind: str, name: str) -> torch.Tensor:
        return self._read(name)

    def read_shard(self, kind: str, spec: ShardSpec, rank: int, size: int) -> torch.Tensor:
        raise NotImplementedError


def layers_of(plan: RunPlan, read: Callable[[str], torch.Tensor]) -> Iterator[PeftLayer]:
    """Yield PEFT's layers, whose values `read` has under our names."""
    folder = plan.config.checkpoint.init_from
    assert folder is not None
    said = express(without_lora(plan.config.model), VOCABULARY, read_hf_config(Path(folder), "SRC"))
    return peft_layers(Read(read), said, plan.model)


def drawn(plan: RunPlan) -> Callable[[str], torch.Tensor]:
    """Return what reads the adapters that a run begins with."""
    source = Drawn(plan.seed, SingleGroup())
    model, execution = make_model(plan.config.model, VOCABULARY), make_execution(plan.config.model, 1)

    def read(name: str) -> torch.Tensor:
        tensor = model.tensors[name]
        return source(shard_spec_of(tensor, 1, 1), initial_of(tensor, execution))

    return read


def peft_model(folder: Path, one: Adapted, layers: Iterator[PeftLayer]) -> Any:
    """Return PEFT's model with these adapters."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    lora = one.config
    assert lora.rank is not None
    assert lora.alpha is not None
    wanted = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha),
        target_modules=list(one.modules),
        use_rslora=lora.rank_stabilised,
        task_type="CAUSAL_LM",
        fan_in_fan_out=type(base.get_submodule(next(base_layers(base, one.modules)))).__name__ == "Conv1D",
    )
    model = peft.get_peft_model(base, wanted)
    held = dict(model.named_parameters())
    with torch.no_grad():
        for layer in layers:
            held.pop(parameter(layer, "A")).copy_(layer.a)
            held.pop(parameter(layer, "B")).copy_(layer.b)
    assert not [name for name in held if "lora_" in name], "every adapter of PEFT's has one of ours"
    return model


def base_layers(base: torch.nn.Module, kinds: tuple[str, ...]) -> Iterator[str]:
    """Yield the names of the layers of these kinds."""
    return (name for name, _ in base.named_modules() if name.endswith(kinds))


def parameter(layer: PeftLayer, part: str) -> str:
    """Return the name of one of its two matrices in PEFT's model."""
    return f"base_model.model.{layer.name}.lora_{part}.default.weight"


@dataclass(frozen=True)
class Expected:
    """What PEFT's steps gave: losses, and kind -> name -> values."""

    losses: list[float]
    values: dict[str, dict[str, torch.Tensor]]


def trained_by_peft(folder: Path, one: Adapted) -> Expected:
    """Train PEFT's adapters with plain AdamW on the same batches."""
    plan = plan_for(folder, one.config, Case(zero=0), 1)
    model = peft_model(folder, one, layers_of(plan, drawn(plan)))
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    adam = torch.optim.AdamW(
        trained.values(), lr=LR, betas=betas, eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay
    )
    losses = []
    for step in range(1, STEPS + 1):
        tokens = tokens_of(step)
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained.values(), OPTIMIZER.grad_clip)
        adam.step()
        losses.append(loss.item())
    values = {"weight": {name: one.detach() for name, one in trained.items()}}
    for kind in ("exp_avg", "exp_avg_sq"):
        values[kind] = {name: adam.state[one][kind] for name, one in trained.items()}
    return Expected(losses, values)
