"""Making the checks, each with a time-out of its own, all at once. No torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from trainer.doctor.finding import Check, Examined, Finding, fail, warn
from trainer.doctor.surroundings import Surroundings
from trainer.errors import TridentError, fault_line
from trainer.machine import usable_cores
from trainer.metrics.bounded import bounded

_BUSY = 4.0
"""Processes that want a processor, for each one, from which on a machine is busy."""
_REPORT = "`trident doctor --json` has the rest; the check itself is at fault"


def examine(checks: Sequence[Check], surroundings: Surroundings) -> list[Examined]:
    """Return the findings of all checks, in their order. Raises nothing, and ends in time.

    A check that raises or hangs is a finding as well: a disk that is gone keeps a process for ever.
    """
    found: dict[int, tuple[Finding, ...]] = {}

    def look(place: int) -> None:
        found[place] = _findings(checks[place], surroundings)

    # Threads that nobody waits for when the process is asked to end.
    threads = [threading.Thread(target=look, args=(place,), daemon=True) for place in range(len(checks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [Examined(check, found[place]) for place, check in enumerate(checks)]


def _findings(check: Check, surroundings: Surroundings) -> tuple[Finding, ...]:
    try:
        return bounded(lambda: tuple(check.look(surroundings)), check.seconds)
    except TimeoutError:
        return (_late(check, os.getloadavg()[0], usable_cores()),)
    except TridentError as error:
        return (fail(check.name, error.problems[0], "; ".join(error.hints) or "change what the line names"),)
    except ModuleNotFoundError as error:
        return (warn(check.name, f"not checked: {error}", f"`{surroundings.python} -m pip install {error.name}`"),)
    except Exception as error:
        return (warn(check.name, f"not checked: {fault_line(error)}", _REPORT),)


def _late(check: Check, load: float, cores: int) -> Finding:
    """Return the finding that there was no answer, which is no fault of a machine that has other things to do."""
    found = f"did not answer within {check.seconds:g} s"
    if load > _BUSY * cores:
        busy = f"{found}, while {load:.0f} processes want {cores} processors"
        return warn(check.name, busy, "ask again when this machine has less to do")
    return fail(check.name, found, "look for a disk, a driver or a server that hangs, and start again")
