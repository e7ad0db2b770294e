"""Adapters as a folder that PEFT loads: adapter_config.json and adapter_model.safetensors, under a family's names.

PEFT has one pair of matrices for each layer of theirs. Where theirs is several of ours (a fused qkv), its rank is the
sum of ours, and B has zeros where one of ours adds nothing; where ours is several of theirs, each has a copy of A. Both
say exactly the same function.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.checkpoint.held_weights import Weights, linears_by_weight
from trainer.config.hf_export import Expressed
from trainer.config.schema import LoraConfig
from trainer.families.layouts import Same, Transposed
from trainer.files import write_atomically
from trainer.interchange.linked_names import sections_of
from trainer.spec.model import Model

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_IN_A_BLOCK = re.compile(r".*?\.\d+\.(.*)")


@dataclass(frozen=True)
class PeftLayer:
    """The adapter of one layer of theirs."""

    name: str
    """Name of the layer in their model."""
    a: torch.Tensor
    """`[count x rank, inputs]`."""
    b: torch.Tensor
    """`[outputs, count x rank]`, rows in the order of theirs."""
    count: int
    """Number of our adapters that it is made of."""
    is_transposed: bool
    """True if their weight has inputs as rows."""

    @property
    def kind(self) -> str:
        """Its name below the block, which is the same in every block."""
        found = _IN_A_BLOCK.fullmatch(self.name)
        assert found is not None, f"{self.name} is in a block"
        return found[1]


def peft_layers(weights: Weights, said: Expressed, model: Model) -> Iterator[PeftLayer]:
    """Yield the adapters of every layer of theirs that has one.

    Args:
        weights: the adapters.
        said: the model without adapters, in the words of a family.
        model: the model with its adapters.
    """
    links = said.family.links_of(said.values, list(said.model.tensors))
    for ours, (layer, linear) in linears_by_weight(model).items():
        link, tensor = links[ours], said.model.tensors[ours]
        starts = [sum(linear.sections[:index]) for index in range(len(linear.sections))]
        pairs = []
        for adapter in linear.adapters:
            a, b = (weights.read("weight", one.name) for one in linear.adapter_tensors(layer, adapter))
            pairs.append((starts[adapter.first], a, b))
        for index, rows in enumerate(link.rows(tensor.shape, sections_of(tensor))):
            own = [(start, a, b) for start, a, b in pairs if start < rows.stop and start + len(b) > rows.start]
            if not own:
                continue
            layout = link.layout_of(index)
            is_transposed = isinstance(layout, Transposed)
            mine = torch.cat([_rows(start, b, rows) for start, _, b in own], dim=1)
            theirs = torch.empty_like(mine)
            for ordered, other in (Same() if is_transposed else layout).pairs(mine, theirs):
                other.copy_(ordered)
            name = link.theirs[index].removesuffix(".weight")
            yield PeftLayer(name, torch.cat([a for _, a, _ in own]), theirs, len(own), is_transposed)


def _rows(start: int, b: torch.Tensor, rows: slice) -> torch.Tensor:
    """Return those rows of B, which begins with row `start`; 0 where it has none."""
    found = b.new_zeros((rows.stop - rows.start, b.shape[1]))
    first, last = max(start, rows.start), min(start + len(b), rows.stop)
    found[first - rows.start : last - rows.start] = b[first - start : last - start]
    return found


def write_adapters(layers: Sequence[PeftLayer], lora: LoraConfig, base: str | None, dtype: str, folder: Path) -> None:
    """Write both files into an existing folder, durable but for the folder's list of names.

    Args:
        layers: the adapters.
        lora: their rank and scale.
        base: the base's folder or hub name; None: it has no form of transformers.
        dtype: number format, as torch spells it.
        folder: the folder.

    Raises:
        OSError: a file cannot be written.
        StorageError: likewise.
    """
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        for part, values in (("A", layer.a), ("B", layer.b)):
            tensors[f"{_PREFIX}{layer.name}.lora_{part}.weight"] = values.to(getattr(torch, dtype)).contiguous()
    path = folder / ADAPTER_WEIGHTS
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(folder.stat().st_mode & 0o666)
    write_atomically(folder / ADAPTER_CONFIG, json.dumps(_config(layers, lora, base), indent=2) + "\n", "DST")


def _config(layers: Sequence[PeftLayer], lora: LoraConfig, base: str | None) -> dict[str, object]:
    assert lora.rank is not None, "there are adapters"
    rank, alpha = lora.rank, lora.rank if lora.alpha is None else lora.alpha
    several = {layer.kind: layer.count for layer in layers if layer.count > 1}
    # The scale stays what it is, though the rank is a multiple.
    growth = {kind: math.sqrt(count) if lora.rank_stabilised else count for kind, count in several.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {kind: rank * count for kind, count in several.items()},
        "alpha_pattern": {kind: alpha * factor for kind, factor in growth.items()},
        "use_rslora": lora.rank_stabilised,
        "target_modules": sorted({layer.kind for layer in layers}),
        "fan_in_fan_out": any(layer.is_transposed for layer in layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
