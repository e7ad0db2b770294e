"""A whole model: blocks that may differ from layer to layer, and the layers in the order in which data pass them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from trainer.spec.parts import Attention, Embedding, FeedForward, Head, Kept, Norm, Positions
from trainer.spec.tensors import TensorSpec


class Wiring(Enum):
    """Places of a block's norms, and the order of attention and MLP. x is the residual stream."""

    pre = "pre"
    """x + attention(norm(x)), then x + mlp(norm(x)): GPT-2, LLaMA."""
    post = "post"
    """norm(x + attention(x)), then norm(x + mlp(x)): GPT-1."""
    output = "output"
    """x + norm(attention(x)), then x + norm(mlp(x)): OLMo 2."""
    sandwich = "sandwich"
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x))): Gemma 2."""
    parallel = "parallel"
    """x + attention(n) + mlp(n), n = norm(x): GPT-J, Phi."""
    parallel_two_norms = "parallel_two_norms"
    """x + attention(norm(x)) + mlp(norm(x)): GPT-NeoX."""

    @property
    def is_parallel(self) -> bool:
        """True if attention and MLP read the same stream."""
        return self in (Wiring.parallel, Wiring.parallel_two_norms)


_NORMS = {
    Wiring.parallel: ("attention_norm",),
    Wiring.sandwich: ("attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm"),
}
"""Names of a block's norms by wiring; all other wirings have two."""


@dataclass(frozen=True)
class Block:
    """One transformer block."""

    attention: Attention
    feed_forward: FeedForward
    norm: Norm
    """All norms of the block are alike."""
    wiring: Wiring = Wiring.pre
    residual_scale: float = 1.0
    """Factor of the outputs that attention and MLP add to the stream (Granite)."""

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Names of the norms below the block's."""
        return _NORMS.get(self.wiring, ("attention_norm", "mlp_norm"))

    def tensors(self, name: str) -> Iterator[TensorSpec]:
        """Yield the tensors of the block with that global name."""
        for norm in self.norm_names:
            yield from self.norm.tensors(f"{name}.{norm}")
        yield from self.attention.tensors(f"{name}.attention")
        yield from self.feed_forward.tensors(f"{name}.mlp")

    def forward_flops(self, length: float) -> float:
        """Return the FLOPs of one token in a sequence of `length`."""
        return self.attention.forward_flops(length) + self.feed_forward.forward_flops(length)

    @cached_property
    def kept(self) -> Kept:
        """Elements that forward leaves for backward without recomputation."""
        # The output of a norm before a branch is kept as the branch's input; without one, that is the stream. Parallel
        # branches share their norm, or its input, the stream.
        found = Kept(whole=self.norm.width * (1 if self.wiring.is_parallel else 2))
        for _ in self.norm_names:
            found += self.norm.kept
        return found + self.attention.kept + self.feed_forward.kept


class LayerKind(Enum):
    """Kind of a layer."""

    embedding = "embedding"
    position = "position"
    block = "block"
    final_norm = "final_norm"
    head = "head"


LayerSpec = Embedding | Positions | Block | Norm | Head


@dataclass(frozen=True)
class Layer:
    """One layer of a model; a pipeline stage holds some of them."""

    name: str
    """Global name, with which the names of its tensors begin."""
    kind: LayerKind
    spec: LayerSpec

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Return its own tensors; a tied head has none."""
        return tuple(self.spec.tensors(self.name))

    @property
    def parameter_count(self) -> int:
        """Elements of its tensors, without padding."""
        return sum(tensor.numel for tensor in self.tensors())

    def forward_flops(self, length: float) -> float:
        """Return the FLOPs of one token in a sequence of `length`, forward. Norms count as zero."""
        return 0.0 if isinstance(self.spec, Norm) else self.spec.forward_flops(length)


@dataclass(frozen=True)
class Model:
    """A model. Two runs train the same model if these are equal.

    The way in which it is computed (recomputation, padding, dropout) is in `Execution`.
    """

    embedding: Embedding
    positions: Positions
    blocks: tuple[Block, ...]
    final_norm: Norm | None
    head: Head

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.embedding.hidden_size

    @property
    def vocab_size(self) -> int:
        """Token ids that exist."""
        return self.embedding.vocab_size

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in the order in which data pass them."""
        blocks = (Layer(f"blocks.{index}", LayerKind.block, block) for index, block in enumerate(self.blocks))
        norm = self.final_norm
        return (
            Layer("embedding", LayerKind.embedding, self.embedding),
            Layer("position", LayerKind.position, self.positions),
            *blocks,
            *([] if norm is None else [Layer("final_norm", LayerKind.final_norm, norm)]),
            Layer("head", LayerKind.head, self.head),
        )

    @cached_property
    def kinds(self) -> tuple[tuple[Layer, int], ...]:
        """The first layer of each kind of equal ones, and how many there are: sums need not walk a deep model."""
        found: dict[LayerSpec, tuple[Layer, int]] = {}
        for layer in self.layers:
            first, count = found.get(layer.spec, (layer, 0))
            found[layer.spec] = (first, count + 1)
        return tuple(found.values())

    @cached_property
    def sums(self) -> dict[tuple[object, ...], int]:
        """Sums over its tensors by name and arguments, which those who computed them keep here."""
        return {}

    def layer(self, name: str) -> Layer:
        """Return the layer of a name.

        Raises:
            ValueError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(f"layer must be one of {', '.join(layer.name for layer in self.layers)}, but is {name}")

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """All tensors by global name, layer after layer: the only list of a model's tensors."""
        return {tensor.name: tensor for layer in self.layers for tensor in layer.tensors()}

    @cached_property
    def base_tensors(self) -> dict[str, TensorSpec]:
        """Tensors of the model without its adapters."""
        return {name: tensor for name, tensor in self.tensors.items() if not tensor.is_adapter}

    @property
    def has_adapters(self) -> bool:
        """True if LoRA adapts the model."""
        return len(self.base_tensors) < len(self.tensors)

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model, without padding; a tied embedding counts once."""
        return sum(tensor.numel for tensor in self.tensors.values())

    def flops_per_token(self, length: float, frozen: Collection[str] = ()) -> float:
        """Return the training FLOPs of one token in a sequence of `length`: forward, and twice that for backward.

        6 N + 12 L S N_heads D, with N the matrix parameters, head included and lookups not. Recomputation is not model
        work and does not count, and neither does the gradient of a matrix that is not trained.

        Args:
            length: tokens of the sequence, or in the mean of a token's document, if no other one is attended to.
            frozen: global names of the tensors that are not trained.
        """
        head = "embedding.weight" if self.head.tied else "head.weight"
        multiplied = {name for name, tensor in self.tensors.items() if name.startswith("blocks.") and tensor.is_matrix}
        spared = sum(2 * self.tensors[name].numel for name in (multiplied | {head}) & set(frozen))
        return 3.0 * sum(layer.forward_flops(length) for layer in self.layers) - spared
