"""The places of ranks: arithmetic of the (pipe, data, model) mesh. Pure; needs only the sizes of a layout.

Axis order and strides equal DeepSpeed's `PipeModelDataParallelTopology`: rank = (stage * dp + dp_rank) * tp + tp_rank.
The tensor axis is innermost, so that its ranks are neighbours inside a node; the pipe axis is outermost and crosses
nodes first.

Groups are asked for by what their ranks have to do with each other, not by an axis: ranks that hand hidden states on
(`pipeline_groups`), that read different samples (`sample_groups`), that average gradients (`gradient_groups`), that
share a tensor (`tensor_groups`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Coordinate:
    """Place of a rank on each axis."""

    stage: int
    """Pipeline rank: under a folded schedule each of them holds several stages of the model."""
    dp_rank: int
    tp_rank: int


@dataclass(frozen=True)
class Mesh:
    """Sizes of the three axes."""

    pipeline_parallel_size: int
    data_parallel_size: int
    tensor_parallel_size: int

    def __post_init__(self) -> None:
        """Check that every axis has a rank."""
        sizes = (self.pipeline_parallel_size, self.data_parallel_size, self.tensor_parallel_size)
        if min(sizes) < 1:
            raise ValueError(f"axis sizes (pp, dp, tp) must be at least 1, but are {sizes}")

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.pipeline_parallel_size * self.data_parallel_size * self.tensor_parallel_size

    @property
    def name(self) -> str:
        """Short name of the layout, e.g. `pp2_tp2_dp2`."""
        return f"pp{self.pipeline_parallel_size}_tp{self.tensor_parallel_size}_dp{self.data_parallel_size}"

    @property
    def stages(self) -> tuple[int, ...]:
        """Place of every rank on the pipe axis, in order of ranks."""
        return tuple(self.coordinate(rank).stage for rank in range(self.size))

    def coordinate(self, rank: int) -> Coordinate:
        """Return the place of `rank`, 0 <= rank < size."""
        if not 0 <= rank < self.size:
            raise ValueError(f"rank must be in [0, {self.size}), but is {rank}")
        rest, tp_rank = divmod(rank, self.tensor_parallel_size)
        stage, dp_rank = divmod(rest, self.data_parallel_size)
        return Coordinate(stage, dp_rank, tp_rank)

    def rank(self, stage: int, dp_rank: int, tp_rank: int) -> int:
        """Return the global rank at a coordinate."""
        sizes = (self.pipeline_parallel_size, self.data_parallel_size, self.tensor_parallel_size)
        place = (stage, dp_rank, tp_rank)
        if not all(0 <= index < size for index, size in zip(place, sizes, strict=True)):
            raise ValueError(f"(stage, dp_rank, tp_rank) must be in the mesh of sizes {sizes}, but is {place}")
        return (stage * self.data_parallel_size + dp_rank) * self.tensor_parallel_size + tp_rank

    def pipeline_groups(self) -> list[list[int]]:
        """Return the ranks that form one pipeline, stage order, for each (dp_rank, tp_rank)."""
        stages = range(self.pipeline_parallel_size)
        return [
            [self.rank(s, d, t) for s in stages]
            for d in range(self.data_parallel_size)
            for t in range(self.tensor_parallel_size)
        ]

    def sample_groups(self) -> list[list[int]]:
        """Return the ranks that read different samples through the same layers, for each (stage, tp_rank).

        The place in a group decides which samples a rank reads.
        """
        replicas = range(self.data_parallel_size)
        return [
            [self.rank(s, d, t) for d in replicas]
            for s in range(self.pipeline_parallel_size)
            for t in range(self.tensor_parallel_size)
        ]

    def gradient_groups(self) -> list[list[int]]:
        """Return the ranks that hold the same weights and average their gradients, for each (stage, tp_rank).

        They are those that read different samples: nothing else tells the copies of a weight apart.
        """
        return self.sample_groups()

    def tensor_groups(self) -> list[list[int]]:
        """Return the ranks that split the same tensors, for each (stage, dp_rank)."""
        shards = range(self.tensor_parallel_size)
        return [
            [self.rank(s, d, t) for t in shards]
            for s in range(self.pipeline_parallel_size)
            for d in range(self.data_parallel_size)
        ]
