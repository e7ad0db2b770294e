"""The logits of a model beside those of transformers on a fixed batch: the proof that weights mean the same to both."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from trainer.checkpoint.container import ContainerWriter
from trainer.checkpoint.held_weights import Weights
from trainer.checkpoint.peft_folder import PeftLayer
from trainer.config.hf_folder import HF_CONFIG
from trainer.config.models import make_execution, make_model
from trainer.config.schema import ModelConfig
from trainer.errors import CheckpointError
from trainer.interchange.weight_files import WeightFiles
from trainer.interchange.weight_index import SINGLE
from trainer.micro_batch import MicroBatch
from trainer.model.context import ModelContext
from trainer.model.gpt import build_layer, build_tied, full_logits, tied_head
from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Layer
from trainer.spec.parts import Head
from trainer.tensor_parallel.init import Initial, fill
from trainer.tensor_parallel.shard import ShardSpec
from trainer.topology.groups import SingleGroup
from trainer.transformers_loading import check_whole, loading, quiet_library

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


@dataclass(frozen=True)
class WrittenModel:
    """A model whose tensors are in files. It is computed layer by layer, and only one layer is in memory at a time."""

    config: ModelConfig
    vocab_size: int
    tensors: Weights
    dtype: str = "float32"
    """Number format that its weights are rounded to, before fp32 computes with them."""

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits `[B, S, V]` of ids `[B, S]`, fp32 on CPU."""
        context = ModelContext(
            tensor=SingleGroup(),
            sequence_parallel=False,
            execution=replace(make_execution(self.config, 1), recompute=RecomputeKind.none),
            spec=make_model(self.config, self.vocab_size),
        )
        batch, found = MicroBatch.of(ids), ids
        with torch.inference_mode():
            for layer in context.spec.layers:
                found = self._applied(layer, context, found, batch)
            return full_logits(found, context).transpose(0, 1).float()

    def _applied(self, layer: Layer, context: ModelContext, found: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Return what one layer makes of a tensor; its weights are gone when this returns."""
        if isinstance(layer.spec, Head) and layer.spec.tied:
            embedding = build_tied(context, embeds=False)
            fill(embedding, self._read)
            return tied_head(embedding, found, batch)
        module = build_layer(layer.name, context).eval()
        fill(module, self._read)
        applied: torch.Tensor = module(found, batch)
        return applied

    def _read(self, spec: ShardSpec, _: Initial) -> torch.Tensor:
        rounding = getattr(torch, self.dtype)
        return self.tensors.read_shard("weight", spec, rank=0, size=1).to(rounding).float()


def compare(
    written: WrittenModel, folder: Path, scratch: Path, layers: Sequence[PeftLayer] = (), scale: float = 1.0
) -> LogitsCheck:
    """Compare a written model with transformers' reading of a folder. Of each, one layer at a time is in memory.

    Args:
        written: our model.
        folder: theirs.
        scratch: a folder on a disk with room for their weights in fp32, if they are pickles.
        layers: adapters that are added to theirs.
        scale: factor of these.

    Raises:
        CheckpointError: transformers cannot load the folder, or the logits differ by more than `TOLERANCE`.
    """
    ids = fixed_ids(written.vocab_size, make_execution(written.config, 1).seq_length)
    ours = written.logits(ids)
    if not ours.isfinite().all():
        raise CheckpointError("the model's logits must be finite, but are not: the weights hold NaN or Inf")
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".transformers_") as temporary:
        theirs = _their_logits(_in_safetensors(folder, Path(temporary)), ids, layers, scale)
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


def _in_safetensors(folder: Path, temporary: Path) -> Path:
    """Return a folder with the same weights as safetensors, of which the library reads single tensors."""
    files = WeightFiles(folder)
    if files.are_safetensors:
        return folder
    writer = ContainerWriter(temporary / SINGLE, {name: files.shape(name) for name in files.names()}, {"format": "pt"})
    for name in files.names():
        writer.append(files.read(name).float())
    writer.finish()
    shutil.copy(folder / HF_CONFIG, temporary)
    return temporary


def _their_logits(folder: Path, ids: torch.Tensor, layers: Sequence[PeftLayer], scale: float) -> torch.Tensor:
    """Return their logits; each layer reads its weights from the folder when it is used, and forgets them."""
    # It warns of every model that is read like this.
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    with loading(folder), torch.inference_mode():
        model, told = quiet_library().AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            device_map={"": "disk"},
            output_loading_info=True,
            trust_remote_code=False,
        )
        check_whole(folder, told)
        logits: torch.Tensor = _adapted(model.eval(), layers, scale)(ids).logits
        return logits.float()


def _adapted(model: torch.nn.Module, layers: Sequence[PeftLayer], scale: float) -> torch.nn.Module:
    """Add adapters to what a model's layers return: their weights come and go."""
    for layer in layers:
        model.get_submodule(layer.name).register_forward_hook(partial(_added, layer, scale))
    return model


def _added(
    layer: PeftLayer, scale: float, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    return output + scale * (inputs[0] @ layer.a.T) @ layer.b.T


def _divergence(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """Return the mean of their distributions' divergence, one sequence at a time: fp64 takes memory."""
    found = []
    for expected, mine in zip(theirs, ours, strict=True):
        wanted, given = expected.double().log_softmax(-1), mine.double().log_softmax(-1)
        found.append(float((wanted.exp() * (wanted - given)).sum(-1).mean()))
    return sum(found) / len(found)
