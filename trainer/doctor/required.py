"""The packages that Trident asks for, the versions that its tests run with, and those that are installed. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distributions, metadata, requires
from pathlib import Path

TRIDENT = "trident-trainer"
_TESTED = Path(__file__).with_name("constraints.txt")
"""The file of versions that the tests run with; a link in a source tree, a copy in an installed package."""


@dataclass(frozen=True)
class Wanted:
    """One package that Trident asks for."""

    name: str
    versions: str
    """Versions that are good, as pip writes them; empty: all."""
    extra: str = ""
    """Extra of Trident that asks for it; empty: Trident itself."""

    @property
    def requirement(self) -> str:
        """The package and its versions, as pip takes them."""
        return f"{self.name}{self.versions}"

    def takes(self, version: str) -> bool:
        """Return whether a version is good. Pre-releases count as what they precede."""
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(self.versions).contains(version, prereleases=True)


@dataclass(frozen=True)
class Installed:
    """A package that can be imported from a folder of sys.path."""

    version: str
    folder: Path


def plain_name(name: str) -> str:
    """Return a package's name as pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted_python() -> str | None:
    """Return the versions of Python that Trident asks for, or None if it is not installed as a package."""
    try:
        return str(metadata(TRIDENT)["Requires-Python"])
    except PackageNotFoundError:
        return None


def wanted() -> list[Wanted] | None:
    """Return what the installed Trident asks for, or None if it is not installed as a package, and nobody can tell."""
    from packaging.requirements import Requirement

    try:
        texts = requires(TRIDENT) or []
    except PackageNotFoundError:
        return None
    found = []
    for text in texts:
        parsed = Requirement(text)
        marker = str(parsed.marker or "")
        extra = re.search(r'extra == "([\w-]+)"', marker)
        found.append(Wanted(parsed.name, str(parsed.specifier), extra[1] if extra else ""))
    return found


def versions_of_tests(file: Path = _TESTED) -> dict[str, str]:
    """Return name -> version of the packages that the tests run with; empty if the file is not there.

    Args:
        file: lines `name==version`, and comments.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split("==") for line in lines if re.fullmatch(r"[\w.-]+==\S+", line))
    return {plain_name(name): version for name, version in pairs}


def installed(folders: Sequence[str] | None = None) -> dict[str, list[Installed]]:
    """Return name -> the package as each folder has it, the one that Python imports first.

    Args:
        folders: folders in Python's order (default: those of sys.path).
    """
    found: dict[str, list[Installed]] = {}
    for folder in dict.fromkeys(sys.path if folders is None else folders):
        for one in distributions(path=[folder or "."]):
            name = _name(one)
            if name:
                found.setdefault(name, []).append(Installed(_version(one), Path(folder or ".")))
    return found


def _name(one: Distribution) -> str:
    # An interrupted installation leaves a folder without a name or a version.
    return plain_name(str(one.metadata["Name"] or "")) if one.metadata else ""


def _version(one: Distribution) -> str:
    return str(one.metadata["Version"] or "")
