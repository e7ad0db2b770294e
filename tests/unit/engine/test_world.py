from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.engine.world import _check_precision, _join
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


@pytest.mark.parametrize("port", ["29500", "no port"])
def test_who_trains_alone_meets_nobody(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher around the shell may have left the place where others met."""
    monkeypatch.setenv("MASTER_ADDR", "node17.cluster")
    monkeypatch.setenv("MASTER_PORT", port)
    plan = make_plan(compose(["data=synthetic"]), 100, 1)
    try:
        _join(plan, "gloo", timedelta(seconds=5))
        assert dist.get_world_size() == 1
    finally:
        dist.destroy_process_group()


def test_a_cpu_computes_in_fp16_but_an_old_gpu_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(compose(["data=synthetic", "precision=fp16"]), 100, 1)
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False, raising=False)
    with pytest.raises(ConfigError, match=r"precision\.dtype=fp16 needs a GPU that computes in fp16"):
        _check_precision(plan, torch.device("cuda", 0))
    _check_precision(plan, torch.device("cpu"))
    assert get_accelerator().is_fp16_supported()
