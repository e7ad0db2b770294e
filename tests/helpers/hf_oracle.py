"""Plain transformers with a folder: trained steps with torch's AdamW, and greedy texts."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.helpers.hf_families import LENGTH, VOCABULARY
from tests.helpers.parity import OPTIMIZER
from trainer.config.hf_folder import read_hf_model
from trainer.config.models import make_model
from trainer.interchange.linked_weights import LinkedWeights
from trainer.interchange.weight_files import WeightFiles

STEPS, BATCH = 3, 4
TEXTS, PROMPT, NEW = 2, 12, 64
"""Prompts of one length, so that the library need not pad, and the tokens behind each."""


@dataclass(frozen=True)
class Trained:
    """Training as transformers does it. Tensors have our names, and no padding."""

    losses: list[float]
    grad_norms: list[float]
    gradients: dict[str, torch.Tensor]
    """Of the first step, before clipping."""
    weights: dict[str, torch.Tensor]
    """After the last step."""


class _Held(WeightFiles):
    """Tensors in memory in place of a folder's."""

    def __init__(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self.folder = folder
        self._held = dict(tensors)

    def names(self) -> list[str]:
        return sorted(self._held)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._held[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self._held[name]


def tokens_of(step: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(100 + step))


def loaded(folder: Path) -> Any:
    """Return transformers' model of a folder, fp32, in evaluation mode."""
    import transformers

    library: Any = transformers
    words = {"dtype": torch.float32, "attn_implementation": "eager"}
    return library.AutoModelForCausalLM.from_pretrained(folder, **words).eval()


def _in_our_names(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = read_hf_model(folder, "SRC")
    ours = make_model(found.model, VOCABULARY).tensors
    weights = LinkedWeights(_Held(folder, tensors), found.family, found.values, ours)
    return {name: weights.read(name) for name in ours}


def trained(folder: Path) -> Trained:
    """Train transformers' model: a plain loop, as in its documentation."""
    model = loaded(folder)
    named = dict(model.named_parameters())
    decays = [p for p in named.values() if p.ndim > 1]
    plain = [p for p in named.values() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": OPTIMIZER.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=OPTIMIZER.lr, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), eps=OPTIMIZER.eps)
    losses, norms, gradients = [], [], dict[str, torch.Tensor]()
    for step in range(1, STEPS + 1):
        tokens = tokens_of(step)
        logits = model(tokens[:, :-1]).logits
        loss: Any = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        if step == 1:
            gradients = _in_our_names(folder, {name: p.grad for name, p in named.items()})
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.grad_clip)))
        adam.step()
        losses.append(float(loss.detach()))
    weights = _in_our_names(folder, {name: p.detach() for name, p in named.items()})
    return Trained(losses, norms, gradients, weights)


def prompts(name: str) -> list[list[int]]:
    """Return prompts of a case, which depend on nothing but its name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    ids: list[list[int]] = torch.randint(3, VOCABULARY, (TEXTS, PROMPT), generator=generator).tolist()
    return ids


@torch.inference_mode()
def generated(folder: Path, begun: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return what `transformers.generate` writes behind each prompt, greedily."""
    model, ids = loaded(folder), torch.tensor(begun)
    model.generation_config.eos_token_id = None
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    drawn: list[list[int]] = found[:, ids.shape[1] :].tolist()
    return drawn


@torch.inference_mode()
def logits_behind(folder: Path, begun: Sequence[Sequence[int]], drawn: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return transformers' logits for each drawn token, [texts, tokens, V]: of one pass over the whole texts."""
    texts = torch.tensor([[*first, *rest] for first, rest in zip(begun, drawn, strict=True)])
    found: torch.Tensor = loaded(folder)(texts).logits[:, len(begun[0]) - 1 : -1]
    return found
