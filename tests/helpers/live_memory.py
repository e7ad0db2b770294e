"""Train a tiny model in a layout on this machine, and count the bytes of its tensors by what they are for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    ActivationKind,
    BatchConfig,
    DeviceKind,
    Dtype,
    LayoutConfig,
    ModelConfig,
    NormKind,
    OffloadKind,
    OptimizerConfig,
    PipelineSchedule,
    PositionKind,
    PrecisionConfig,
    RecomputeKind,
    RuntimeConfig,
    StepRule,
    TridentConfig,
    ZeroConfig,
)

VOCABULARY = 250
"""No multiple of anything, so that it is padded."""


@dataclass(frozen=True)
class LiveCase:
    """One layout of one small model."""

    pp: int = 1
    tp: int = 1
    dp: int = 1
    sequence_parallel: bool = False
    zero: int = 0
    offload: str = "none"
    dtype: str = "fp32"
    recompute: str = "none"
    schedule: str = "1f1b"
    micro_batches: int = 2
    llama: bool = False
    tied: bool = True
    fused_loss: bool = True
    dropout: float = 0.0
    layers: int = 4
    optimizer: str = "adamw"
    ema: bool = False

    @property
    def world_size(self) -> int:
        return self.pp * self.tp * self.dp

    @property
    def name(self) -> str:
        plain = LiveCase()
        changed = [f"{key}={value}" for key, value in vars(self).items() if value != getattr(plain, key)]
        return " ".join(changed) or "one rank"


@dataclass(frozen=True)
class Counted:
    """Bytes of one rank."""

    weights: int
    gradients: int
    """When the last backward pass is over."""
    master: int
    moments: int
    buffers: int
    """Other tensors of DeepSpeed's at that time."""
    activations: int
    """Most bytes that forward passes had kept for their backward passes at once."""
    others: int
    """Bytes of tensors of no known owner when the last backward pass is over."""


def plan_of(case: LiveCase) -> RunPlan:
    """Return the plan of a case."""
    model = ModelConfig(
        hidden_size=64,
        num_layers=case.layers,
        num_attention_heads=4,
        ffn_hidden_size=160,
        seq_length=64,
        vocab_size=VOCABULARY,
        vocab_pad_multiple=8,
        tied_embeddings=case.tied,
        recompute=RecomputeKind(case.recompute),
        fused_loss=case.fused_loss,
        dropout=case.dropout,
        attention_dropout=case.dropout,
        norm=NormKind.rmsnorm if case.llama else NormKind.layernorm,
        activation=ActivationKind.swiglu if case.llama else ActivationKind.gelu,
        position=PositionKind.rope if case.llama else PositionKind.learned,
        num_key_value_heads=2 if case.llama else None,
        bias=not case.llama,
    )
    layout = LayoutConfig(
        pipeline_parallel_size=case.pp,
        tensor_parallel_size=case.tp,
        data_parallel_size=case.dp,
        sequence_parallel=case.sequence_parallel,
        pipeline_schedule=PipelineSchedule(case.schedule),
    )
    config = TridentConfig(
        model=model,
        layout=layout,
        zero=ZeroConfig(stage=case.zero, offload=OffloadKind(case.offload), reduce_bucket_size=20_000),
        precision=PrecisionConfig(dtype=Dtype(case.dtype), initial_scale_power=8),
        batch=BatchConfig(global_batch_size=2 * case.micro_batches * case.dp, micro_batch_size=2),
        runtime=RuntimeConfig(device=DeviceKind.cpu, threads_per_rank=1),
        optimizer=OptimizerConfig(kind=StepRule(case.optimizer), ema_decay=0.9 if case.ema else None),
    )
    return make_plan(config, VOCABULARY, case.world_size)


def count(rank: int, world_size: int, cases: tuple[LiveCase, ...]) -> list[Counted]:
    """Return what this rank holds in the third step of each case, in which every tensor exists."""
    return [_counted(case) for case in cases]


def _counted(case: LiveCase) -> Counted:
    from trainer.engine.build import build_engine
    from trainer.engine.world import start_world

    plan = plan_of(case)
    groups = start_world(plan.mesh, plan.config.runtime, torch.device("cpu"))
    gc.collect()
    before = {storage.data_ptr() for storage in _live()}
    face: Any = build_engine(plan, groups)
    engine = face._engine
    held: dict[str, int] = {}

    def look(step: Any) -> Any:
        def looked(*args: Any, **kwargs: Any) -> Any:
            gc.collect()
            found = owned(engine)
            known: dict[int, int] = {}
            for owner, tensors in found:
                for tensor in tensors:
                    storage = tensor.untyped_storage()
                    if storage.nbytes() and storage.data_ptr() not in known:
                        known[storage.data_ptr()] = storage.nbytes()
                        held[owner] = held.get(owner, 0) + storage.nbytes()
            others = {s.data_ptr(): s.nbytes() for s in _live() if s.data_ptr() not in known}
            held["others"] = sum(size for key, size in others.items() if key not in before)
            return step(*args, **kwargs)

        return looked

    for step in (1, 2, 3):
        if step == 3:
            engine._take_model_step = look(engine._take_model_step)
        with kept(engine) as activations:
            face.train_step(_batches(plan, groups.mesh.coordinate(groups.rank).dp_rank, step), 1e-3)
    names = ("weights", "gradients", "master", "moments", "buffers", "others")
    result = Counted(activations=activations.most, **{name: held.get(name, 0) for name in names})
    gc.collect()
    return result


def _batches(plan: RunPlan, dp_rank: int, step: int) -> list[Any]:
    from trainer.micro_batch import MicroBatch, Place

    made = torch.Generator().manual_seed(1000 * step + dp_rank)
    shape = (plan.micro_batch_size, plan.execution.seq_length + 1)
    found = []
    for number in range(plan.num_micro_batches):
        tokens = torch.randint(0, VOCABULARY, shape, generator=made)
        ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        found.append(MicroBatch.of(ids, labels, place=Place(1, step, number)))
    return found


def _live() -> list[torch.UntypedStorage]:
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors += [tensor.data for tensor in tensors if isinstance(tensor, torch.nn.Parameter)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    return [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]


def owned(engine: Any) -> Iterator[tuple[str, Iterable[torch.Tensor]]]:
    """Yield what DeepSpeed's engine holds, the first owner of a tensor first."""
    optimizer, inner = engine.optimizer, engine.basic_optimizer
    parameters = list(engine.module.parameters())
    yield "weights", [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    yield "weights", [p.data for p in parameters]
    stepped = [p for group in inner.param_groups for p in group["params"]]
    stepped += _named(optimizer, "fp32_partitioned_groups_flat")
    yield "buffers", list(_named(optimizer, "ipg", "temp_grad", "norm"))
    yield "gradients", [p.grad for p in [*parameters, *stepped] if p.grad is not None]
    yield "gradients", list(_named(optimizer, "grad"))
    # What is left of other ranks' gradients lies in buckets.
    yield "buffers", [p.grad_accum for p in parameters if getattr(p, "grad_accum", None) is not None]
    yield "moments", list(engine.sharding.averages.values())
    yield "moments", [t for state in inner.state.values() for key, t in state.items() if key.startswith("exp_avg")]
    yield "master", [p.data for p in stepped]
    yield "buffers", list(_named(optimizer, ""))


def _named(thing: Any, *words: str) -> Iterator[torch.Tensor]:
    """Yield the tensors of attributes whose names have one of the words in them."""
    for name, value in vars(thing).items():
        if any(word in name.lower() for word in words):
            yield from _tensors(value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.device.type != "meta":
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
        if hasattr(value, "flat_partition"):
            yield value.flat_partition
    elif type(value).__name__.startswith("IPGBucket"):
        yield from _tensors(vars(value))


class _Kept:
    """Bytes of the distinct tensors that autograd keeps now, parameters aside, and the most there ever were."""

    def __init__(self, engine: Any) -> None:
        self._parameters = list(engine.module.parameters())
        self._uses: dict[int, int] = {}
        self._bytes = self.most = 0

    def keep(self, tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        # Again each time: ZeRO 3 puts them together for each use.
        weights = {p.data.untyped_storage().data_ptr() for p in self._parameters}
        holder = _Holder(tensor)
        if key not in weights and size:
            if not self._uses.get(key):
                self._bytes += size
                self.most = max(self.most, self._bytes)
            self._uses[key] = self._uses.get(key, 0) + 1
            weakref.finalize(holder, self._forget, key, size).atexit = False
        return holder

    def _forget(self, key: int, size: int) -> None:
        self._uses[key] -= 1
        if not self._uses[key]:
            self._bytes -= size


class _Holder:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@contextmanager
def kept(engine: Any) -> Iterator[_Kept]:
    """Count what forward passes keep for their backward passes."""
    counting = _Kept(engine)
    with torch.autograd.graph.saved_tensors_hooks(counting.keep, lambda holder: holder.tensor):
        yield counting
