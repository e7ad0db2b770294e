"""What the shell scripts ask about a run before it starts and after it ended. Loads no torch.

usage: facts.py gpus                          GPUs that this process may use
       facts.py hosts FILE                    the nodes of a hostfile, a line `HOST RANKS` for each
       facts.py master FILE                   where the others reach its first node
       facts.py place FILE                    which of its nodes this machine is, from 0
       facts.py folder HOST=RANKS,... [key=value ...]
                                              check the config for so many ranks on these hosts, warn if ranks that talk
                                              much would be on several, and print the run's folder
       facts.py finished [key=value ...]      exit 0 if the run in that folder has done all its steps, else 1
       facts.py again STATUS MAX STEPS [key=value ...]
                                              after an attempt that ended with STATUS: print how many seconds to wait
                                              before the next and the last step logged, or exit 1 and say why there is
                                              none. STEPS: where the attempts before it ended, with commas
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.config.validate import validate
from trainer.errors import PeerLostError, TridentError
from trainer.launcher.attempts import last_step
from trainer.launcher.environment import gpu_count
from trainer.launcher.hostfile import master_address, own_place, read_hostfile
from trainer.launcher.roster import Roster
from trainer.log import report_error, say, warn
from trainer.metrics.jsonl import read_rows
from trainer.pipeline.machines import placement_warning
from trainer.restarts import RESTARTABLE, RestartPolicy, as_exit_code
from trainer.run_folder import RunFolder


def folder(places: str, arguments: list[str]) -> Path:
    """Return the run's folder.

    Raises:
        ConfigError: the config is wrong for this number of ranks.
    """
    counts = [(host, int(ranks)) for host, _, ranks in (place.rpartition("=") for place in places.split(","))]
    config = compose(arguments)
    validate(config, sum(ranks for _, ranks in counts))
    # Only now: a mistyped count would be a list of billions.
    hosts = [host for host, ranks in counts for _ in range(ranks)]
    warning = placement_warning(make_plan(config, config.model.vocab_size or 1, len(hosts)), hosts)
    if warning is not None:
        warn(warning)
    return RunFolder.of(config).path


def finished(arguments: list[str]) -> bool:
    """Return whether the run has done all its steps."""
    config = compose(arguments)
    try:
        summary = json.loads((RunFolder.of(config).path / "summary.json").read_text(encoding="utf-8"))
        return summary["status"] == "finished" and int(summary["step"]) >= config.train.steps
    except (OSError, ValueError, KeyError):
        return False


def again(status: int, max_restarts: int, earlier: list[int], arguments: list[str]) -> str | None:
    """Return the wait in seconds and the last step logged, or None if the run is not to be started again."""
    config = compose(arguments)
    run = RunFolder.of(config)
    code = as_exit_code(status)
    if code in RESTARTABLE:
        # This node's ranks may only have lost a peer, which ended for a reason that would end it again.
        code = Roster(run.logs).told_failure() or code
    policy = RestartPolicy(max_restarts, config.launch.restart_backoff_s, option="--max-restarts")
    for step in earlier:
        policy.wait_s(PeerLostError.exit_code, step)
    step = last_step(read_rows(run.metrics))
    wait_s = policy.wait_s(code, step)
    if wait_s is None:
        if policy.reason:
            warn(f"not started again: {policy.reason}")
        return None
    return f"{wait_s:g} {step}"


def main(question: str, *arguments: str) -> int:
    """Answer one question on stdout."""
    try:
        if question == "gpus":
            say(str(gpu_count(os.environ)))
        elif question == "hosts":
            for node in read_hostfile(arguments[0]):
                say(f"{node.host} {node.slots}")
        elif question == "master":
            say(master_address(read_hostfile(arguments[0]), arguments[0]))
        elif question == "place":
            say(str(own_place(read_hostfile(arguments[0]), arguments[0])))
        elif question == "folder":
            say(str(folder(arguments[0], list(arguments[1:]))))
        elif question == "again":
            status, most, steps, *words = arguments
            found = again(int(status), int(most), [int(step) for step in steps.split(",") if step], words)
            if found is None:
                return 1
            say(found)
        else:
            return 0 if finished(list(arguments)) else 1
    except TridentError as error:
        report_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
