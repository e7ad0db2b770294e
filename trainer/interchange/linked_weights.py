"""A Hugging Face folder's weights under our names: every tensor accounted for, read one at a time into our layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.errors import CheckpointError, ConfigError
from trainer.families.family import Family
from trainer.families.fields import Values
from trainer.interchange.weight_files import WeightFiles
from trainer.spec.tensors import TensorSpec

EMBEDDING, HEAD = "embedding.weight", "head.weight"


def sections_of(tensor: TensorSpec) -> tuple[int, ...]:
    """Return the rows of the fused parts of a tensor."""
    cut = tensor.cut
    return cut.sections if cut is not None and cut.dim == 0 else (tensor.shape[0],)


class LinkedWeights:
    """The tensors of a model, read from the files of another library.

    Args:
        files: the files.
        family: the family of the model.
        ours: `model.*` as plain values, its nulls resolved.
        tensors: the tensors of our model, by name.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to nothing.
    """

    def __init__(self, files: WeightFiles, family: Family, ours: Values, tensors: Mapping[str, TensorSpec]) -> None:
        self._files = files
        self._tensors = tensors
        try:
            self._links = family.links_of(ours, list(tensors))
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        self._expected = {name for link in self._links.values() for name in link.theirs}
        self._names = {self._told(name, family): name for name in files.names()}
        self._check_all(family)
        self._check_tied(family)

    def _told(self, name: str, family: Family) -> str:
        """Return the family's name of a tensor; files may lack the common prefix."""
        told = family.tensors_renamed.get(name, name)
        whole = f"{family.prefix}{told}"
        return whole if whole in self._expected and told not in self._expected else told

    def _check_all(self, family: Family) -> None:
        folder = self._files.folder
        for ours, link in self._links.items():
            tensor = self._tensors[ours]
            for name, shape in zip(link.theirs, link.shapes(tensor.shape, sections_of(tensor)), strict=True):
                if name not in self._names:
                    raise CheckpointError(f"{folder} must hold {name}, but does not")
                found = self._files.shape(self._names[name])
                if found != shape:
                    raise CheckpointError(
                        f"{name} must have shape {shape} for this model, but has {found} in {folder}; give model.* the "
                        "values of its config.json"
                    )
        unknown = [
            self._names[name]
            for name in sorted(set(self._names) - self._expected - {family.head})
            if not family.is_ignored(name) and not family.is_ignored(self._names[name])
        ]
        if unknown:
            raise CheckpointError(
                f"{folder} must hold the tensors of {family.architecture} alone, but also holds {unknown[0]}"
                f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}"
            )

    def _check_tied(self, family: Family) -> None:
        head = family.head
        if HEAD in self._tensors or head not in self._names:
            return
        embedding = self._links[EMBEDDING].theirs[0]
        first, second = (self._files.read(self._names[name]) for name in (embedding, head))
        if first.shape != second.shape or not torch.equal(first, second):
            raise CheckpointError(
                f"{self._files.folder} must hold {embedding} and {head} alike, since tie_word_embeddings is true, but "
                "they differ; set tie_word_embeddings to false in its config.json"
            )

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor of ours, whole and without padding, fp32 on CPU.

        It takes the memory of that tensor and of one of theirs.
        """
        tensor, link = self._tensors[name], self._links[name]
        whole = torch.empty(tensor.shape, dtype=torch.float32)
        for index, rows in enumerate(link.rows(tensor.shape, sections_of(tensor))):
            theirs = self._files.read(self._names[link.theirs[index]])
            for mine, other in link.pairs(index, whole[rows], theirs):
                mine.copy_(other)
        return whole
