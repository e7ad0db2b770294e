from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch.distributed as dist

from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.engine.world import _join
from trainer.errors import ConfigError


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        facts = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in facts.items():
            monkeypatch.setenv(name, value)
        plan = make_plan(compose(["data=synthetic", "layout=dp2"]), 100, 2)
        with pytest.raises(ConfigError, match=f"MASTER_PORT={port} is in use there"):
            _join(plan, "gloo", timedelta(seconds=5))
    assert not dist.is_initialized()
