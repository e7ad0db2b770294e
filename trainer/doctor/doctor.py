"""`trident doctor`: what this machine can run, and what is broken in it. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from trainer.config.schema import TridentConfig
from trainer.doctor import (
    compiler_checks,
    disk_checks,
    gpu_checks,
    host_checks,
    limit_checks,
    network_checks,
    peer_checks,
    progress_checks,
    service_checks,
    software_checks,
)
from trainer.doctor.doctor_screen import as_json, screen
from trainer.doctor.examine import examine
from trainer.doctor.finding import Check, Examined, Status, fail, worst
from trainer.doctor.surroundings import Surroundings
from trainer.log import tell

CHECKS: tuple[Check, ...] = (
    *software_checks.CHECKS,
    *compiler_checks.CHECKS,
    *host_checks.CHECKS,
    *limit_checks.CHECKS,
    *disk_checks.CHECKS,
    *network_checks.CHECKS,
    *peer_checks.CHECKS,
    *service_checks.CHECKS,
    *gpu_checks.CHECKS,
    *progress_checks.CHECKS,
)
"""All checks in the order in which they are shown."""
HEALTH: tuple[Check, ...] = (progress_checks.PROGRESS,)
"""Checks of a container's health. A run that makes progress is healthy, whatever else is wrong with its machine: an
orchestrator ends what is not healthy."""
FAILED = 1
"""Exit code if something fails. Docker knows 0 and 1 only."""


@dataclass(frozen=True)
class Asked:
    """Wishes of a person, or of a container engine."""

    as_json: bool = False
    is_health: bool = False
    show_all: bool = False
    hostfile: str | None = None
    ssh_port: int | None = None


def doctor_verb(arguments: Sequence[str], asked: Asked) -> int:
    """Run `trident doctor <arguments>` and return the exit code: 0, or 1 if something fails.

    Raises:
        ConfigError: the config is wrong, or the hostfile.
    """
    # Which checks there are needs no config, and a health check must not take long.
    config, broken = (TridentConfig(), []) if asked.is_health and not arguments else _composed(arguments)
    around = Surroundings(config, hostfile=asked.hostfile, ssh_port=asked.ssh_port)
    if arguments or asked.hostfile is not None:
        # A broken installation is told in a finding.
        with suppress(ImportError):
            _check(around)
    examined = [*broken, *examine(HEALTH if asked.is_health else CHECKS, around)]
    found = worst(examined)
    if asked.as_json:
        tell(json.dumps(as_json(examined), indent=2))
    else:
        # Not for one rank only: a RANK that was left behind must not silence it.
        tell(screen(examined, asked.show_all))
    return FAILED if found is Status.fail else 0


def _check(around: Surroundings) -> None:
    """Check the config as a start would, for the ranks of the hosts if there are some.

    Raises:
        ConfigError: a rule is broken, or the hostfile cannot be read.
    """
    from trainer.config.validate import validate

    config = around.config
    if config.layout.auto:
        from trainer.settling import judged

        # The layout itself is found when the run starts.
        config = judged(config)
    validate(config, around.world if around.hostfile is not None else None)


def _composed(arguments: Sequence[str]) -> tuple[TridentConfig, list[Examined]]:
    """Return the config; where a package that composes it is broken, the schema's defaults and a finding."""
    try:
        # What compose itself imports only when it needs it: a word that cannot be read would get the blame.
        import trainer.config.source  # noqa: F401
        from trainer.config.compose import compose
    except ImportError as error:
        check = Check("config", "software", lambda _: ())
        fix = "install Trident anew: `bash launch/setup.sh`; the rest is judged for the default run"
        return TridentConfig(), [Examined(check, (fail("config", f"cannot be composed: {error}", fix),))]
    return compose(list(arguments)), []
