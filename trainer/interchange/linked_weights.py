"""A Hugging Face folder's weights under our names: every tensor accounted for, read one at a time into our layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.errors import CheckpointError
from trainer.families.family import Family
from trainer.families.fields import Values
from trainer.interchange.linked_names import LinkedNames, sections_of
from trainer.interchange.weight_files import WeightFiles
from trainer.spec.tensors import TensorSpec

EMBEDDING, HEAD = "embedding.weight", "head.weight"


class LinkedWeights(LinkedNames):
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
        super().__init__(files, family, ours, tensors)
        self._files = files
        self._check_tied(family)

    def _check_tied(self, family: Family) -> None:
        head = family.head
        if HEAD in self._tensors or head not in self.names:
            return
        embedding = self.links[EMBEDDING].theirs[0]
        first, second = (self._files.read(self.names[name]) for name in (embedding, head))
        if first.shape != second.shape or not torch.equal(first, second):
            raise CheckpointError(
                f"{self._files.folder} must hold {embedding} and {head} alike, since tie_word_embeddings is true, but "
                "they differ; set tie_word_embeddings to false in its config.json"
            )

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor of ours, whole and without padding, fp32 on CPU.

        It takes the memory of that tensor and of one of theirs.
        """
        tensor, link = self._tensors[name], self.links[name]
        whole = torch.empty(tensor.shape, dtype=torch.float32)
        for index, rows in enumerate(link.rows(tensor.shape, sections_of(tensor))):
            theirs = self._files.read(self.names[link.theirs[index]])
            for mine, other in link.pairs(index, whole[rows], theirs):
                mine.copy_(other)
        return whole
