"""`trident doctor`: what this machine can run, and how what is broken is mended."""

from __future__ import annotations

from trainer.errors import ConfigError, TridentError
from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Option, Takes, Verb
from trainer.verbs.parse import Words

_HIGHEST_PORT = 65_535


def run(words: Words) -> int:
    """Look at everything, and print what was found."""
    from trainer.log import report_failure

    try:
        return _examined(words)
    except TridentError as error:
        # Not for one rank only: a RANK that was left behind must not silence it.
        report_failure(error)
        return error.exit_code


def _examined(words: Words) -> int:
    from trainer.doctor.doctor import Asked, doctor_verb

    port = words.value("--ssh-port")
    if port is not None and not (port.isdecimal() and 0 < int(port) <= _HIGHEST_PORT):
        raise ConfigError(f"--ssh-port must be a port, 1 to {_HIGHEST_PORT}, but is {port!r}")
    asked = Asked(
        as_json=words.has("--json"),
        is_health=words.has("--health"),
        show_all=words.has("--all"),
        hostfile=words.value("--hostfile"),
        ssh_port=None if port is None else int(port),
    )
    return doctor_verb(words.rest, asked)


VERB = Verb(
    name="doctor",
    summary="say what this machine can run, and how to mend what is broken",
    run=run,
    options=(
        Option("--json", "print one JSON object with every finding and its fix"),
        Option("--all", "show also what the run does not need"),
        Option("--hostfile", "log in to its hosts, as launch/ssh.sh would", takes=Takes.file, metavar="FILE"),
        Option(
            "--ssh-port",
            "port of the hosts' ssh servers",
            takes=Takes.number,
            metavar="PORT",
            needs="--hostfile",
        ),
        Option("--health", "look only whether the ranks that train here make progress: a container's health check"),
        *COMPOSING,
    ),
    takes_settings=True,
    text=(
        "Looks at Python and its packages, torch, CUDA and NCCL, DeepSpeed's kernels, the compiler, memory, limits, "
        "disks, clock, network, hosts, wandb and GPUs. Each finding is ok, warn or fail, the last two with a fix; "
        "what is needed follows from the groups and keys of `trident train`. Nothing is changed.",
        "Exit code 0: the run can start. 1: something fails. 2: the config or the hostfile is wrong.",
    ),
    examples=(
        "trident doctor",
        "trident doctor experiment=gpt3_1_3b_8gpu zero.offload=cpu",
        "trident doctor --hostfile hosts --json",
    ),
)
