"""Train with one bad batch, and without it: what the tests of skipped steps share.

Functions that take `rank` run in forked ranks; several cases follow one another in the same ranks.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tests.dist.resume_fixtures import Run, run_config, tokens_of
from tests.helpers.batches import micro_batches_of
from tests.helpers.parity import OPTIMIZER, VOCABULARY, Case

BAD, LAST = 2, 3
"""The step whose batch is bad, and the last one."""
EMPTY = "no counted token"
MATRIX, NORM = "blocks.0.mlp.up.weight", "final_norm.weight"
ONE_HEAD = "blocks.0.attention.qkv.weight"
"""With one head of keys and values it has rows that all ranks hold."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong in step BAD of a case.

    `parameter`: its gradient becomes NaN on `rank`. None: the loss is above the limit that it is given. `EMPTY`: no
    token of the batch counts.
    """

    case: Case
    parameter: str | None = MATRIX
    rank: int = 0
    after_reduction: bool = False
    """Whether only this rank's copy of the gradient is bad, as by a fault of its memory."""

    @property
    def is_gradient(self) -> bool:
        return self.parameter not in (None, EMPTY)

    @property
    def name(self) -> str:
        what = f"{self.parameter} on rank {self.rank}" if self.is_gradient else self.parameter or "loss"
        return f"{self.case.name}: {what}"


@dataclass
class Seen:
    """What one rank saw."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    empty: list[bool] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    """What the bad step changed."""
    counters: dict[str, float] = field(default_factory=dict)
    """That the bad step changed, with their new values."""
    wrong: list[str] = field(default_factory=list)
    """What is not, at the end, as in a run without the bad batch."""


class _EngineFixture:
    def __init__(
        self, case: Case, rank: int, world_size: int, hidden_size: int | None = None, num_layers: int | None = None
    ) -> None:
        from trainer.config.plan import make_plan
        from trainer.engine.build import build_engine
        from trainer.engine.world import start_world

        config = run_config(Run(case))
        # An overflow must not change the scale here, nor its absence: fp16 would round in another place.
        config = replace(config, precision=replace(config.precision, loss_scale_window=1000))
        if hidden_size is not None:
            config = replace(config, model=replace(config.model, hidden_size=hidden_size, ffn_hidden_size=None))
            config = replace(config, zero=replace(config.zero, reduce_bucket_size=1000))
        if num_layers is not None:
            config = replace(config, model=replace(config.model, num_layers=num_layers))
        self.plan = make_plan(config, VOCABULARY, world_size)
        self.groups = start_world(self.plan.mesh, self.plan.config.runtime, torch.device("cpu"))
        self.engine: Any = build_engine(self.plan, self.groups)
        self._dp_rank = self.groups.mesh.coordinate(rank).dp_rank

    def batches(self, step: int, is_empty: bool = False) -> Any:
        tokens = tokens_of(step)
        # Half of the labels do not count, the other half counts nothing.
        weights = -torch.ones_like(tokens[:, 1:], dtype=torch.float32).tril() if is_empty else None
        return micro_batches_of(tokens, self.plan, self._dp_rank, step, weights)

    def step(self, step: int, loss_limit: float = math.inf, is_empty: bool = False) -> Any:
        return self.engine.train_step(self.batches(step, is_empty), OPTIMIZER.lr, loss_limit)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return masters, moments, and what forward reads."""
        fragments = self.engine.fragments()
        held = {f"{f.kind}/{f.spec.name}/{f.tp_rank}/{f.start}": f.values for f in fragments}
        return held | {f"local/{name}": tensor for name, tensor in self.engine.local_parameters().items()}

    def parameter(self, name: str) -> torch.nn.Parameter:
        from trainer.tensor_parallel.shard import shard_spec

        found: list[torch.nn.Parameter] = [
            p for p in self.engine._engine.module.parameters() if shard_spec(p).name == name
        ]
        # Rows that ranks share are a parameter of their own, after the sharded one.
        assert len(found) == (2 if name == ONE_HEAD else 1), name
        return found[-1]


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    assert before.keys() == after.keys()
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


def _nothing() -> None:
    pass


def _break(fixture: _EngineFixture, fault: Fault) -> Callable[[], None]:
    """Make the gradient of the next step bad; return what ends that."""
    parameter: Any = fixture.parameter(str(fault.parameter))
    inner = fixture.engine._engine
    if not fault.after_reduction:

        def spoil(grad: torch.Tensor | None) -> torch.Tensor | None:
            if grad is None:
                # The layer has added it where it belongs.
                parameter.grad.fill_(math.nan)
                return None
            return torch.full_like(grad, math.nan)

        handle = parameter.register_hook(spoil)
        return lambda: handle.remove()
    take = inner._take_model_step

    def broken(lr_kwargs: Any) -> None:
        (parameter.grad if inner.optimizer is inner.basic_optimizer else parameter._hp_grad).fill_(math.nan)
        take(lr_kwargs)

    inner._take_model_step = broken

    def undo() -> None:
        del inner._take_model_step

    return undo


def _with_bad_step(fixture: _EngineFixture, fault: Fault, rank: int) -> Seen:
    seen = Seen()
    for step in range(1, LAST + 1):
        before, counters = (fixture.tensors(), fixture.engine.scalars()) if step == BAD else ({}, {})
        limit, undo = math.inf, _nothing
        if step == BAD and fault.parameter is None:
            limit = 0.5 * seen.losses[0]
        elif step == BAD and fault.is_gradient and rank == fault.rank:
            undo = _break(fixture, fault)
        result = fixture.step(step, limit, is_empty=step == BAD and fault.parameter == EMPTY)
        undo()
        seen.losses.append(float(result.loss))
        seen.norms.append(float(result.grad_norm))
        seen.skipped.append(result.skipped)
        seen.empty.append(result.is_empty)
        if step == BAD:
            seen.touched = _changed(before, fixture.tensors())
            after = fixture.engine.scalars()
            seen.counters = {name: value for name, value in after.items() if value != counters[name]}
    return seen


def train_with_faults(rank: int, world_size: int, faults: Sequence[Fault]) -> list[Seen]:
    """Train each case with its fault, and again without the bad batch."""
    outcomes = []
    for fault in faults:
        fixture = _EngineFixture(fault.case, rank, world_size)
        seen = _with_bad_step(fixture, fault, rank)
        ended = fixture.tensors()
        del fixture
        gc.collect()
        fixture = _EngineFixture(fault.case, rank, world_size)
        for step in range(1, LAST + 1):
            if step != BAD:
                assert not fixture.step(step).skipped
        seen.wrong = _changed(fixture.tensors(), ended)
        outcomes.append(seen)
        del fixture
        gc.collect()
    return outcomes


def _spin(*_: object) -> None:
    while True:
        pass


class _Source:
    """Batches of a fixture's rank; the second one never comes if `sleeps`."""

    def __init__(self, fixture: _EngineFixture, sleeps: bool) -> None:
        self._fixture, self._sleeps = fixture, sleeps
        self.tokens = fixture.plan.tokens_per_step
        self.names = ("data",)

    def micro_batches(self, position: int, step: int | None = None) -> Any:
        if self._sleeps and position >= self.tokens:
            time.sleep(600)
        return self._fixture.batches(1 + position // self.tokens)

    def ledger(self, previous: str, position: int, step: int | None = None) -> str:
        return previous


def train_with_watchdog(rank: int, world_size: int, fault: str, folder: Path, timeout_s: float) -> None:
    """Train two stages under a watchdog; the second stands still in its data, a forward pass, or an evaluation."""
    from trainer.data.batches import HeldOut
    from trainer.launcher.watchdog import Watchdog
    from trainer.log import use_terminal
    from trainer.loop.session import Session
    from trainer.loop.state import TrainState
    from trainer.loop.stop import StopRequest
    from trainer.loop.train import Batches, Loop
    from trainer.progress import Progress

    told = (folder / f"told_{rank}.txt").open("w", buffering=1)
    use_terminal(told, told)
    fixture, progress = _EngineFixture(Case(pp=2, zero=1), rank, world_size), Progress()
    inner = fixture.engine._engine
    inner.progress = progress
    passes = 0

    def before_forward(module: torch.nn.Module, _: object) -> None:
        nonlocal passes
        passes += module.training
        is_bad = passes == fixture.plan.num_micro_batches + 2 if fault == "forward" else not module.training
        if rank == 1 and fault != "data" and is_bad:
            _spin()

    inner.module.register_forward_pre_hook(before_forward)
    training = replace(fixture.plan.config.train, steps=4, eval_every=int(fault == "evaluate"), eval_batches=1)
    plan = replace(fixture.plan, config=replace(fixture.plan.config, train=training))
    source: Any = _Source(fixture, sleeps=fault == "data" and rank == 1)
    state, stop = TrainState(sample_length=8), StopRequest(fixture.groups.control)
    with Watchdog(folder, rank, fixture.groups.mesh.coordinate(rank).stage, world_size, progress, timeout_s, 600.0):
        hosts = ["here"] * world_size
        session = Session(plan=plan, groups=fixture.groups, hosts=hosts, progress=progress)
        Loop(
            session, fixture.engine, Batches(source, [HeldOut("data", 1.0, source)]), state, [], stop, lambda: state
        ).run()


def check_replicas(rank: int, world_size: int, cases: Sequence[tuple[Case, str]]) -> list[str]:
    """Train two steps of each case under the check; then change one element on the last rank, and check again.

    Returns what each case ended with.
    """
    from trainer.errors import NumericsError
    from trainer.loop.replicas import ReplicaCheck

    ended = []
    for case, name in cases:
        fixture = _EngineFixture(case, rank, world_size)
        check = ReplicaCheck(fixture.engine, fixture.groups, every=2)
        for step in (1, 2):
            fixture.step(step)
            check.on_step(step)
        if rank == world_size - 1:
            with torch.no_grad():
                fixture.parameter(name).view(-1)[0] += 0.5
        check.on_step(3)
        try:
            check.on_step(4)
            ended.append("nothing")
        except NumericsError as error:
            ended.append(str(error))
        del fixture
        gc.collect()
    return ended


@dataclass(frozen=True)
class Flip:
    """One bit of a layer's result that comes out wrong, once, on one rank.

    `layer`: name of the module whose result it is; `before_sum`: the bit is lost in what a row-parallel layer gives to
    the sum over ranks.
    """

    case: Case
    rank: int
    layer: str
    before_sum: bool = False


def recheck_with_flips(rank: int, world_size: int, flips: Sequence[Flip]) -> list[str]:
    """Return what the check says: with no flip, and with one."""
    from trainer.errors import NumericsError
    from trainer.loop.recheck import Recheck

    found = []
    for flip in flips:
        fixture = _EngineFixture(flip.case, rank, world_size)
        check = Recheck(fixture.engine, fixture.plan, fixture.groups, every=2)
        fixture.step(1)
        check.on_step(1)
        check.on_step(2)
        passes = [0]
        undo = _flip_in_second_pass(fixture, flip, passes) if rank == flip.rank else _nothing
        try:
            check.on_step(4)
            found.append("nothing")
        except NumericsError as error:
            found.append(str(error))
        undo()
        fixture.step(2)
        del fixture, check
        gc.collect()
    return found


def _flip_in_second_pass(fixture: _EngineFixture, flip: Flip, passes: list[int]) -> Callable[[], None]:
    modules = dict(fixture.engine._engine.module.named_modules())
    module: Any = next(part for name, part in modules.items() if name.endswith(flip.layer))

    def flipped(tensor: torch.Tensor) -> torch.Tensor:
        passes[0] += 1
        if passes[0] == 2:
            tensor = tensor.clone()
            bits = tensor.view(-1)[:1].view(torch.int32)
            bits ^= 1
        return tensor

    if not flip.before_sum:
        handle = module.register_forward_hook(lambda _, __, result: flipped(result))
        return lambda: handle.remove()
    group = fixture.groups.tensor
    inner = type(group).all_reduce
    armed = [False]
    opening = module.register_forward_pre_hook(lambda _, given: armed.__setitem__(0, True))

    def all_reduce(self: Any, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        if armed[0]:
            armed[0] = False
            tensor.copy_(flipped(tensor))
        return inner(self, tensor, op)

    type(group).all_reduce = all_reduce  # type: ignore[method-assign]

    def undo() -> None:
        opening.remove()
        type(group).all_reduce = inner  # type: ignore[method-assign]

    return undo


def own_milliseconds(rank: int, world_size: int, cases: Sequence[Case]) -> list[float]:
    """Return this rank's own time in each case, where the last rank sleeps 30 ms in every forward pass."""
    found = []
    for case in cases:
        fixture = _EngineFixture(case, rank, world_size)
        fixture.step(1)
        fixture.engine.take_own_seconds()
        if rank == world_size - 1:
            modules = dict(fixture.engine._engine.module.named_modules())
            slow: Any = next(part for name, part in modules.items() if name.endswith("mlp.up"))
            slow.register_forward_pre_hook(lambda _, __: time.sleep(0.03))
        for step in (2, 3):
            fixture.step(step)
        # An evaluation is no step.
        fixture.engine.evaluate(fixture.batches(4))
        found.append(1000 * fixture.engine.take_own_seconds())
        assert math.isnan(fixture.engine.take_own_seconds())
        del fixture
        gc.collect()
    return found
