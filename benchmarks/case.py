"""The case of a benchmark: one model, one batch, one optimizer, the same for every contender. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan


@dataclass(frozen=True)
class Case:
    """A GPT-2 or LLaMA shape and how it is trained. Sizes as in the config of the same names."""

    name: str
    family: str = "gpt2"
    """gpt2: learned positions, LayerNorm, GELU (tanh), biases, tied. llama: rope, RMSNorm, SwiGLU, untied."""
    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 6
    ffn_hidden_size: int = 1536
    seq_length: int = 256
    vocab_size: int = 8192
    global_batch_size: int = 8
    micro_batch_size: int = 8
    dtype: str = "fp32"
    device: str = "cpu"
    lr: float = 3e-4
    warmup_steps: int = 10
    seed: int = 1234

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step."""
        return self.global_batch_size * self.seq_length

    @property
    def tokens_in_micro_batch(self) -> int:
        """Tokens that go through the model at once."""
        return self.micro_batch_size * self.seq_length

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches in a step of one process."""
        return self.global_batch_size // self.micro_batch_size

    def learning_rate(self, step: int) -> float:
        """Return the rate of step 1, 2, ...: a line up to `lr`, then constant."""
        return self.lr * min(1.0, step / self.warmup_steps)

    def overrides(self) -> list[str]:
        """Return the words after `trident train` that train this case."""
        llama = self.family == "llama"
        shape = {
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "ffn_hidden_size": self.ffn_hidden_size,
            "seq_length": self.seq_length,
            "vocab_size": self.vocab_size,
            "position": "rope" if llama else "learned",
            "norm": "rmsnorm" if llama else "layernorm",
            "activation": "swiglu" if llama else "gelu_tanh",
            "bias": str(not llama).lower(),
            "tied_embeddings": str(not llama).lower(),
        }
        return [
            *(f"model.{key}={value}" for key, value in shape.items()),
            "data=synthetic",
            f"data.synthetic_tokens={max(1 << 18, 64 * self.tokens_per_step)}",
            f"batch.global_batch_size={self.global_batch_size}",
            f"batch.micro_batch_size={self.micro_batch_size}",
            f"precision={self.dtype}",
            f"optimizer.lr={self.lr}",
            "schedule=constant",
            f"schedule.warmup_steps={self.warmup_steps}",
            "train.steps=100000",
            f"train.seed={self.seed}",
            f"runtime.device={self.device}",
            "checkpoint=none",
            "checkpoint.resume=never",
            "logging.console=quiet",
            "logging.wandb=disabled",
        ]

    def plan(self, extra: tuple[str, ...] = (), world_size: int = 1) -> RunPlan:
        """Return the plan of Trident's run of this case with further overrides."""
        return make_plan(compose([*self.overrides(), *extra]), self.vocab_size, world_size)

    def to_dict(self) -> dict[str, Any]:
        """Return the case as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Case:
        """Return the case that `to_dict` wrote."""
        return cls(**values)


CPU = Case("cpu")
"""13.9M parameters: what two CPU cores train in about a second a step."""
TINY = Case(
    "tiny",
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    ffn_hidden_size=64,
    seq_length=16,
    vocab_size=64,
    global_batch_size=8,
    micro_batch_size=8,
)
"""A case small enough for tests."""
GPT3 = {
    "124m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "1.3b": (24, 2048, 16),
    "2.7b": (32, 2560, 32),
    "6.7b": (32, 4096, 32),
}
"""Blocks, width and heads (arXiv 2005.14165, table 2.1; heads of the 1.3B so that they have 128 each)."""
GPU_SEQ_LENGTHS = (1024, 2048, 8192)
GPU_TOKENS_PER_STEP = 1 << 17
"""Enough micro-batches that the optimizer's share is that of real training, few enough that a step takes seconds."""


def gpu_case(size: str, seq_length: int) -> Case:
    """Return a GPT-3 shape on one GPU, bf16 with fp32 master weights, with the largest micro-batch that is tried."""
    layers, hidden, heads = GPT3[size]
    batch = max(1, GPU_TOKENS_PER_STEP // seq_length)
    return Case(
        f"gpu_{size}" if seq_length == GPU_SEQ_LENGTHS[0] else f"gpu_{size}_{seq_length}",
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        ffn_hidden_size=4 * hidden,
        seq_length=seq_length,
        vocab_size=50304,
        global_batch_size=batch,
        micro_batch_size=min(batch, max(1, (1 << 16) // seq_length)),
        dtype="bf16",
        device="cuda",
    )


CASES: dict[str, Case] = {
    "cpu": CPU,
    "cpu_llama": replace(CPU, name="cpu_llama", family="llama", ffn_hidden_size=1024),
    "cpu_30m": Case("cpu_30m", hidden_size=512, num_layers=8, num_heads=8, ffn_hidden_size=2048),
    "cpu_159m": Case(
        "cpu_159m",
        hidden_size=1024,
        num_layers=12,
        num_heads=16,
        ffn_hidden_size=4096,
        seq_length=128,
        global_batch_size=8,
        micro_batch_size=4,
    ),
    "tiny": TINY,
    "tiny_llama": replace(TINY, name="tiny_llama", family="llama"),
    **{case.name: case for case in (gpu_case(size, GPU_SEQ_LENGTHS[0]) for size in GPT3)},
}
"""Cases by name, for `--case`."""
