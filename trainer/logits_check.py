"""The logits of a model beside those of transformers on a fixed batch: the proof that weights mean the same to both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.held_weights import Weights
from trainer.checkpoint.peft_folder import PeftLayer
from trainer.config.models import make_execution, make_model
from trainer.config.schema import ModelConfig
from trainer.errors import CheckpointError, first_line
from trainer.micro_batch import MicroBatch
from trainer.model.context import ModelContext
from trainer.model.gpt import GPT, full_logits
from trainer.spec.execution import RecomputeKind
from trainer.tensor_parallel.init import Initial, fill
from trainer.tensor_parallel.shard import ShardSpec
from trainer.topology.groups import SingleGroup

TOLERANCE = 1e-4
"""Largest difference of two logits in fp32; sums in another order differ by less."""
_SEQUENCES, _LENGTH = 2, 64


@dataclass(frozen=True)
class LogitsCheck:
    """The difference of two models on the batch."""

    largest: float
    """Largest absolute difference of two logits."""
    divergence: float
    """Mean Kullback-Leibler divergence of our distributions from transformers', in nats a token."""

    def __str__(self) -> str:
        """Return both numbers."""
        return f"logits differ from transformers' by at most {self.largest:.2g} (KL {self.divergence:.2g} nats)"


def written_model(model: ModelConfig, vocab_size: int, tensors: Weights, dtype: str = "float32") -> GPT:
    """Return the whole model of a checkpoint's tensors on CPU, in fp32, after its weights were rounded to `dtype`."""
    context = ModelContext(
        tensor=SingleGroup(),
        sequence_parallel=False,
        execution=replace(make_execution(model, 1), recompute=RecomputeKind.none),
        spec=make_model(model, vocab_size),
    )
    found = GPT(context).eval()
    rounding = getattr(torch, dtype)

    def read(spec: ShardSpec, _: Initial) -> torch.Tensor:
        return tensors.read_shard("weight", spec, rank=0, size=1).to(rounding).float()

    fill(found, read)
    return found


def compare(model: GPT, folder: Path, layers: Sequence[PeftLayer] = (), scale: float = 1.0) -> LogitsCheck:
    """Compare a whole model with transformers' reading of a folder. Both are in memory, in fp32.

    Args:
        model: our model.
        folder: theirs.
        layers: adapters that are added to theirs.
        scale: factor of these.

    Raises:
        CheckpointError: transformers cannot load the folder, or the logits differ by more than `TOLERANCE`.
    """
    ids = fixed_ids(model.context.spec.vocab_size, model.context.execution.seq_length)
    with torch.inference_mode():
        ours = full_logits(model(MicroBatch.of(ids)), model.context).transpose(0, 1).float()
        theirs = _adapted(_theirs(folder), layers, scale)(ids).logits.float()
    found = LogitsCheck(float((ours - theirs).abs().max()), _divergence(theirs, ours))
    # Not `>`, because a NaN must not pass.
    if not found.largest <= TOLERANCE:
        raise CheckpointError(
            f"the model must give transformers' logits within {TOLERANCE:g}, but the {found}",
            hints=["nothing was written; check=false leaves the comparison out"],
        )
    return found


def fixed_ids(vocab_size: int, seq_length: int) -> torch.Tensor:
    """Return the batch: ids of the whole vocabulary, the same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (_SEQUENCES, min(_LENGTH, seq_length)), generator=generator)


def _theirs(folder: Path) -> torch.nn.Module:
    import transformers

    # The library's own types say less than it returns.
    library: Any = transformers
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    try:
        model, told = library.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, trust_remote_code=False
        )
    # The library raises whatever its parts raise.
    except Exception as error:
        raise CheckpointError(f"{folder} must be a model that transformers loads, but: {first_line(error)}") from error
    absent = sorted(told["missing_keys"])
    if absent:
        raise CheckpointError(f"{folder} must hold every tensor that transformers reads, but {absent[0]} is missing")
    found: torch.nn.Module = model.eval()
    return found


def _adapted(model: torch.nn.Module, layers: Sequence[PeftLayer], scale: float) -> torch.nn.Module:
    """Add adapters to a model's weights."""
    for layer in layers:
        added = scale * (layer.b @ layer.a)
        model.get_parameter(f"{layer.name}.weight").add_(added.T if layer.is_transposed else added)
    return model


def _divergence(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    expected, found = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())
