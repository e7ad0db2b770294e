"""From hand-made events to parts whose right values are known."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.profiling.breakdown import Operator, break_down

MAIN = 100


def event(cat: str, name: str, begin: float, end: float, thread: int = MAIN, **args: object) -> dict[str, Any]:
    """Times in microseconds."""
    return {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": end - begin, "pid": 1, "tid": thread, "args": args}


def mark(name: str, begin: float, end: float, thread: int = MAIN) -> dict[str, Any]:
    return event("user_annotation", f"trident {name}", begin, end, thread)


PLAIN_STEP = [
    mark("step 5", 0, 100),
    mark("phase data", 0, 5),
    mark("phase forward", 5, 40),
    mark("phase backward", 40, 70),
    mark("phase optimizer", 70, 98),
]


def test_the_cpu_is_divided_by_what_its_one_thread_does() -> None:
    events = [
        {"ph": "M", "name": "process_name"},
        *PLAIN_STEP,
        event("cpu_op", "Column", 6, 30),
        event("cpu_op", "aten::linear", 6, 20),
        event("cpu_op", "aten::addmm", 7, 18),
        mark("comm tensor all-reduce", 22, 30),
        event("cpu_op", "c10d::allreduce_", 22, 23),
        event("cpu_op", "autograd::engine::evaluate_function: Mm", 41, 60),
        event("cpu_op", "aten::mm", 42, 55),
        event("cpu_op", "aten::add_", 75, 80),
        mark("comm data reduce-scatter", 60, 64),
        mark("comm data all-reduce", 90, 95),
        # Another thread, and what comes before and after, is not the step's.
        event("cpu_op", "aten::mm", 0, 100, thread=7),
        mark("comm mesh all-reduce", 0, 100, thread=7),
        event("cpu_op", "aten::mm", 100, 200),
        mark("comm tensor all-reduce", 101, 150),
    ]
    found = break_down(events)
    assert (found.steps, found.nanoseconds, found.of_device) == (1, 100_000, False)
    assert found.parts == {
        "tensor all-reduce": 8_000,
        "data reduce-scatter": 4_000,
        "data all-reduce": 5_000,
        "optimizer": 23_000,
        "data": 5_000,
        "forward": 14_000,
        "backward": 13_000,
        "host": 28_000,
    }
    assert sum(found.parts.values()) == found.nanoseconds
    assert list(found.operators) == [
        Operator("aten::mm", 13_000, 1),
        Operator("aten::addmm", 11_000, 1),
        Operator("aten::add_", 5_000, 1),
        Operator("aten::linear", 3_000, 1),
    ]


def test_an_operator_does_not_count_what_it_waits_for() -> None:
    events = [*PLAIN_STEP, event("cpu_op", "own::matmul", 10, 30), mark("comm tensor all-gather", 12, 20)]
    assert list(break_down(events).operators) == [Operator("own::matmul", 12_000, 1)]


def test_a_compiled_program_is_work_with_the_operators_that_it_calls() -> None:
    events = [
        *PLAIN_STEP,
        event("cpu_op", "Torch-Compiled Region: 0/0", 8, 32),
        event("cpu_op", "## Call CompiledFxGraph abc ##", 10, 30),
        event("cpu_op", "aten::mm", 12, 18),
    ]
    found = break_down(events)
    assert found.parts["forward"] == 20_000
    assert list(found.operators) == [
        Operator("## Call CompiledFxGraph abc ##", 14_000, 1),
        Operator("aten::mm", 6_000, 1),
    ]


def test_collectives_in_compiled_programs_are_those_of_tensor_parallelism() -> None:
    inside = [
        event("cpu_op", "## Call CompiledFxGraph abc ##", 8, 38),
        event("cpu_op", "_c10d_functional::all_reduce", 10, 12),
        event("cpu_op", "_c10d_functional::all_reduce_", 10.5, 11.5),
        event("cpu_op", "_c10d_functional::wait_tensor", 14, 20),
        event("cpu_op", "_c10d_functional::reduce_scatter_tensor", 21, 22),
        event("cpu_op", "_c10d_functional::wait_tensor", 22, 26),
        event("cpu_op", "_c10d_functional::all_gather_into_tensor", 30, 31),
        event("cpu_op", "_c10d_functional::wait_tensor", 31, 32),
    ]
    found = break_down([*PLAIN_STEP, *inside])
    parts = {name: value for name, value in found.parts.items() if name.startswith(("tensor", "forward"))}
    assert parts == {
        "tensor all-reduce": 8_000,
        "tensor reduce-scatter": 5_000,
        "tensor all-gather": 2_000,
        "forward": 15_000,
    }
    assert list(found.operators) == [Operator("## Call CompiledFxGraph abc ##", 15_000, 1)]
    kernel = [launch(1, 10.6), on_gpu(1, "ncclDevKernel_AllReduce", 15, 25)]
    assert break_down([*PLAIN_STEP, *inside, *kernel]).parts["tensor all-reduce"] == 10_000


def test_instructions_of_a_pipeline_are_phases_and_steps_are_added_up() -> None:
    events = []
    for begin, step in ((0, 5), (1000, 6)):
        events += [
            mark(f"step {step}", begin, begin + 100),
            mark("phase data", begin, begin + 1),
            mark("phase LoadMicroBatch", begin + 1, begin + 3),
            mark("phase RecvActivation", begin + 3, begin + 30),
            mark("comm pipeline messages", begin + 4, begin + 28),
            mark("phase ForwardPass", begin + 30, begin + 50),
            event("cpu_op", "aten::mm", begin + 30, begin + 49),
            mark("phase BackwardPass", begin + 50, begin + 80),
            event("cpu_op", "aten::mm", begin + 50, begin + 80),
            mark("phase OptimizerStep", begin + 80, begin + 100),
        ]
    found = break_down(events)
    assert (found.steps, found.nanoseconds) == (2, 200_000)
    assert found.parts == {
        "pipeline messages": 48_000,
        "optimizer": 40_000,
        "data": 6_000,
        "forward": 38_000,
        "backward": 60_000,
        "host": 8_000,
    }


def launch(number: int, moment: float, thread: int = MAIN) -> dict[str, Any]:
    return event("cuda_runtime", "cudaLaunchKernel", moment, moment + 1, thread, correlation=number)


def on_gpu(number: int, name: str, begin: float, end: float, cat: str = "kernel", stream: int = 7) -> dict[str, Any]:
    return {**event(cat, name, begin, end, stream, correlation=number), "pid": 0}


def test_a_gpu_is_divided_by_what_it_does_and_when_idle_by_what_the_host_does() -> None:
    backward_thread = 101
    events = [
        *PLAIN_STEP,
        mark("comm tensor all-reduce", 20, 22),
        mark("comm data reduce-scatter", 50, 52, backward_thread),
        # The device runs behind: what forward asked for ends when the host is in backward.
        launch(1, 6),
        on_gpu(1, "gemm", 10, 45),
        launch(2, 21),
        on_gpu(2, "ncclDevKernel_AllReduce", 40, 50, stream=8),
        launch(3, 45, backward_thread),
        on_gpu(3, "gemm", 50, 70),
        launch(4, 51, backward_thread),
        on_gpu(4, "some_reduction_of_its_own", 65, 78, stream=8),
        launch(5, 72),
        on_gpu(5, "Memcpy DtoH (Device -> Pinned)", 76, 80, cat="gpu_memcpy"),
        launch(6, 88),
        on_gpu(6, "adam", 90, 99),
        # Nobody knows whose they are: one says by its name that it communicates, the other is left to the rest.
        on_gpu(99, "ncclDevKernel_Generic", 99, 99.5),
        on_gpu(98, "stray", 99.5, 100),
        # The profiler's own copy of a range, on the device.
        {**event("gpu_user_annotation", "trident comm tensor all-reduce", 0, 100, 8), "pid": 0},
    ]
    found = break_down(events)
    assert found.parts == {
        "forward": 35_000,
        "backward": 20_000,
        "tensor all-reduce": 5_000,
        "data reduce-scatter": 8_000,
        "copies": 2_000,
        "optimizer": 9_000 + 10_000,
        "mesh other": 500,
        "data": 5_000,
        "host": 5_000 + 500,
    }
    assert sum(found.parts.values()) == found.nanoseconds == 100_000
    assert found.of_device
    assert found.operators[0] == Operator("gemm", 55_000, 2)


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold a step"):
        break_down([event("cpu_op", "aten::mm", 0, 1)])
