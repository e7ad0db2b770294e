"""Train a tiny model in a layout, put its tensors together, and hold them against the oracle.

Tolerances, fp32: losses, norms and weights to 1e-5, gradients of step 1 to 1e-6, each relative to the tensor's L2 norm.
fp32 has 6e-8 a rounding; a sum over a few hundred terms in another order differs by a few 1e-7, and Adam's division
by the root of a small second moment magnifies that, which `eps=1e-4` bounds. A gradient counted twice, left out, or
scaled by 1/m is wrong by 1e-1. bf16 has 4e-3 a rounding and fp16 5e-4; their tolerances are some times that, still far
from what a wrong sum would show (a tied gradient that is not summed moves the norm by 8e-2). Weights that started at
zero are, after five steps, as uncertain as the few gradients that made them.

Behind a norm of queries and keys, gradients are small differences of larger terms: the oracle itself differs from the
same oracle in fp64 by up to 3.6e-6 there, and by 5e-7 without such a norm. Their tolerance is 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import torch

from tests.helpers.batches import ends_of, micro_batches_of, of_rows
from tests.helpers.options import OPTION_SETS
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    ActivationKind,
    BatchConfig,
    CpuMatmul,
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
    TrainConfig,
    TridentConfig,
    ZeroConfig,
)
from trainer.engine.face import Fragment
from trainer.micro_batch import IGNORED
from trainer.oracle.reference import ReferenceRun, counted, loss_sum, train_reference
from trainer.oracle.reference_optimizers import Factor, constant_factor, rule_of
from trainer.tensor_parallel.shard import ShardSpec, unshard, without_padding

STEPS = 5
VOCABULARY = 61
"""Odd, so that every tensor-parallel size pads it differently."""
OPTIMIZER = OptimizerConfig(lr=1e-3, eps=1e-4, grad_clip=0.7)
"""Clips: the norm of these models is about 1."""


@dataclass(frozen=True)
class Chosen:
    """An optimizer, and what the oracle has to know of it."""

    config: OptimizerConfig
    factor: Factor = constant_factor
    """Factors of learning rates."""
    decay: Factor = constant_factor
    """Factors of weight decay."""

    def first_share(self, name: str) -> float:
        """Return the share of a gradient in the first moment after step 1."""
        rule = rule_of(self.config.kind.value, name)
        return 1 - {"adamw": self.config.beta1, "lion": self.config.beta2, "muon": self.config.momentum}[rule]


def _factor(name: str) -> float:
    """Return the factors of `rates` below; hidden_size is 64, so that muP halves those of matrices and head."""
    if name == "embedding.weight":
        return 0.3
    if "norm" in name.split(".")[-2]:
        return 3.0
    if name.startswith("blocks.0.mlp."):
        return 2.0 * (0.5 if name.endswith(".weight") else 1.0)
    return 0.5 if name.endswith(".weight") and name != "position.weight" else 1.0


def _decay(name: str) -> float:
    """Return the factors of weight decay that belong to those of muP in `_factor`."""
    return 2.0 if name.endswith(".weight") and name not in ("embedding.weight", "position.weight") else 1.0


OPTIMIZERS = {
    "adamw": Chosen(OPTIMIZER),
    "rates": Chosen(
        replace(OPTIMIZER, rates=("embedding:0.3", "norms:3", "layers.0.mlp:2"), mup_base_width=32), _factor, _decay
    ),
    # The sign of a rounding error is as large a step as any other: at this rate one of them passes for rounding.
    "ema": Chosen(replace(OPTIMIZER, ema_decay=0.8)),
    "muon": Chosen(replace(OPTIMIZER, kind=StepRule.muon)),
    "lion": Chosen(replace(OPTIMIZER, kind=StepRule.lion, lr=1e-5, beta2=0.99, eps=OptimizerConfig.eps)),
}


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences from the fp32 oracle."""

    loss: float
    grad_norm: float
    gradient: float
    weight: float


TOLERANCES = {
    "fp32": Tolerance(loss=1e-5, grad_norm=1e-5, gradient=1e-6, weight=1e-5),
    "bf16": Tolerance(loss=1e-3, grad_norm=5e-3, gradient=2e-2, weight=1e-1),
    "fp16": Tolerance(loss=1e-4, grad_norm=1e-3, gradient=3e-3, weight=3e-2),
}


@dataclass(frozen=True)
class Case:
    """One layout of one model."""

    pp: int = 1
    tp: int = 1
    dp: int = 1
    sequence_parallel: bool = False
    zero: int = 1
    offload: str = "none"
    offload_parameters: bool = False
    num_micro_batches: int = 2
    tied: bool = True
    llama: bool = False
    schedule: str = "1f1b"
    dtype: str = "fp32"
    recompute: str = "none"
    fused_loss: bool = True
    evaluate: bool = False
    compiled: bool = False
    cpu_matmul: str = "auto"
    frozen: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are not trained."""
    uneven: bool = False
    """Whether tokens count differently: one micro-batch not at all, the others by `token_weights`."""
    packed: bool = False
    """Whether a sequence holds several documents, which the oracle computes one by one."""
    sliced: bool = False
    """Whether documents are computed one by one, also such short ones, instead of with a mask."""
    keeps_labels: bool = False
    """Whether the last token of a document predicts the next one's first."""
    options: str = ""
    """Name of a set of the model's options, in `OPTION_SETS`."""
    optimizer: str = "adamw"
    """Name of an optimizer, in `OPTIMIZERS`."""

    @property
    def world_size(self) -> int:
        return self.pp * self.tp * self.dp

    @property
    def name(self) -> str:
        parts = [f"pp{self.pp}", f"tp{self.tp}", f"dp{self.dp}", f"zero{self.zero}", f"m{self.num_micro_batches}"]
        parts += ["llama" if self.llama else "gpt2", "tied" if self.tied else "untied"]
        parts += ["sp"] * self.sequence_parallel + [self.offload] * (self.offload != "none")
        parts += ["offload_parameters"] * self.offload_parameters
        parts += [self.schedule] * (self.schedule != "1f1b") + [self.dtype] * (self.dtype != "fp32")
        parts += ["unfused_loss"] * (not self.fused_loss)
        parts += [f"recompute_{self.recompute}"] * (self.recompute != "none") + ["evaluate"] * self.evaluate
        parts += ["compiled"] * self.compiled
        parts += [self.cpu_matmul] * (self.cpu_matmul != "auto")
        parts += [f"options_{self.options}"] * bool(self.options)
        parts += [f"frozen_{'+'.join(self.frozen)}"] * bool(self.frozen) + ["uneven"] * self.uneven
        parts += ["packed"] * self.packed + ["sliced"] * self.sliced + ["keeps_labels"] * self.keeps_labels
        parts += [self.optimizer] * (self.optimizer != "adamw")
        return "-".join(parts)


def config_of(case: Case) -> TridentConfig:
    """Return the config of a case."""
    model = ModelConfig(
        hidden_size=64,
        num_layers=max(2, case.pp * (2 if case.schedule == "dualpipev" else 1)),
        num_attention_heads=16,
        ffn_hidden_size=96,
        seq_length=8,
        vocab_size=VOCABULARY,
        vocab_pad_multiple=4,
        tied_embeddings=case.tied,
        recompute=RecomputeKind(case.recompute),
        fused_loss=case.fused_loss,
    )
    if case.llama:
        model = replace(
            model,
            num_key_value_heads=8,
            position=PositionKind.rope,
            norm=NormKind.rmsnorm,
            activation=ActivationKind.swiglu,
            bias=False,
        )
    model = replace(model, **OPTION_SETS[case.options])
    return TridentConfig(
        model=model,
        layout=LayoutConfig(
            pipeline_parallel_size=case.pp,
            tensor_parallel_size=case.tp,
            data_parallel_size=case.dp,
            sequence_parallel=case.sequence_parallel,
            pipeline_schedule=PipelineSchedule(case.schedule),
        ),
        zero=ZeroConfig(
            stage=case.zero,
            offload=OffloadKind(case.offload),
            offload_parameters=case.offload_parameters,
            reduce_bucket_size=100_000,
        ),
        precision=PrecisionConfig(dtype=Dtype(case.dtype), initial_scale_power=8),
        batch=BatchConfig(global_batch_size=case.num_micro_batches * case.dp, micro_batch_size=1),
        optimizer=OPTIMIZERS[case.optimizer].config,
        train=TrainConfig(steps=STEPS),
        # Idle threads of a second core would spin while other ranks need it.
        runtime=RuntimeConfig(threads_per_rank=1, compile=case.compiled, cpu_matmul=CpuMatmul(case.cpu_matmul)),
    )


def plan_of(case: Case, config: TridentConfig, world_size: int | None = None) -> RunPlan:
    """Return the plan of a case whose config may have been changed; no key freezes tensors yet."""
    plan = make_plan(config, VOCABULARY, world_size or case.world_size)
    return replace(plan, execution=replace(plan.execution, frozen=case.frozen))


def token_batches(global_batch_size: int, seq_length: int) -> list[torch.Tensor]:
    """Return one [global_batch_size, seq_length + 1] tensor of random ids a step."""
    generator = torch.Generator().manual_seed(99)
    shape = (global_batch_size, seq_length + 1)
    return [torch.randint(0, VOCABULARY, shape, generator=generator) for _ in range(STEPS)]


def token_weights(global_batch_size: int, seq_length: int) -> torch.Tensor:
    """Return how much each label counts, [global_batch_size, seq_length]: nothing, half, or whole.

    Half of what does not count has a weight of 0, the rest is negative: its label does not count. Of several sequences
    the last one counts nothing: a micro-batch of its own.
    """
    generator = torch.Generator().manual_seed(98)
    choices = torch.tensor([0.0, -1.0, 0.5, 1.0, 1.0])
    found = choices[torch.randint(0, 5, (global_batch_size, seq_length), generator=generator)]
    if global_batch_size > 1:
        found[-1] = -1.0
    return found


def packed_documents(global_batch_size: int, seq_length: int) -> torch.Tensor:
    """Return the document of each token, [global_batch_size, seq_length]; no two sequences are divided alike."""
    generator = torch.Generator().manual_seed(97)
    begins = torch.rand(global_batch_size, seq_length, generator=generator) < 0.2
    begins[0, seq_length // 2] = True
    return begins.long().cumsum(dim=1)


def apart(
    tokens: torch.Tensor, weights: torch.Tensor | None, documents: torch.Tensor, keeps_labels: bool
) -> list[list[torch.Tensor]]:
    """Return each document of a global batch as a batch of its own."""
    found = []
    for row, numbers in enumerate(documents):
        for number in numbers.unique():
            (places,) = torch.nonzero(numbers == number, as_tuple=True)
            inside = slice(int(places[0]), int(places[-1]) + 1)
            ids, labels, *own = of_rows(tokens[row : row + 1], None if weights is None else weights[row : row + 1])
            if not keeps_labels:
                labels = labels.masked_fill(ends_of(documents[row : row + 1]), IGNORED)
            found.append([part[:, inside] for part in (ids, labels, *own)])
    return found


@dataclass(frozen=True)
class RankOutcome:
    """What one rank saw."""

    stage: int
    tp_rank: int
    dp_rank: int
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    eval_losses: tuple[float, ...]
    specs: Mapping[str, ShardSpec]
    first_moments: Sequence[Fragment]
    """First moments after step 1: a share of the clipped gradient. What this rank has to write of them."""
    weights: Mapping[str, torch.Tensor]


def run_case(rank: int, world_size: int, case: Case) -> RankOutcome:
    """Train the case on this rank. Runs in a forked rank with torch.distributed up."""
    from trainer.engine.build import build_engine
    from trainer.engine.world import start_world

    config = config_of(case)
    plan = plan_of(case, config, world_size)
    groups = start_world(plan.mesh, plan.config.runtime, torch.device("cpu"))
    engine: Any = build_engine(plan, groups)
    place = groups.mesh.coordinate(rank)
    losses, norms, evaluations = [], [], []
    first: list[Fragment] = []
    for step, tokens in enumerate(token_batches(config.batch.global_batch_size, config.model.seq_length), start=1):
        counts = token_weights(*tokens[:, 1:].shape) if case.uneven else None
        documents = packed_documents(*tokens[:, 1:].shape) if case.packed else None
        batches = micro_batches_of(
            tokens, plan, place.dp_rank, step, counts, documents, None if case.keeps_labels else IGNORED
        )
        result = engine.train_step(batches, config.optimizer.lr)
        losses.append(float(result.loss))
        norms.append(float(result.grad_norm))
        if case.evaluate:
            evaluations.append(float(engine.evaluate(batches).loss))
        if step == 1:
            first = [fragment for fragment in engine.fragments() if fragment.kind == "exp_avg"]
    assert not case.compiled or torch._dynamo.utils.counters["stats"]["unique_graphs"], "nothing was compiled"
    weights = dict(engine.local_parameters())
    specs = dict(engine.shard_specs())
    return RankOutcome(
        place.stage,
        place.tp_rank,
        place.dp_rank,
        tuple(losses),
        tuple(norms),
        tuple(evaluations),
        specs,
        first,
        weights,
    )


def first_moments(fragments: Iterable[Fragment], case: Case) -> dict[str, torch.Tensor]:
    """Put AdamW's first moments together from what all ranks would write of them: every element exactly once."""
    specs: dict[str, ShardSpec] = {}
    shards: dict[str, list[torch.Tensor]] = {}
    for fragment in fragments:
        spec, size = fragment.spec, fragment.tensor_parallel_size
        if spec.name not in shards:
            shape = (spec.local_shape(size)) if spec.dim is not None else spec.global_shape
            count = size if spec.dim is not None else 1
            shards[spec.name] = [torch.full(shape, math.nan).view(-1) for _ in range(count)]
            specs[spec.name] = spec
        place = shards[spec.name][fragment.tp_rank].narrow(0, fragment.start, fragment.values.numel())
        assert place.isnan().all(), f"{spec.name} is there twice"
        place.copy_(fragment.values)
    whole = {}
    for name, parts in shards.items():
        spec = specs[name]
        assert not any(part.isnan().any() for part in parts), f"not all of {name} is there"
        local = spec.local_shape(case.tp) if spec.dim is not None else spec.global_shape
        views = [part.view(local) for part in parts]
        whole[name] = without_padding(unshard(views, spec) if spec.dim is not None else views[0], spec)
    return whole


def gathered(outcomes: Sequence[RankOutcome], case: Case) -> dict[str, torch.Tensor]:
    """Put the weights of data-parallel rank 0 together. Copies of a tied weight must be equal bit for bit."""
    parts: dict[tuple[str, int], dict[int, torch.Tensor]] = {}
    for outcome in outcomes:
        if outcome.dp_rank == 0:
            for name, tensor in outcome.weights.items():
                parts.setdefault((name, outcome.stage), {})[outcome.tp_rank] = tensor
    specs = {name: spec for outcome in outcomes for name, spec in outcome.specs.items()}
    whole: dict[str, torch.Tensor] = {}
    for (name, stage), by_rank in parts.items():
        spec = specs[name]
        tensor = without_padding(unshard([by_rank[rank] for rank in range(case.tp)], spec), spec)
        if name in whole:
            assert torch.equal(whole[name], tensor), f"{name} on stage {stage} differs from its tied copy"
        whole[name] = tensor
    return whole


@cache
def initial_weights(config: TridentConfig) -> dict[str, torch.Tensor]:
    """Return the whole model's weights before step 1, without padding."""
    from tests.helpers.models import drawn_gpt
    from trainer.tensor_parallel.shard import shard_spec

    model = drawn_gpt(config.model, VOCABULARY, config.train.seed)
    return {shard_spec(p).name: without_padding(p.detach(), shard_spec(p)) for p in model.parameters()}


@cache
def reference_of(
    config: TridentConfig,
    frozen: tuple[str, ...] = (),
    uneven: bool = False,
    packed: bool = False,
    optimizer: str = "adamw",
    keeps_labels: bool = False,
) -> ReferenceRun:
    """Train the oracle on the same tokens."""
    batches = token_batches(config.batch.global_batch_size, config.model.seq_length)
    steps = [_oracle_batches(tokens, uneven, packed, keeps_labels) for tokens in batches]
    chosen, weights = OPTIMIZERS[optimizer], initial_weights(config)
    return train_reference(
        config.model, weights, steps, chosen.config, None, frozen, factor=chosen.factor, decay_factor=chosen.decay
    )


def _oracle_batches(tokens: torch.Tensor, uneven: bool, packed: bool, keeps_labels: bool) -> list[list[torch.Tensor]]:
    """Return the global batch as the oracle takes it: whole, or, packed, each document by itself."""
    shape = tokens[:, 1:].shape
    weights = token_weights(*shape) if uneven else None
    if not packed:
        return [of_rows(tokens, weights)]
    return apart(tokens, weights, packed_documents(*shape), keeps_labels)


def oracle_key(case: Case) -> TridentConfig:
    """Return the config that decides the mathematics of a case, without its layout."""
    config = config_of(case)
    model = replace(config.model, recompute=RecomputeKind.none, fused_loss=True)
    single = Case(num_micro_batches=case.num_micro_batches)
    plain = config_of(single)
    return replace(
        plain, model=model, batch=BatchConfig(config.batch.global_batch_size, config.batch.global_batch_size)
    )


def tolerance_of(case: Case) -> Tolerance:
    """Return the tolerances of a case. With options, the oracle in fp32 is farther from itself in fp64.

    Measured: with norms of queries and keys 3.6e-6 in gradients, 3.1e-5 in later gradient norms and 1.2e-5 in weights,
    up to which AdamW has made more of it in eight blocks; with other options 1.1e-6 in gradients. A value at the edge
    of `clip_qkv` may fall to either side, and a row of weights with it: 5e-5 in weights, 1e-6 without the clip.
    """
    tolerance, options = TOLERANCES[case.dtype], OPTION_SETS[case.options]
    if not case.options:
        return tolerance
    gradient, norm, weight = 3e-6, 0.0, 0.0
    if "query_key_norm" in options:
        gradient, norm, weight = 1e-5, 1e-4, 3e-5
    if "clip_qkv" in options:
        norm, weight = 1e-3, 1e-4
    return replace(
        tolerance,
        gradient=max(tolerance.gradient, gradient),
        grad_norm=max(tolerance.grad_norm, norm),
        weight=max(tolerance.weight, weight),
    )


@dataclass(frozen=True)
class Errors:
    """Largest relative differences between a case and the oracle."""

    NUMBERS: ClassVar = ("loss", "grad_norm", "gradient", "weight")

    loss: float
    grad_norm: float
    gradient: float
    gradient_name: str
    weight: float
    weight_name: str


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the L2 norm of the difference over that of `expected`."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def errors_of(case: Case, outcomes: Sequence[RankOutcome]) -> Errors:
    """Compare with the oracle; ranks must agree exactly on losses and norms among themselves."""
    oracle = reference_of(oracle_key(case), case.frozen, case.uneven, case.packed, case.optimizer, case.keeps_labels)
    first = outcomes[0]
    for outcome in outcomes[1:]:
        assert outcome.losses == first.losses, "ranks report different losses"
        assert outcome.grad_norms == first.grad_norms, "ranks report different gradient norms"
    weights = gathered(outcomes, case)
    moments = first_moments((fragment for outcome in outcomes for fragment in outcome.first_moments), case)
    assert moments.keys() == oracle.first_gradients.keys()
    assert weights.keys() == oracle.weights.keys()
    changed = [n for n, w in oracle.weights.items() if n.startswith(case.frozen) and not torch.equal(weights[n], w)]
    assert case.dtype != "fp32" or not changed, f"frozen, but changed: {changed}"
    clip = min(1.0, OPTIMIZER.grad_clip / (oracle.grad_norms[0] + 1e-6))
    share = OPTIMIZERS[case.optimizer].first_share
    gradient = max(
        (relative(moments[n] / (share(n) * clip), g), n) for n, g in comparable(oracle.first_gradients).items()
    )
    weight = max((relative(weights[n], w), n) for n, w in oracle.weights.items())
    losses = list(zip(first.losses, oracle.losses, strict=True))
    if case.evaluate:
        losses.append((first.eval_losses[-1], _evaluated(case, oracle.weights)))
    return Errors(
        loss=max(abs(a - b) / b for a, b in losses),
        grad_norm=max(abs(a - b) / b for a, b in zip(first.grad_norms, oracle.grad_norms, strict=True)),
        gradient=gradient[0],
        gradient_name=gradient[1],
        weight=weight[0],
        weight_name=weight[1],
    )


def _evaluated(case: Case, weights: Mapping[str, torch.Tensor]) -> float:
    """Return the oracle's loss of the last step's batch with the weights behind that step."""
    config = oracle_key(case)
    tokens = token_batches(config.batch.global_batch_size, config.model.seq_length)[-1]
    batches = _oracle_batches(tokens, case.uneven, case.packed, case.keeps_labels)
    with torch.no_grad():
        return sum(float(loss_sum(config.model, weights, batch)) for batch in batches) / sum(map(counted, batches))


def comparable(gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out gradients that are zero but for rounding."""
    largest = max(float(g.norm()) for g in gradients.values())
    return {name: g for name, g in gradients.items() if float(g.norm()) > 1e-6 * largest}


def run_cases(rank: int, world_size: int, cases: Sequence[Case]) -> list[RankOutcome]:
    """Train several cases one after the other in the same ranks."""
    import gc

    from trainer.kernels import document_attention

    outcomes, cost = [], document_attention.CALL_MULTIPLIES
    for case in cases:
        # Documents of a few tokens are faster with a mask.
        document_attention.CALL_MULTIPLIES = 0 if case.sliced else cost
        outcomes.append(run_case(rank, world_size, case))
        gc.collect()
    return outcomes
