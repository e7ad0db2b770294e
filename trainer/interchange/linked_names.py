"""The tensors of a Hugging Face folder under our names, by what its files say: each accounted for. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from trainer.errors import CheckpointError, ConfigError
from trainer.families.family import Family
from trainer.families.fields import Values
from trainer.spec.tensors import TensorSpec


def sections_of(tensor: TensorSpec) -> tuple[int, ...]:
    """Return the rows of the fused parts of a tensor."""
    cut = tensor.cut
    return cut.sections if cut is not None and cut.dim == 0 else (tensor.shape[0],)


class Listed(Protocol):
    """Names and shapes of the tensors of a folder."""

    @property
    def folder(self) -> Path:
        """The folder."""

    def names(self) -> list[str]:
        """Return the names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""


class LinkedNames:
    """The tensors of a model, found among those of another library.

    Args:
        listed: the others.
        family: the family of the model.
        ours: `model.*` as plain values, its nulls resolved.
        tensors: the tensors of our model, by name.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or belongs to nothing.
    """

    def __init__(self, listed: Listed, family: Family, ours: Values, tensors: Mapping[str, TensorSpec]) -> None:
        self._listed = listed
        self._tensors = tensors
        try:
            self.links = family.links_of(ours, list(tensors))
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        self._expected = {name for link in self.links.values() for name in link.theirs}
        self.names = {self._told(name, family): name for name in listed.names()}
        """The family's name of each of theirs -> its name in the files."""
        self._check_all(family)

    def _told(self, name: str, family: Family) -> str:
        """Return the family's name of a tensor; files may lack the common prefix."""
        told = family.tensors_renamed.get(name, name)
        whole = f"{family.prefix}{told}"
        return whole if whole in self._expected and told not in self._expected else told

    def _check_all(self, family: Family) -> None:
        folder = self._listed.folder
        for ours, link in self.links.items():
            tensor = self._tensors[ours]
            for name, shape in zip(link.theirs, link.shapes(tensor.shape, sections_of(tensor)), strict=True):
                if name not in self.names:
                    raise CheckpointError(f"{folder} must hold {name}, but does not")
                found = self._listed.shape(self.names[name])
                if found != shape:
                    raise CheckpointError(
                        f"{name} must have shape {shape} for this model, but has {found} in {folder}; give model.* the "
                        "values of its config.json"
                    )
        unknown = [
            self.names[name]
            for name in sorted(set(self.names) - self._expected - {family.head})
            if not family.is_ignored(name) and not family.is_ignored(self.names[name])
        ]
        if unknown:
            raise CheckpointError(
                f"{folder} must hold the tensors of {family.architecture} alone, but also holds {unknown[0]}"
                f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}"
            )
