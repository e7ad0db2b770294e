"""The process from which the ranks of a proof are forked: `python -m trainer.proving.parity_host`.

It reads one line of JSON from its input (`config`, `vocab_size`, `layouts`, `steps`), and writes lines of JSON to the
descriptor that its argument names: one a verdict, and one at the end. When its input ends, whoever asked is gone,
and it ends with all of its ranks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from trainer.config.written import from_yaml
from trainer.engine.warm_start import warm_up
from trainer.proving.faults import faults_of
from trainer.proving.proof_trials import proof_of
from trainer.proving.trying import explained, needs_adam_kernel, tried
from trainer.proving.verdict import Verdict

_MOST_TEXT = 20_000


def told(verdict: Verdict, seconds: float) -> dict[str, Any]:
    """Return a verdict as JSON."""
    trial = verdict.trial
    return {
        "trial": trial.name,
        "ranks": trial.world_size,
        "axes": sorted(axis.value for axis in trial.axes),
        "is_of_the_run": trial.is_chosen,
        "agrees": verdict.agrees,
        "errors": dict(verdict.errors),
        "worst": dict(verdict.worst),
        "findings": [
            {"text": one.text, "tensor": one.tensor or None, "error": one.error, "tolerance": one.tolerance}
            for one in verdict.findings
        ],
        "failure": verdict.failure or None,
        "details": verdict.details[-_MOST_TEXT:] or None,
        "seconds": round(seconds, 1),
    }


def _line() -> str:
    """Read the line of input, and nothing behind it."""
    found = b""
    while not found.endswith(b"\n") and (one := os.read(0, 1)):
        found += one
    return found.decode()


def _end_with_the_input() -> None:
    # Not through sys.stdin, whose lock a thread that waits for it would hold when the process ends.
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main(descriptor: int) -> int:
    """Prove what the line of input says, and answer."""
    asked: Mapping[str, Any] = json.loads(_line())
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    with os.fdopen(descriptor, "w", buffering=1) as answers:
        proof = proof_of(from_yaml(asked["config"]), asked["vocab_size"], asked["layouts"])
        warm_up(compiles=needs_adam_kernel(proof.trials))
        verdicts, begun = [], time.monotonic()
        for verdict in tried(proof, asked["steps"]):
            verdicts.append(verdict)
            answers.write(json.dumps(told(verdict, time.monotonic() - begun)) + "\n")
            begun = time.monotonic()
        faults = [
            {
                "axes": [axis.value for axis in one.axes],
                "title": one.title,
                "vectors": one.vectors_text or None,
                "trial": one.verdict.trial.name,
            }
            for one in map(explained, faults_of(verdicts))
        ]
        answers.write(json.dumps({"faults": faults}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1])))
