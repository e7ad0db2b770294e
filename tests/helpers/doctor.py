"""One check of the doctor in a shell of its own, so that its surroundings can be broken, and mended as it says.

`python -m tests.helpers.doctor NAME [--hostfile FILE] [key=value ...]` prints the findings of a check as JSON.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.doctor.doctor import CHECKS
from trainer.doctor.examine import examine
from trainer.doctor.finding import Finding, Status
from trainer.doctor.surroundings import Surroundings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Room:
    """Surroundings that a test has broken."""

    environ: Mapping[str, str]
    cwd: Path
    python: str = sys.executable

    def look(self, check: str, *words: str, before: str = "") -> list[Finding]:
        """Return the findings of a check.

        Args:
            check: its name.
            words: settings of the config, and --hostfile.
            before: shell commands that are given before, in the same shell.
        """
        command = shlex.join([self.python, "-m", "tests.helpers.doctor", check, *words])
        done = subprocess.run(
            ["/bin/bash", "-c", f"{before}\nexec {command}"],
            env={**self.environ, "PYTHONPATH": self._path()},
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [
            Finding(one["name"], Status(one["status"]), one["found"], one["fix"])
            for one in json.loads(done.stdout.splitlines()[-1])
        ]

    def _path(self) -> str:
        named = self.environ.get("PYTHONPATH", "")
        return f"{named}{os.pathsep}{ROOT}" if named else str(ROOT)


def after(environ: Mapping[str, str], command: str) -> dict[str, str]:
    """Return the environment that a shell has after a command, such as the one that a fix is."""
    done = subprocess.run(
        ["/bin/bash", "-c", f"{command}; /usr/bin/env -0"], env=environ, capture_output=True, text=True, check=True
    )
    return dict(entry.partition("=")[::2] for entry in done.stdout.split("\0") if entry)


def look(check: str, around: Surroundings) -> list[Finding]:
    """Return the findings of a check, made in this process."""
    [found] = [one for one in CHECKS if one.name == check]
    [examined] = examine([found], around)
    return list(examined.findings)


def commands(finding: Finding) -> list[str]:
    """Return the commands of a fix."""
    return re.findall(r"`([^`]+)`", finding.fix)


def the(findings: list[Finding], name: str) -> Finding:
    """Return the only finding of a name."""
    [found] = [finding for finding in findings if finding.name == name]
    return found


def main(name: str, *words: str) -> None:
    """Print the findings of a check."""
    from trainer.config.compose import compose
    from trainer.config.schema import TridentConfig

    settings = list(words)
    hostfile = None
    if "--hostfile" in settings:
        place = settings.index("--hostfile")
        hostfile = settings[place + 1]
        del settings[place : place + 2]
    # Composing takes longer than most checks.
    config = compose(settings) if settings else TridentConfig()
    findings = look(name, Surroundings(config, hostfile=hostfile))
    found = [{"name": one.name, "status": one.status.value, "found": one.found, "fix": one.fix} for one in findings]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
