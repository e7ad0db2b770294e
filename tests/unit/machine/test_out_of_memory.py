"""What a rank says when it is refused memory."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable

import pytest
import torch

from tests.helpers.published import gpt_plan
from trainer import out_of_memory
from trainer.config.plan import RunPlan
from trainer.errors import OutOfMemoryError, StorageError
from trainer.machine import MemoryLimit
from trainer.metrics.memory import STATUS, sizes_in
from trainer.out_of_memory import MemoryWatch, is_on_device, is_on_host, refused_bytes
from trainer.planner.post_mortem import Held, PostMortem
from trainer.progress import Progress, current, follow
from trainer.topology.groups import single_process_groups

PLAN = gpt_plan(hidden=8, heads=1, layers=1, vocab=8, length=8, pp=1, tp=1, dp=1, micro_batch=1, global_batch=1)
MIB = 1 << 20


def refused() -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 58, dtype=torch.uint8)
    return raised.value


class Asked:
    """Remembers what a post-mortem is made of."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[tuple[int, str, Held]] = []
        self.are_on_host: list[bool] = []

    def __call__(self, plan: RunPlan, rank: int, moment: str, held: Held, is_on_host: bool) -> PostMortem:
        assert plan is PLAN
        self.are_on_host.append(is_on_host)
        self.calls.append((rank, moment, held))
        if self.error is not None:
            raise self.error
        return PostMortem(("a table",), ("model.recompute=full",))


class Engine:
    def held_bytes(self) -> dict[str, int]:
        return {"weights": 5, "moments": 10}


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "memory_limit", lambda: None)


@pytest.fixture
def watch(no_limit: None) -> MemoryWatch:
    """Of a rank that has a plan, and begins to build its engine."""
    made = MemoryWatch(single_process_groups(), Asked())
    made.begin(PLAN)
    return made


def told(watch: MemoryWatch, error: BaseException) -> OutOfMemoryError:
    found = watch.in_our_words(error)
    assert isinstance(found, OutOfMemoryError)
    assert "\n" not in str(found)
    return found


@pytest.mark.usefixtures("no_limit")
def test_before_there_is_a_plan_there_are_words_and_no_table() -> None:
    found = told(MemoryWatch(single_process_groups(), Asked()), refused())
    assert str(found).startswith(
        "the model must fit into host memory, but: can't allocate memory: you tried to allocate"
    )
    assert found.details == ()
    assert found.hints[0].startswith("start fewer ranks on this machine")


def test_the_limit_of_a_container_is_named(watch: MemoryWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_memory, "memory_limit", lambda: MemoryLimit(2 << 30, 1 << 30))
    assert str(told(watch, MemoryError())) == (
        "the model must fit into host memory, of which this container or job may have 2 GiB, but: an allocation failed"
    )


def test_the_table_and_the_change_that_fits_are_told(watch: MemoryWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress()
    before = current()
    follow(progress)
    progress.begin_step(3)
    progress.enter("backward", 2)
    asked = Asked()
    monkeypatch.setattr(watch, "_explain", asked)
    watch.engine = Engine()  # type: ignore[assignment]
    kept = torch.ones(64 * MIB // 4)
    found = told(watch, refused())
    follow(before)
    del kept
    assert found.details == ("a table",)
    assert found.hints[0] == "this change is predicted to fit: model.recompute=full (added to the same command)"
    assert len(found.hints) == 3
    [(rank, moment, held)] = asked.calls
    assert (rank, moment) == (0, "in the backward pass of step 3")
    assert held.tensors == (("weights", 5), ("moments", 10))
    assert held.refused == 1 << 58
    # Whatever else this process does meanwhile, the tensor is there.
    assert held.total >= 64 * MIB
    assert held.limit is not None
    assert held.total <= held.limit


def test_the_tightest_limit_counts(watch: MemoryWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(limit: Callable[[], MemoryLimit | None]) -> int:
        monkeypatch.setattr(out_of_memory, "memory_limit", limit)
        explain = Asked()
        monkeypatch.setattr(watch, "_explain", explain)
        told(watch, MemoryError())
        limit_bytes = explain.calls[0][2].limit
        assert limit_bytes is not None
        return limit_bytes - explain.calls[0][2].total

    free = asked(lambda: None)
    assert free > 20 * MIB
    assert asked(lambda: MemoryLimit(8 * MIB, 4 * MIB)) <= 4 * MIB
    assert asked(lambda: MemoryLimit(8 * MIB, None)) > 4 * MIB
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, hard = resource.getrlimit(kind)
        used = sizes_in(STATUS)["VmSize" if kind == resource.RLIMIT_AS else "VmData"]
        resource.setrlimit(kind, (used + 16 * MIB, hard))
        try:
            assert asked(lambda: None) <= 16 * MIB
        finally:
            resource.setrlimit(kind, (soft, hard))


def test_a_post_mortem_that_fails_does_not_hide_what_happened(
    watch: MemoryWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_explain", Asked(ValueError("a bug")))
    found = told(watch, MemoryError())
    assert found.details == ("what held the memory cannot be told: ValueError: a bug",)
    assert found.hints[0].startswith("start fewer ranks")


def test_the_device_is_measured_with_what_others_hold_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = MemoryWatch(single_process_groups(torch.device("cuda:0")), asked := Asked())
    watch.begin(PLAN)
    # Of 16 GiB a process may take 8; it holds 6, at the most 7, and 2 are held besides.
    figures = {"mem_get_info": (8, 16), "memory_reserved": 6, "max_memory_reserved": 7, "max_memory_allocated": 5}
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: figure)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.5)
    found = told(watch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nmore"))
    assert str(found) == (
        "the model must fit into device memory, but: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"
    )
    [(_, _, held)] = asked.calls
    assert held == Held(total=7 + 2, limit=8 + 2, refused=2 << 30, overhead=2)
    monkeypatch.setattr(out_of_memory, "_left_bytes", lambda: 5)
    told(watch, MemoryError())
    held = asked.calls[1][2]
    assert (held.limit, held.overhead) == (held.total + 5, 0)
    assert asked.are_on_host == [False, True]


@pytest.mark.parametrize(
    ("error", "host", "device"),
    [
        (MemoryError(), True, False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True, False),
        (OSError(errno.ENOSPC, "No space left on device"), False, False),
        (RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"), True, False),
        (RuntimeError("std::bad_alloc"), True, False),
        (torch.OutOfMemoryError("CUDA out of memory."), False, True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), False, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), False, True),
        (RuntimeError("shapes do not match"), False, False),
    ],
)
def test_which_memory_ran_out(error: Exception, host: bool, device: bool) -> None:
    assert (is_on_host(error), is_on_device(error)) == (host, device)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("you tried to allocate 1000 bytes. Error", 1000),
        ("Tried to allocate 1.50 GiB.", 3 << 29),
        ("Tried to allocate 20.00 MiB.", 20 * MIB),
        ("out of memory", 0),
    ],
)
def test_what_was_asked_for(text: str, size: int) -> None:
    assert refused_bytes(RuntimeError(text)) == size


def test_other_errors_stay_as_they_are(watch: MemoryWatch) -> None:
    for error in (
        RuntimeError("shapes do not match"),
        OutOfMemoryError("x"),
        StorageError("disk"),
        KeyboardInterrupt(),
    ):
        assert watch.in_our_words(error) is error
