"""The compiler, torch's and DeepSpeed's own account of themselves, and the folder of compiled kernels. No torch."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.doctor.asking import Answer, ask
from trainer.doctor.finding import Check, Finding, fail, ok, skip, warn
from trainer.doctor.surroundings import Surroundings
from trainer.doctor.tried_folders import another_folder, try_folder

_COMPILE_S, _PROBE_S = 60.0, 120.0
_USUAL = ("/usr/bin", "/usr/local/bin", "/opt/rh/gcc-toolset-13/root/usr/bin", "/opt/rh/gcc-toolset-14/root/usr/bin")
"""Folders where a compiler may be that is not on PATH."""
_SOURCE = """
#include <Python.h>
#include <omp.h>
#include <vector>
extern "C" int doctor_threads() { std::vector<int> one(1, 1); return one[0] + omp_get_max_threads(); }
"""
"""The headers and libraries that DeepSpeed's kernels are compiled with, besides torch's own."""
_PURPOSE = "zero.offload and runtime.compile need one"


def look_at_compiler(around: Surroundings) -> Iterator[Finding]:
    """Compile, link and load a small library as torch would compile a kernel."""
    judge = fail if around.needs_compiler else warn
    name = "compiler"
    asked = around.environ.get("CXX") or "g++"
    path = _path(around)
    compiler = shutil.which(asked.split()[0], path=path)
    if compiler is None:
        yield judge(name, f"{asked} is not on PATH; {_PURPOSE}", _install(asked))
    else:
        version = ask([compiler, "--version"], 10.0, around.environ)
        problem, fix = _compiled([compiler, *asked.split()[1:]], around)
        title = version.out.splitlines()[0] if version.is_good and version.out else compiler
        if problem:
            yield judge(name, f"{title}: {problem}; {_PURPOSE}", fix)
        else:
            yield ok(name, f"{title}: compiles with Python's headers and OpenMP")
        if not around.environ.get("CXX") and shutil.which("c++", path=path) is None:
            yield judge("c++", "is not on PATH, but torch compiles kernels with it", f"`export CXX={compiler}`")
    ninja = shutil.which("ninja", path=path)
    if ninja is None:
        yield judge("ninja", f"is not on PATH; {_PURPOSE}", f"`{around.python} -m pip install ninja`")
    else:
        yield ok("ninja", ninja)


def _path(around: Surroundings) -> str:
    """Return the search path of a rank, which finds the environment's own programs first."""
    return f"{Path(around.python).parent}{os.pathsep}{around.environ.get('PATH', '')}"


def _install(asked: str) -> str:
    beside = next((found for folder in _USUAL if (found := shutil.which("g++", path=folder))), None)
    if beside is not None and asked != "g++":
        return f"`export CXX={beside}`"
    if beside is not None:
        return f"`export PATH=$PATH:{Path(beside).parent}`"
    return "`apt-get install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora, RHEL), or set CXX to a C++ compiler"


def _compiled(compiler: Sequence[str], around: Surroundings) -> tuple[str, str]:
    """Return what is wrong with a compiler, and how to mend it; two empty texts if it works."""
    with tempfile.TemporaryDirectory(prefix="trident-doctor-") as folder:
        source, library = Path(folder, "probe.cpp"), Path(folder, "probe.so")
        source.write_text(_SOURCE, encoding="utf-8")
        headers = sysconfig.get_path("include")
        words = ["-O1", "-std=c++20", "-fPIC", "-shared", "-fopenmp", f"-I{headers}", str(source), "-o", str(library)]
        answer = ask([*compiler, *words], _COMPILE_S, around.environ)
        if not answer.is_good:
            return _named(answer, headers)
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return (
                f"what it compiles in {folder} cannot be loaded ({error})",
                "set TMPDIR to a folder whose disk is not mounted with noexec",
            )
    return "", ""


def _named(answer: Answer, headers: str) -> tuple[str, str]:
    """Return the problem of a compilation that failed, and what is missing."""
    text = answer.err
    if "Python.h" in text:
        return (
            f"Python.h is not in {headers}",
            "`apt-get install python3-dev` (Fedora, RHEL: `dnf install python3-devel`)",
        )
    if "omp.h" in text or "-lgomp" in text or "-fopenmp" in text:
        return "OpenMP is missing", "`apt-get install libgomp1 g++`"
    if "c++20" in text:
        return "it knows no C++20, which torch's headers need", "use g++ 11 or newer, or set CXX to one"
    lines = [line for line in text.splitlines() if "error" in line] or [answer.told]
    return f"a small program does not compile: {lines[0].strip()}", "`apt-get install --reinstall g++`"


def look_at_kernel_folder(around: Surroundings) -> Iterator[Finding]:
    """Find a folder of kernels that cannot be written or loaded from, and locks that were left behind."""
    from trainer.engine.adam import extensions_folder, kernel_folder_problem

    folder = extensions_folder(around.environ)
    name = "kernel folder"
    elsewhere = f"`export TORCH_EXTENSIONS_DIR={shlex.quote(str(another_folder(around, 'torch_extensions')))}`"
    judge = fail if around.needs_cpu_adam or around.needs_nvme else warn
    problem = kernel_folder_problem(folder)
    if problem is not None:
        yield judge(name, problem.problems[0], problem.hints[0] if "delete" in problem.hints[0] else elsewhere)
        return
    tried = try_folder(folder)
    if tried.problem and not any(folder.glob("**/cpu_adam/*.so")):
        yield judge(name, f"{folder} cannot be written: {tried.problem}", elsewhere)
        return
    if os.statvfs(tried.folder).f_flag & os.ST_NOEXEC:
        found = f"{tried.folder} is on a disk that is mounted with noexec, so what is compiled there cannot be loaded"
        yield judge(name, found, elsewhere)
        return
    yield ok(name, str(folder))


def look_at_libraries(around: Surroundings) -> Iterator[Finding]:
    """Ask torch and DeepSpeed, in a process of their own."""
    from trainer.launcher.start import python_environment

    own = {name: value for name, value in python_environment().items() if name.startswith("PYTHON")}
    environ = {**around.environ, **own, "PATH": _path(around)}
    if not around.on_gpus:
        environ["DS_ACCELERATOR"] = "cpu"
    answer = ask([around.python, "-m", "trainer.doctor.software_probe"], _PROBE_S, environ)
    if answer.is_late:
        raise TimeoutError
    line = next((line for line in reversed(answer.out.splitlines()) if line.startswith('{"torch"')), "")
    if not line:
        yield fail(
            "torch",
            f"torch and DeepSpeed cannot be asked: {answer.told}",
            f"`{around.python} -m trainer.doctor.software_probe` shows what happens",
        )
        return
    facts: dict[str, Any] = json.loads(line)
    yield from _torch(facts["torch"], around)
    yield from _deepspeed(facts["deepspeed"], around)


def _torch(facts: Mapping[str, Any], around: Surroundings) -> Iterator[Finding]:
    reinstall = f"`{around.python} -m pip install --force-reinstall torch`"
    if "error" in facts:
        yield fail("torch", f"cannot be imported: {facts['error']}", reinstall)
        return
    backend = "NCCL" if around.on_gpus else "gloo"
    if not facts["has_nccl" if around.on_gpus else "has_gloo"]:
        if not (around.on_gpus and facts["cuda"] is None):
            yield fail("torch", f"{facts['version']} was built without {backend}, through which ranks talk", reinstall)
    else:
        yield ok("torch", f"{facts['version']}, ranks talk through {backend} {facts.get('nccl', '')}".rstrip())
    yield _cuda(facts, around)


def _cuda(facts: Mapping[str, Any], around: Surroundings) -> Finding:
    name = "CUDA"
    if not around.on_gpus:
        return skip(name, "ranks compute on the processor")
    if around.gpus == 0 and facts["devices"] == 0:
        return fail(
            name,
            "runtime.device=cuda, but this machine shows no NVIDIA GPU",
            "set runtime.device=cpu; in a container give it the GPUs: `docker run --gpus all`",
        )
    if facts["cuda"] is None:
        return fail(
            name,
            f"torch {facts['version']} was built without CUDA, but there are {around.gpus} GPUs",
            f"`{around.python} -m pip install --force-reinstall torch` from the index of CUDA wheels",
        )
    if "problem" in facts:
        return fail(
            name,
            f"torch (CUDA {facts['cuda']}) cannot use the GPUs: {facts['problem']}",
            f"install a driver for CUDA {facts['cuda']}, or a torch for the driver's CUDA that `nvidia-smi` shows",
        )
    return ok(name, f"{facts['cuda']}, {facts['devices']} devices: {', '.join(sorted(set(facts['names'])))}")


def _deepspeed(facts: Mapping[str, Any], around: Surroundings) -> Iterator[Finding]:
    if "error" in facts:
        yield fail(
            "DeepSpeed",
            f"cannot be imported: {facts['error']}",
            f"`{around.python} -m pip install --force-reinstall --no-deps deepspeed`",
        )
        return
    yield ok("DeepSpeed", f"{facts['version']}, for {facts['accelerator']}")
    kernels = {str(one["name"]): one for one in facts["kernels"]}
    kernels.pop("deepspeed_not_implemented", None)
    needed = {
        "cpu_adam": (around.needs_cpu_adam, "zero.offload with AdamW", "set optimizer.implementation=torch"),
        "async_io": (around.needs_nvme, "zero.offload=nvme", "set zero.offload=cpu"),
        "pin_memory": (around.needs_nvme, "zero.offload=nvme", "set zero.offload=cpu"),
    }
    for name, (is_needed, purpose, otherwise) in needed.items():
        if (one := kernels.get(name)) is not None:
            yield _kernel(one, fail if is_needed else warn, purpose, otherwise)
    others = [name for name in kernels if name not in needed]
    cannot = [name for name in others if not (kernels[name]["compiled"] or kernels[name]["can_compile"])]
    text = f"no run of Trident uses {', '.join(sorted(set(others) - set(cannot)))}, which could be compiled"
    yield skip("other kernels", text + (f", and {', '.join(cannot)}, which could not" if cannot else ""))


def _kernel(one: Mapping[str, Any], judge: Any, purpose: str, otherwise: str) -> Finding:
    name = f"kernel {one['name']}"
    if one["compiled"]:
        return ok(name, f"came compiled; {purpose} uses it")
    if one["can_compile"]:
        return ok(name, f"will be compiled at its first use, in about a minute; {purpose} uses it")
    fix = otherwise
    # DeepSpeed's own hint, CFLAGS and LDFLAGS, only reaches its test: torch compiles kernels without them.
    if "libaio" in str(one["said"]):
        fix = (
            "`apt-get install libaio-dev` (Fedora, RHEL: `dnf install libaio-devel`); where it is in FOLDER, "
            f"`export CPATH=FOLDER/include LIBRARY_PATH=FOLDER/lib LD_LIBRARY_PATH=FOLDER/lib`; or {otherwise}"
        )
    finding: Finding = judge(name, f"cannot be compiled, so {purpose} is not possible: {one['said']}", fix)
    return finding


CHECKS = (
    Check("compiler", "software", look_at_compiler, _COMPILE_S + 15.0),
    Check("kernel folder", "software", look_at_kernel_folder),
    Check("torch", "software", look_at_libraries, _PROBE_S + 5.0),
)
"""Checks of this file."""
