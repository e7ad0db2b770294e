"""Predictions of a run: the memory of each pipeline rank, and the time of a step. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.planner.constants import Constant

GIB = 1 << 30


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one device of a pipeline rank at the fullest moment of backward, by purpose.

    All its tensor- and data-parallel ranks hold as much.
    """

    weights: int
    gradients: int
    master: int
    """fp32 master weights beside half-precision ones; fp32 weights are their own master weights."""
    moments: int
    """Moments of the optimizer, and the average of the weights if there is one."""
    activations: int
    """Activations of all micro-batches in flight that wait for their backward pass."""
    working: int
    """Activations of what is being recomputed, and gradients of activations at the fullest moment."""
    loss: int
    """Head and cross-entropy: logits, or a chunk of them, and their gradients."""
    buckets: int
    """Buffers of collectives and of offload."""
    gathered: int
    """Weights of ZeRO-3 that are whole at once."""
    overhead: int
    """Context of the device, communicators, libraries and the allocator's fragments: what no tensor of ours holds."""
    init_peak: int
    """All bytes at the fullest moment of the start."""
    step_peak: int
    """All bytes at the fullest moment of the optimizer step."""
    host: int
    """Bytes of the machine's memory that offload takes for this device; 0 without offload."""
    in_flight: int
    """Largest number of micro-batches whose activations it holds at once."""

    @property
    def by_purpose(self) -> dict[str, int]:
        """The parts that add up to `backward`."""
        return {name: getattr(self, name) for name in _PURPOSES}

    @property
    def backward(self) -> int:
        """Bytes at the fullest moment of backward."""
        return sum([getattr(self, name) for name in _PURPOSES])

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment of all."""
        return max(self.backward, self.init_peak, self.step_peak)


_PURPOSES = tuple(
    name for name in StageMemory.__dataclass_fields__ if name not in ("init_peak", "step_peak", "host", "in_flight")
)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, on the path that decides how long it takes. The parts add up to `total`."""

    gemm: float
    """Matrix multiplications of forward and backward, head included."""
    attention: float
    """Scores, softmax and their product with the values."""
    elementwise: float
    """Norms, activations, residuals, loss: what memory bandwidth decides."""
    recompute: float
    """Forward passes computed again."""
    launch: float
    """Fixed costs of layers and micro-batches: kernel launches, Python."""
    tensor_parallel: float
    """Collectives of the tensor axis that nothing hides."""
    pipeline: float
    """Messages between stages that nothing hides."""
    data_parallel: float
    """Collectives of gradients and weights that nothing hides."""
    bubble: float
    """Time in which the rank of the critical path waits for other stages."""
    optimizer: float
    offload: float
    """Traffic between device and host, and the optimizer on the host."""
    data_parallel_hidden: float = 0.0
    """Collectives of gradients and weights beside backward; not a part of the total."""

    @property
    def by_part(self) -> dict[str, float]:
        """The parts that add up to `total`."""
        return {name: getattr(self, name) for name in _PARTS}

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return sum(self.by_part.values())


_PARTS = tuple(name for name in StepTime.__dataclass_fields__ if name != "data_parallel_hidden")


@dataclass(frozen=True)
class LossBand:
    """Predicted loss in nats a token, under one scaling law."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Confidence:
    """Expected errors of a prediction, and their reason."""

    step_time: float
    """Relative error that the time has to be expected to have, such as 0.08."""
    memory: float
    """Relative error that the memory has to be expected to have."""
    reason: str
    """Profile, its age, and the term that dominates the uncertainty: a phrase for the screen."""
    outside: tuple[str, ...] = ()
    """Facts of this run that the model was not checked on, each a sentence."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of one run on one cluster, before it is started."""

    stages: tuple[StageMemory, ...]
    """Memory of each pipeline rank, in order."""
    time: StepTime
    bubble_fraction: float
    """Share of the pipeline ranks' time in which they wait for each other: 0 to 1."""
    device_bytes: int
    """Memory that a rank may use."""
    host_bytes: int | None
    """Memory of a machine that its ranks may use together; None: not known, and not checked."""
    ranks_per_node: int
    tokens_per_second: float
    """Tokens of all ranks."""
    tflops_per_gpu: float
    """Model FLOPs: those that the mathematics needs (PaLM's convention, arXiv 2204.02311, appendix B)."""
    mfu: float | None
    """Share of the device's peak in the run's format; None where the peak is not known."""
    hfu: float | None
    """The same, with what is computed again."""
    confidence: Confidence
    constants: Mapping[str, Constant]
    """Numbers that it rests on, by name."""

    @property
    def fullest(self) -> int:
        """Index of the pipeline rank that needs most memory."""
        return max(range(len(self.stages)), key=lambda index: self.stages[index].peak)

    @property
    def peak(self) -> int:
        """Bytes of the fullest rank at its fullest moment."""
        return self.stages[self.fullest].peak

    @property
    def host_needed(self) -> int:
        """Bytes of a machine's memory that offload takes for all its ranks."""
        return self.ranks_per_node * max(stage.host for stage in self.stages)

    @property
    def fits(self) -> bool:
        """True if every rank has the memory that it is predicted to need, on the device and on the host."""
        return self._fits(1.0)

    @property
    def may_fit(self) -> bool:
        """True if it fits with the memory model's own error in its favour; if even then it does not, it is refused."""
        return self._fits(1.0 - self.confidence.memory)

    @property
    def is_device_too_small(self) -> bool:
        """True if a device has too little memory even with the memory model's own error in its favour."""
        return self.peak * (1.0 - self.confidence.memory) > self.device_bytes

    def _fits(self, factor: float) -> bool:
        """Return whether every rank has the memory if it needs `factor` of what is predicted."""
        has_room = self.host_bytes is None or factor * self.host_needed <= self.host_bytes
        return factor * self.peak <= self.device_bytes and has_room
