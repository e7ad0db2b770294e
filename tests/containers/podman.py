"""Images that are really built and containers that really run, with Debian's podman, buildah and mmdebstrap, as root.

The base image is made of Debian packages, so no image registry is asked. Packages of Python come from wherever pip on
this machine gets them: its configuration and the folders that it names are mounted while an image is built, and are in
no layer of it.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/trident-base:bookworm"
PACKAGES = "ca-certificates,python3,python3-venv,python3-dev,python-is-python3"
COMMANDS = ("podman", "buildah", "mmdebstrap")
USER = 10001
Done = subprocess.CompletedProcess[str]


def missing() -> str | None:
    """Return why no image can be built here, or None."""
    lacking = [name for name in COMMANDS if shutil.which(name) is None]
    if lacking:
        return f"apt-get install podman buildah mmdebstrap runc iptables: {', '.join(lacking)} is not there"
    return None if os.getuid() == 0 else "needs root"


@dataclass(frozen=True)
class Engine:
    """podman and buildah, told what this machine can do.

    Args:
        folder: where their configuration is written.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment with limits that this process may set, and a runtime for its control groups."""
        path = self.folder / "containers.conf"
        if not path.exists():
            limits = {"nofile": (resource.RLIMIT_NOFILE, 1 << 16), "nproc": (resource.RLIMIT_NPROC, 1 << 13)}
            words = []
            for name, (number, most) in limits.items():
                hard = resource.getrlimit(number)[1]
                value = most if hard == resource.RLIM_INFINITY else min(most, hard)
                words.append(f'"{name}={value}:{value}"')
            # crun refuses a machine that mounts both versions of control groups.
            runtime = 'runtime = "runc"\n' if shutil.which("runc") else ""
            path.write_text(f"[containers]\ndefault_ulimits = [{', '.join(words)}]\n[engine]\n{runtime}")
        return {**os.environ, "CONTAINERS_CONF": str(path)}

    def call(self, *words: str | Path, timeout_s: float = 120, check: bool = True, **variables: str) -> Done:
        """Run a command to its end.

        Raises:
            AssertionError: it failed, and `check` says that it must not.
        """
        done = subprocess.run(
            [str(word) for word in words],
            # Where a container is out of memory, its monitor leaves a file in the current folder.
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done

    def podman(self, *words: str | Path, timeout_s: float = 120, check: bool = True) -> Done:
        """Run podman."""
        return self.call("podman", *words, timeout_s=timeout_s, check=check)

    def base(self) -> str:
        """Return the name of a base image with Python, made of Debian's packages if there is none yet."""
        name = os.environ.get("TRIDENT_TEST_BASE", BASE)
        if name == BASE and self.podman("image", "exists", BASE, check=False).returncode != 0:
            tar = self.folder / "base.tar"
            self.call("mmdebstrap", "--variant=apt", f"--include={PACKAGES}", "bookworm", tar, timeout_s=900)
            self.podman("import", tar, BASE, timeout_s=300)
            tar.unlink()
        return name

    def build(self, dockerfile: str, tag: str, base: str) -> Done:
        """Build an image as it is in docker/, on that base."""
        words = ["buildah", "bud", "--format", "docker", "--layers", "--network", "host"]
        if shutil.which("runc"):
            words += ["--runtime", "runc"]
        words += ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
        words += [f"--volume={source}:{target}:ro" for source, target in self._pip().items()]
        words += ["--build-arg", f"BASE_IMAGE={base}", "--file", str(ROOT / "docker" / dockerfile), "--tag", tag]
        return self.call(*words, str(ROOT), timeout_s=2400, check=False)

    def _pip(self) -> Mapping[str, str]:
        """Write this machine's pip configuration into one file; return what to mount where."""
        told = self.call(sys.executable, "-m", "pip", "config", "list").stdout
        settings: dict[str, str] = {}
        # Variables come after files, and win there too.
        for line in sorted(told.splitlines(), key=lambda line: line.startswith(":env:")):
            match = re.fullmatch(r"[^.]*\.([a-z-]+)='(.*)'", line)
            if match is not None and match[1] != "constraint":
                settings[match[1]] = match[2].replace("\\n", " ")
        path = self.folder / "pip.conf"
        path.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        mounted = {str(path): "/etc/pip.conf"}
        for word in " ".join(settings.values()).split():
            place = word.removeprefix("file://")
            if place.startswith("/") and Path(place).exists():
                # An index in files has links to others beside it.
                place = str(Path(place).parent) if place != word else place
                mounted[place] = place
        return mounted


class Container:
    """A container in the background. Leaving the `with` block removes it.

    Args:
        engine: what starts it.
        name: of the container.
        words: options, image and command of `podman run`.
    """

    def __init__(self, engine: Engine, name: str, words: Sequence[str]) -> None:
        self.name = name
        self._engine = engine
        engine.podman("run", "--detach", "--name", name, *words)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.podman("rm", "--force", "--time", "0", "--volumes", self.name, check=False)

    def output(self) -> str:
        """Return what it has written so far."""
        done = self._engine.podman("logs", self.name)
        return done.stdout + done.stderr

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and return its exit code."""
        return int(self._engine.podman("wait", self.name, timeout_s=timeout_s).stdout)

    def stop(self, timeout_s: int) -> float:
        """Stop it as `docker stop` does; return how long that took."""
        start = time.monotonic()
        self._engine.podman("stop", "--time", str(timeout_s), self.name, timeout_s=timeout_s + 30)
        return time.monotonic() - start
