from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from trainer.errors import PeerLostError
from trainer.loop.stop import STOP_SIGNALS, StopRequest
from trainer.topology.dist_group import DistGroup
from trainer.topology.groups import FakeGroup, Group, SingleGroup


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_only_sets_the_flag(number: signal.Signals) -> None:
    with StopRequest(SingleGroup()) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.agreed()


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with StopRequest(SingleGroup()):
        assert [signal.getsignal(number) for number in STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_second_ctrl_c_ends_at_once() -> None:
    with StopRequest(SingleGroup(), repeat_s=0.0):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_handed_on_by_the_launcher_is_not_a_second_one() -> None:
    with StopRequest(SingleGroup(), repeat_s=60.0) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_outside_the_main_thread_install_does_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=StopRequest(SingleGroup()).install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_with_peers_the_answer_comes_one_step_after_the_request() -> None:
    stop = StopRequest(FakeGroup(0, 2))
    assert not stop.agreed()
    stop.request()
    assert not stop.agreed()
    assert stop.agreed()
    assert not stop.drain()


def test_drain_without_an_exchange_is_no() -> None:
    assert not StopRequest(FakeGroup(0, 2)).drain()


class _LostPeerGroup(Group):
    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        raise RuntimeError("Connection closed by peer")

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        raise AssertionError

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        raise AssertionError


def test_a_lost_peer_is_an_error_with_its_own_exit_code() -> None:
    with pytest.raises(PeerLostError, match="closed by peer") as caught:
        StopRequest(_LostPeerGroup(0, 2)).agreed()
    assert caught.value.exit_code == 7


def _count_steps(rank: int, store: str, asked_rank: int, answers: multiprocessing.SimpleQueue[tuple[int, int]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(0, 60))
    world = dist.group.WORLD
    assert world is not None
    stop = StopRequest(DistGroup(rank, 2, world, (0, 1)))
    for step in range(1, 10):
        if rank == asked_rank and step == 3:
            stop.request()
        if stop.agreed():
            break
    answers.put((rank, step))
    dist.destroy_process_group()


@pytest.mark.dist
@pytest.mark.parametrize("asked_rank", [0, 1])
def test_two_ranks_end_after_the_same_step_when_one_is_asked(asked_rank: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[tuple[int, int]] = context.SimpleQueue()
    arguments = (str(tmp_path / "store"), asked_rank, answers)
    ranks = [context.Process(target=_count_steps, args=(rank, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert sorted(answers.get() for _ in ranks) == [(0, 4), (1, 4)]
