"""The name of this machine, the device that leads to the others, the port where ranks meet, and variables. No torch."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

from trainer.doctor.finding import Check, Finding, fail, ok, skip, warn
from trainer.doctor.surroundings import Surroundings
from trainer.errors import ConfigError

_INTERFACES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SLOW: Mapping[str, tuple[str, str]] = {
    "CUDA_LAUNCH_BLOCKING": ("1", "every kernel is waited for"),
    "NCCL_P2P_DISABLE": ("1", "GPUs of one machine exchange through its memory"),
    "NCCL_SHM_DISABLE": ("1", "ranks of one machine exchange through the network"),
    "NCCL_IB_DISABLE": ("1", "machines exchange over TCP"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "every collective is followed by another one"),
    "PYTHONMALLOC": ("debug", "Python checks every piece of memory"),
    "PYTHONDEVMODE": ("1", "Python checks everything"),
    "PYTHONASYNCIODEBUG": ("1", "Python checks everything"),
    "NCCL_DEBUG": ("TRACE", "NCCL writes down every call"),
}
"""Variable -> the value with which a run is slow, and why."""


def look_at_name(around: Surroundings) -> Iterator[Finding]:
    """Find a name that leads other machines nowhere, or to another machine."""
    from trainer.launcher.network import INTERFACE_VARIABLE, device_towards, place_of_own_name

    name, host = "host name", socket.gethostname()
    address, device = place_of_own_name()
    out = device_towards("")
    judge = fail if around.hostfile is not None else warn
    if device:
        yield ok(name, f"{host} is {address} on {device}, {_described(device)}")
    elif address and not around.environ.get(INTERFACE_VARIABLE):
        fix = f"correct the address of {host} in /etc/hosts"
        yield judge(
            name,
            f"{host} is {address}, which is the address of no device here, so ranks would listen nowhere",
            f"{fix}, or `export {INTERFACE_VARIABLE}={out}`" if out else fix,
        )
    elif out is not None:
        yield ok(name, f"{host} leads to this machine alone; ranks are told {out}, {_described(out)}")
    elif around.hostfile is not None:
        yield fail(
            name,
            f"{host} leads to this machine alone, and no device leads to other machines",
            f"connect it to the network, or name its device: `export {INTERFACE_VARIABLE}=DEVICE`",
        )
    else:
        yield ok(name, f"{host} leads to this machine alone; there is no network, so runs stay here")


def _described(device: str) -> str:
    import psutil

    state = psutil.net_if_stats().get(device)
    if state is None:
        return "unknown"
    speed = f"{state.speed:,} Mbit/s, " if state.speed > 0 else ""
    return f"{speed}MTU {state.mtu}"


def look_at_interfaces(around: Surroundings) -> Iterator[Finding]:
    """Find variables that name network devices which are not here."""
    import psutil

    up = sorted(name for name, state in psutil.net_if_stats().items() if state.isup)
    named = {variable: around.environ[variable] for variable in _INTERFACES if around.environ.get(variable)}
    for variable, value in named.items():
        if not _names_one(variable, value, up):
            yield fail(
                variable,
                f"names {value}, but the devices that are up are {', '.join(up)}",
                f"`unset {variable}`, or name one of them",
            )
        else:
            yield ok(variable, f"names {value}, which is up")
    if not named:
        yield skip("network devices", f"no variable names one; up are {', '.join(up)}")


def _names_one(variable: str, value: str, up: list[str]) -> bool:
    """Return whether a variable leaves a device: NCCL reads the beginnings of names, `=name` and `^left,out`."""
    if variable != "NCCL_SOCKET_IFNAME":
        return all(one in up for one in value.split(","))
    if value.startswith("^"):
        exact = value.startswith("^=")
        left_out = value.lstrip("^=").split(",")
        return any(not any(name == one if exact else name.startswith(one) for one in left_out) for name in up)
    if value.startswith("="):
        return any(one.partition(":")[0] in up for one in value[1:].split(","))
    return any(name.startswith(one.partition(":")[0]) for one in value.split(",") for name in up)


def look_at_port(around: Surroundings) -> Iterator[Finding]:
    """Find a port that ranks are to meet at and cannot."""
    from trainer.launcher.environment import MASTER_PORT
    from trainer.launcher.start import check_port, free_port

    port, name = around.config.launch.master_port, "port"
    if port is None and around.hostfile is None:
        yield ok(name, f"ranks take a free one, such as {free_port()}")
        return
    asked = port or MASTER_PORT
    try:
        check_port(asked)
    except ConfigError as error:
        reason = error.problems[0].partition("(")[2].partition(")")[0]
        other = free_port()
        how = f"set launch.master_port={other}" if port else f"give `--master-port {other}` to launch/ssh.sh"
        yield fail(name, f"{asked} cannot be listened on ({reason})", f"end what uses it, or {how}")
    else:
        yield ok(name, f"{asked} is free")


def look_at_variables(around: Surroundings) -> Iterator[Finding]:
    """Find variables that another launcher left behind, that hide the GPUs, or that make a run slow."""
    from trainer.launcher.environment import find_world, gpu_count

    environ, quiet = around.environ, True
    try:
        world = find_world(environ)
    except ConfigError as error:
        quiet = False
        yield fail("launcher", error.problems[0], "; ".join(error.hints) or "unset what another launcher left behind")
    else:
        if world is not None and world.size > 1:
            quiet = False
            yield ok("launcher", f"this process is rank {world.rank} of {world.size}")
    for variable, (slow, why) in _SLOW.items():
        if environ.get(variable, "").upper() == slow.upper():
            quiet = False
            yield warn(variable, f"is {environ[variable]}, so {why}", f"`unset {variable}`")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and around.on_gpus and around.gpus and gpu_count(environ) == 0:
        quiet = False
        yield fail(
            "CUDA_VISIBLE_DEVICES",
            f"is {visible!r}, which hides all of the {around.gpus} GPUs",
            "`unset CUDA_VISIBLE_DEVICES`",
        )
    if quiet:
        yield ok("environment", f"none of {len(environ)} variables misleads or slows a run")


CHECKS = (
    Check("host name", "network", look_at_name),
    Check("network devices", "network", look_at_interfaces),
    Check("port", "network", look_at_port),
    Check("environment", "network", look_at_variables),
)
"""Checks of this file."""
