"""Making the checks, each with a time-out of its own, all at once. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from trainer.doctor.finding import Check, Examined, Finding, fail, warn
from trainer.doctor.surroundings import Surroundings
from trainer.errors import TridentError, fault_line
from trainer.metrics.bounded import bounded

_REPORT = "`trident doctor --json` has the rest; the check itself is at fault"


def examine(checks: Sequence[Check], surroundings: Surroundings) -> list[Examined]:
    """Return the findings of all checks, in their order. Raises nothing, and ends in time.

    A check that raises or hangs is a finding as well: a disk that is gone keeps a process for ever.
    """
    with ThreadPoolExecutor(len(checks) or 1, "trident-doctor") as threads:
        return list(threads.map(lambda check: Examined(check, _findings(check, surroundings)), checks))


def _findings(check: Check, surroundings: Surroundings) -> tuple[Finding, ...]:
    try:
        return bounded(lambda: tuple(check.look(surroundings)), check.seconds)
    except TimeoutError:
        found = f"did not answer within {check.seconds:g} s"
        return (fail(check.name, found, "look for a disk, a driver or a server that hangs, and start again"),)
    except TridentError as error:
        return (fail(check.name, error.problems[0], "; ".join(error.hints) or "change what the line names"),)
    except ModuleNotFoundError as error:
        return (warn(check.name, f"not checked: {error}", f"`{surroundings.python} -m pip install {error.name}`"),)
    except Exception as error:
        return (warn(check.name, f"not checked: {fault_line(error)}", _REPORT),)
