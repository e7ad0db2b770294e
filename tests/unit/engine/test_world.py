from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from trainer.config.schema import Dtype
from trainer.engine.world import _join, check_precision, rank_threads, warn_of_small_shared_memory
from trainer.errors import ConfigError


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        facts = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in facts.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=f"MASTER_PORT={port} is in use there"):
            _join(2, "gloo", timedelta(seconds=5))
    assert not dist.is_initialized()


@pytest.mark.parametrize("port", ["29500", "no port"])
def test_who_trains_alone_meets_nobody(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher around the shell may have left the place where others met."""
    monkeypatch.setenv("MASTER_ADDR", "node17.cluster")
    monkeypatch.setenv("MASTER_PORT", port)
    try:
        _join(1, "gloo", timedelta(seconds=5))
        assert dist.get_world_size() == 1
    finally:
        dist.destroy_process_group()


def test_an_old_gpu_may_not_compute_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False, raising=False)
    with pytest.raises(ConfigError, match=r"precision\.dtype=fp16 needs a GPU that computes in fp16"):
        check_precision(Dtype.fp16)
    check_precision(Dtype.bf16)


def test_ranks_share_the_cores_that_the_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.engine.world.usable_cores", lambda: 5)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert rank_threads(None, 2) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert rank_threads(None, 2) == 1
    assert rank_threads(3, 2) == 3


def test_one_rank_of_a_machine_warns_of_small_shared_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.engine.world.shared_memory_problem", lambda ranks: f"too small for {ranks}")
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        warn_of_small_shared_memory(8)
    assert capsys.readouterr().err == "warning: too small for 8\n"
