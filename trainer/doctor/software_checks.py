"""Python, and the versions of the packages that Trident asks for. No torch."""

from __future__ import annotations

import json
import os
import platform
import site
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import trainer
from trainer.doctor.asking import ask
from trainer.doctor.finding import Check, Finding, fail, ok, skip, warn
from trainer.doctor.required import (
    Installed,
    Wanted,
    installed,
    plain_name,
    versions_of_tests,
    wanted,
    wanted_python,
)
from trainer.doctor.surroundings import Surroundings

DECIDING = ("torch", "deepspeed", "numpy", "triton")
"""Packages whose versions decide numbers: the tested ones are those that were compared with an oracle."""
IMPORTED = {
    **{name: name for name in ("transformers", "accelerate", "datasets", "tokenizers", "safetensors", "wandb")},
    "jinja2": "jinja2",
    "hydra-core": "hydra",
    "rich": "rich",
    "psutil": "psutil",
    "pyyaml": "yaml",
}
"""Package -> the module that is imported. torch and deepspeed are asked more, elsewhere."""
_IMPORT = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
_IMPORT_S = 90.0


def look_at_python(around: Surroundings) -> Iterator[Finding]:
    """Find a Python that is too old, or not made for 64 bits."""
    del around
    version, name = platform.python_version(), "python"
    asked = wanted_python()
    where = f"{version} in {sys.prefix}"
    if sys.maxsize < 2**32:
        yield fail(name, f"{where} is made for 32 bits; torch is not", "install a Python made for 64 bits")
    elif asked is not None and not Wanted(name, asked).takes(version):
        yield fail(
            name,
            f"{where}, but Trident needs {asked}",
            "make the environment with a newer one: `PYTHON=python3.12 bash launch/setup.sh`",
        )
    else:
        yield ok(name, where)


def look_at_packages(around: Surroundings) -> Iterator[Finding]:
    """Find packages that are missing, that Trident cannot work with, or that hide another version."""
    everything = wanted()
    if everything is None:
        tree = Path(trainer.__file__).resolve().parents[1]
        yield warn(
            "packages",
            "Trident runs from a source tree and is not installed here, so nobody knows which versions it asks for",
            f"`{around.python} -m pip install -e {tree}`",
        )
        return
    present, tested = installed(), versions_of_tests()
    before = {plain_name(one.name) for one in everything if not one.extra}
    # A package that Trident asks for is not judged again for an extra.
    asked = [one for one in everything if not one.extra or plain_name(one.name) not in before]
    problems = [problem for one in asked for problem in _problems(one, present, tested, around)]
    yield from problems
    if not problems:
        yield ok("packages", f"all {len(before)} that Trident asks for are there, in versions that it works with")
    yield _compared(present, tested, before)


def _problems(
    one: Wanted, present: Mapping[str, Sequence[Installed]], tested: Mapping[str, str], around: Surroundings
) -> Iterator[Finding]:
    name, places = f"package {one.name}", present.get(plain_name(one.name), [])
    install = f"`{around.python} -m pip install '{one.requirement}'`"
    if not places:
        if not one.extra:
            yield fail(name, f"is not installed; Trident needs {one.requirement}", install)
        return
    first, *others = places
    if not first.version:
        yield fail(name, f"in {first.folder} was installed half", install.replace("install", "install -I", 1))
    elif not one.takes(first.version):
        who = f"the extra {one.extra} of Trident" if one.extra else "Trident"
        judge = warn if one.extra else fail
        yield judge(
            name, f"is {first.version}, but {who} needs {one.requirement}", _instead(one, first, others, install)
        )
    elif one.name in DECIDING and _public(first.version) != (known := tested.get(one.name, _public(first.version))):
        yield warn(
            name,
            f"is {first.version}; the tests, which compare numbers with an oracle, run with {known}",
            f"`{around.python} -m pip install '{one.name}=={known}'`",
        )
    if others and others[0].version != first.version:
        yield warn(
            name,
            f"is there twice: {first.version} in {first.folder} hides {others[0].version} in {others[0].folder}",
            _uncovered(first) or f"`{around.python} -m pip uninstall {one.name}`, then {install}",
        )


def _instead(one: Wanted, first: Installed, others: Sequence[Installed], install: str) -> str:
    """Return how a wrong version is replaced; what hides a good one is taken away, since pip would not reach it."""
    hint = _uncovered(first)
    if hint is None:
        return install
    good = any(one.takes(other.version) for other in others if other.version)
    return hint if good else f"{hint}, then {install}"


def _uncovered(first: Installed) -> str | None:
    """Return how to take a folder from Python's path that comes before those of pip, if it is such a folder."""
    folder = first.folder.absolute()
    named = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if folder in [Path(entry).absolute() for entry in named]:
        rest = os.pathsep.join(entry for entry in named if Path(entry).absolute() != folder)
        return f"`export PYTHONPATH={rest}`" if rest else "`unset PYTHONPATH`"
    if site.ENABLE_USER_SITE and folder == Path(site.getusersitepackages()).absolute():
        return "`export PYTHONNOUSERSITE=1`"
    return None


def _compared(present: Mapping[str, Sequence[Installed]], tested: Mapping[str, str], names: set[str]) -> Finding:
    title = "tested versions"
    if not tested:
        return skip(title, "the list of tested versions is not in this installation")
    known = sorted(name for name in names if name in tested and present.get(name))
    differ = [
        f"{name} {present[name][0].version} (tested {tested[name]})"
        for name in known
        if _public(present[name][0].version) != tested[name]
    ]
    same = f"{len(known) - len(differ)} of {len(known)} packages are those that the tests run with"
    return ok(title, f"{same}; others: {', '.join(differ)}" if differ else same)


def _public(version: str) -> str:
    """Return a version without the mark of a build: `2.13.0+cpu` is 2.13.0."""
    return version.partition("+")[0]


def look_at_imports(around: Surroundings) -> Iterator[Finding]:
    """Find packages that are installed but cannot be imported, such as one whose libraries are gone."""
    from trainer.launcher.start import python_environment

    known = installed()
    modules = {module: name for name, module in IMPORTED.items() if name in known}
    answer = ask([around.python, "-c", _IMPORT, *modules], _IMPORT_S, {**around.environ, **_own(python_environment())})
    if answer.is_late:
        raise TimeoutError
    try:
        broken: dict[str, str] = json.loads(answer.out.splitlines()[-1])
    except (ValueError, IndexError):
        yield fail("imports", f"Python could not say what it can import: {answer.told}", f"`{around.python} -V`")
        return
    for module, reason in broken.items():
        line = reason.splitlines()[0]
        yield fail(
            f"import {module}",
            line,
            f"`{around.python} -m pip install --force-reinstall --no-deps {modules[module]}`",
        )
    if not broken:
        yield ok("imports", f"{', '.join(modules)}")


def _own(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which another Python finds this very package."""
    return {name: environment[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH") if name in environment}


CHECKS = (
    Check("python", "software", look_at_python),
    Check("packages", "software", look_at_packages),
    Check("imports", "software", look_at_imports, _IMPORT_S + 5.0),
)
"""Checks of this file."""
