"""The test whether wandb can be online, made before wandb is started.

A failed online start blocks for minutes and leaves wandb unable to go offline, so it must not be tried in vain.
"""

from __future__ import annotations

import netrc
import os
import socket
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from trainer.config.schema import WandbMode
from trainer.config.wandb_variables import who_asks_for
from trainer.metrics.bounded import bounded

_DEFAULT_URL = "https://api.wandb.ai"
_PROBE_S = 2.0


@dataclass(frozen=True)
class WandbChoice:
    """The decided mode (never `auto`), and the reason if it is not online."""

    mode: WandbMode
    reason: str = ""


def choose_mode(
    asked: WandbMode, environ: Mapping[str, str] | None = None, reachable: Callable[[str], bool] | None = None
) -> WandbChoice:
    """Return the mode to start wandb in.

    `disabled` and `offline` are taken as asked. `auto` and `online` are online if there is an API key (`WANDB_API_KEY`
    or netrc) and the server answers; otherwise offline, because a missing network must not stop training.

    Args:
        asked: `logging.wandb`.
        environ: environment variables (default: the process's).
        reachable: says whether the server at a URL answers (default: a TCP connection within two seconds).
    """
    environ = os.environ if environ is None else environ
    reachable = reachable or is_reachable
    if asked in (WandbMode.disabled, WandbMode.offline):
        return WandbChoice(asked, who_asks_for(asked.value, environ) or f"logging.wandb={asked.value}")
    url = server_url(environ)
    try:
        host = urlsplit(url).hostname or ""
    except ValueError as error:
        return WandbChoice(WandbMode.offline, f"WANDB_BASE_URL={url} is no address ({error})")
    if not has_api_key(host, environ):
        return WandbChoice(WandbMode.offline, "no API key is set (WANDB_API_KEY, or `wandb login`)")
    if not reachable(url):
        return WandbChoice(WandbMode.offline, f"{url} cannot be reached from here")
    return WandbChoice(WandbMode.online)


def server_url(environ: Mapping[str, str]) -> str:
    """Return the URL of the server that wandb sends to."""
    return environ.get("WANDB_BASE_URL") or _DEFAULT_URL


def has_api_key(host: str, environ: Mapping[str, str]) -> bool:
    """Return whether wandb would find a key for `host` without asking the user."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(environ.get("HOME") or Path.home())
    candidates = [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for path in candidates:
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def is_reachable(url: str) -> bool:
    """Return whether a TCP connection to `url`, or to the proxy that leads there, opens within two seconds."""
    try:
        parts = urlsplit(url)
        proxy = urllib.request.getproxies().get(parts.scheme)
        if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        # No address of a server, such as one with a port of six digits.
        return False

    def connect() -> bool:
        with socket.create_connection((host, port), timeout=_PROBE_S):
            return True

    try:
        # The whole is bounded: the time-out of a connection does not cover the name look-up.
        return bounded(connect, _PROBE_S)
    except (OSError, TimeoutError):
        return False
