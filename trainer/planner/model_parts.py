"""The part of a model that each pipeline rank holds: parameters and blocks, found once for many plans. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from trainer.config.ds_json import bucket_of, chosen_bucket, matrix_elements
from trainer.config.plan import RunPlan
from trainer.config.schema_cluster import Software
from trainer.pipeline.partition import stage_bounds
from trainer.spec.model import Block, Layer, LayerKind
from trainer.spec.stepping import StepGroup
from trainer.spec.tensors import TensorSpec


@dataclass(frozen=True)
class Parameter:
    """One parameter as a tensor-parallel rank holds it."""

    numel: int
    """Elements, with the rows that pad a vocabulary."""
    group: StepGroup
    """Parameters that the optimizer steps alike."""
    is_trained: bool


@dataclass(frozen=True)
class RankParts:
    """Everything that a pipeline rank holds."""

    parameters: Mapping[Parameter, int]
    """Kinds of parameters, each with the number that there are of it."""
    in_order: tuple[Parameter, ...]
    """All of them, in the order of the layers' modules."""
    chunks: tuple[tuple[tuple[Block, int], ...], ...]
    """Blocks of each of its stages: those that are alike once, with their number."""
    block_elements: int
    """Elements of its largest block."""
    embedding_elements: int
    """Elements of the embedding's matrix, and of the head's: held here or not."""
    embeds: bool
    """It holds the embedding's lookup."""
    heads: bool
    """It holds the head and the loss."""

    @cached_property
    def held(self) -> int:
        """Elements of all parameters."""
        return sum(one.numel * count for one, count in self.parameters.items())

    @cached_property
    def trained(self) -> Mapping[StepGroup, int]:
        """Elements of trained parameters by group; a group without any is left out."""
        found: Counter[StepGroup] = Counter()
        for one, count in self.parameters.items():
            if one.is_trained:
                found[one.group] += one.numel * count
        return found

    @cached_property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        return max(one.numel for one in self.parameters)


class ModelParts:
    """Finds the parts of models, and keeps them: a search asks for the same ones thousands of times."""

    def __init__(self, software: Software) -> None:
        self._software = software
        self._ranks: dict[tuple[object, ...], tuple[object, tuple[RankParts, ...]]] = {}
        self._layers: dict[tuple[object, ...], tuple[object, list[_Counted]]] = {}
        self._cuts: dict[tuple[object, ...], tuple[object, Sequence[int]]] = {}
        self._matrices: dict[tuple[object, ...], tuple[object, int]] = {}
        self._alike: dict[tuple[object, ...], tuple[object, RankParts]] = {}

    def key(self, plan: RunPlan) -> tuple[object, ...]:
        """Return what the parts depend on. The model is known by its identity, and kept alive."""
        schedule, mesh = plan.schedule, plan.mesh
        place = (mesh.pipeline_parallel_size, mesh.tensor_parallel_size, schedule.kind.value, plan.stage_boundaries)
        return (id(plan.model), plan.execution, plan.stepping, *place)

    def ranks(self, plan: RunPlan) -> tuple[RankParts, ...]:
        """Return the parts of each pipeline rank. Ranks that hold alike layers are the same object."""
        key = self.key(plan)
        found = self._ranks.get(key)
        if found is None:
            found = self._ranks[key] = (plan.model, self._found(plan))
        return found[1]

    def bucket(self, plan: RunPlan) -> int:
        """Return how many elements are reduced in one collective: `ds_json.reduce_bucket_size`."""
        chosen = chosen_bucket(plan)
        if chosen is not None:
            return chosen
        key = (id(plan.model), plan.tensor_parallel_size, plan.execution.vocab_unit)
        found = self._matrices.get(key)
        if found is None:
            found = self._matrices[key] = (plan.model, matrix_elements(plan))
        return bucket_of(found[1])

    def _found(self, plan: RunPlan) -> tuple[RankParts, ...]:
        pp = plan.pipeline_parallel_size
        layers, counted = plan.model.layers, self._counted(plan)
        owned: list[list[range]] = [[] for _ in range(pp)]
        for index, (start, stop) in enumerate(pairwise(self._bounds(plan))):
            owned[plan.schedule.owner(index, pp) if pp > 1 else 0].append(range(start, stop))
        return tuple(self._rank(plan, layers, counted, chunks) for chunks in owned)

    def _rank(
        self, plan: RunPlan, layers: Sequence[Layer], counted: Sequence[_Counted], chunks: Sequence[range]
    ) -> RankParts:
        # Layers that are alike are the same objects: those of all layouts with as many tensor-parallel ranks.
        key = (id(counted), *(tuple(id(counted[index]) for index in chunk) for chunk in chunks))
        found = self._alike.get(key)
        if found is None:
            found = self._alike[key] = (counted, _rank(plan, layers, counted, chunks))
        return found[1]

    def _bounds(self, plan: RunPlan) -> Sequence[int]:
        if plan.pipeline_parallel_size == 1:
            return (0, len(plan.model.layers))
        execution = plan.execution
        how = (plan.schedule.kind.value, plan.stage_boundaries, execution.recompute.value, execution.seq_length)
        key = (id(plan.model), plan.pipeline_parallel_size, *how)
        found = self._cuts.get(key)
        if found is None:
            own = self._software is Software.trident or plan.stage_boundaries
            found = self._cuts[key] = (plan.model, stage_bounds(plan) if own else _even_bounds(plan))
        return found[1]

    def _counted(self, plan: RunPlan) -> list[_Counted]:
        """Return the parameters of each layer; layers that are alike share theirs."""
        size, execution = plan.tensor_parallel_size, plan.execution
        key = (id(plan.model), size, execution.vocab_unit, execution.frozen, plan.stepping)
        found = self._layers.get(key)
        if found is None:
            alike: list[tuple[Block, _Counted]] = []
            made = []
            for layer in plan.model.layers:
                made.append(_layer_parameters(plan, layer, alike))
            found = self._layers[key] = (plan.model, made)
        return found[1]


@dataclass(frozen=True)
class _Counted:
    """Parameters of a layer."""

    in_order: tuple[Parameter, ...]
    counts: Counter[Parameter]
    numel: int
    block: Block | None
    """The first of the blocks that are alike; None for another layer."""


_ORDER = ("attention_norm", "attention", "attention_output_norm", "mlp_norm", "mlp", "mlp_output_norm")
"""Parts of a block in the order of its modules."""


def _place(tensor: TensorSpec) -> int:
    """Return the place of a tensor's part among those of its block; 0 outside of blocks."""
    parts = tensor.name.split(".")
    return _ORDER.index(parts[2]) if len(parts) > 2 and parts[2] in _ORDER else 0


def _layer_parameters(plan: RunPlan, layer: Layer, alike: list[tuple[Block, _Counted]]) -> _Counted:
    first = layer.spec if isinstance(layer.spec, Block) else None
    for block, known in alike:
        if first is not None and (block is first or block == first):
            if not (plan.execution.frozen or plan.stepping.rates):
                return known
            first = block
            break
    in_order = tuple(_parameter(plan, tensor) for tensor in sorted(layer.tensors(), key=_place))
    found = _Counted(in_order, Counter(in_order), sum(one.numel for one in in_order), first)
    if first is not None and first is layer.spec:
        alike.append((first, found))
    return found


def _parameter(plan: RunPlan, tensor: TensorSpec) -> Parameter:
    numel = tensor.local_numel(plan.tensor_parallel_size, plan.execution.vocab_unit)
    return Parameter(numel, plan.stepping.group(tensor), plan.execution.trains(tensor))


def _rank(plan: RunPlan, layers: Sequence[Layer], counted: Sequence[_Counted], chunks: Sequence[range]) -> RankParts:
    total: Counter[Parameter] = Counter()
    in_order: list[Parameter] = []
    kinds, largest_block = set(), 0
    for index in (index for chunk in chunks for index in chunk):
        total.update(counted[index].counts)
        in_order += counted[index].in_order
        kinds.add(layers[index].kind)
        if layers[index].kind is LayerKind.block:
            largest_block = max(largest_block, counted[index].numel)
    embedding = next(plan.model.embedding.tensors("embedding"))
    embeds, heads = LayerKind.embedding in kinds, LayerKind.head in kinds
    if heads and not embeds and plan.model.head.tied:
        # A copy of the embedding's matrix, without the norm of what is looked up.
        copy = _parameter(plan, embedding)
        total[copy] += 1
        in_order.append(copy)
    return RankParts(
        parameters=dict(total),
        in_order=tuple(in_order),
        chunks=tuple(_alike(counted[index].block for index in chunk) for chunk in chunks),
        block_elements=largest_block,
        embedding_elements=_parameter(plan, embedding).numel,
        embeds=embeds,
        heads=heads,
    )


def _alike(blocks: Iterable[Block | None]) -> tuple[tuple[Block, int], ...]:
    """Return every block once, with its number. Blocks that are alike are the same object."""
    found: dict[int, tuple[Block, int]] = {}
    for block in blocks:
        if block is not None:
            found[id(block)] = (block, found.get(id(block), (block, 0))[1] + 1)
    return tuple(found.values())


def _even_bounds(plan: RunPlan) -> list[int]:
    """Return bounds of Megatron's partition: as many blocks in each stage, fewer in the last if they do not divide."""
    kinds = [layer.kind for layer in plan.model.layers]
    first, count, pp = kinds.index(LayerKind.block), len(plan.model.blocks), plan.pipeline_parallel_size
    each = -(-count // pp)
    # Every stage has a block.
    inner = (first + min(stage * each, count - pp + stage) for stage in range(1, pp))
    return [0, *inner, len(kinds)]


def ends(ranks: Iterable[Sequence[object]]) -> list[int]:
    """Return the indices of the first and the last of those ranks that hold the same objects, ascending."""
    first: dict[tuple[int, ...], int] = {}
    last: dict[tuple[int, ...], int] = {}
    for index, held in enumerate(ranks):
        key = tuple(map(id, held))
        first.setdefault(key, index)
        last[key] = index
    return sorted({*first.values(), *last.values()})
