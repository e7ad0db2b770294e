"""The start of verbs that use a model without training: in this process, in ranks that it starts, or as one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from trainer.config.layout_words import ALONE
from trainer.config.meanings import meanings
from trainer.errors import ConfigError, TridentError
from trainer.log import report_error, report_failure
from trainer.verbs.declare import Key, Takes

if TYPE_CHECKING:
    from trainer.inference.model_source import ModelSource
    from trainer.launcher.environment import World
    from trainer.topology.groups import ParallelGroups


class Task(Protocol):
    """The task that the words of a verb ask for, settled."""

    @property
    def source(self) -> ModelSource:
        """The model."""

    def facts(self) -> dict[str, object]:
        """Return what all ranks must have alike."""


T = TypeVar("T", bound=Task)
Settle = Callable[[Sequence[str], int | None, int | None], T]
"""(words, ranks that a launcher started, CUDA devices of this machine) -> the task. Imports no torch."""
Begin = Callable[[T], "Callable[[ParallelGroups], object]"]
"""Returns the function that does a task on each rank; imports what it needs for that."""
_KINDS = {int: Takes.number, float: Takes.number, bool: Takes.choice}


def use_model(verb: str, words: Sequence[str], settle: Settle[T], begin: Begin[T]) -> int:
    """Do what a verb's words ask for, and return the exit code."""
    from trainer.launcher.environment import find_world, gpu_count, publish_world

    try:
        world = find_world(os.environ)
    except ConfigError as error:
        # Nobody knows here which rank is rank 0.
        report_failure(error)
        return error.exit_code
    if world is not None:
        publish_world(world)
        if world.size > 1:
            return _as_rank(words, world, settle, begin)
    task = settle(words, None, gpu_count(os.environ))
    size = task.source.plan.mesh.size
    if size > 1:
        from trainer.launcher.errand import run_errand

        return run_errand(size, [verb, *words])
    from trainer.errands import Errand, do_alone

    do_alone(Errand(task.source, {}, begin(task)))
    return 0


def _as_rank(words: Sequence[str], world: World, settle: Settle[T], begin: Begin[T]) -> int:
    from trainer.config.schema import DeviceKind
    from trainer.launcher.environment import gpu_count, prepare_environment
    from trainer.verbs.rank import decline_for, hear_of_launcher, leave_now, met

    hear_of_launcher()
    gpus = gpu_count(os.environ)
    try:
        task = settle(words, world.size, gpus)
    except TridentError as error:
        report_error(error)
        decline_for(error, world)
        return error.exit_code
    prepare_environment(on_cpu=task.source.plan.device is DeviceKind.cpu or gpus == 0)
    from trainer.errands import Errand, do_as_rank, join

    errand = Errand(task.source, task.facts(), begin(task))
    store = met(lambda: join(errand, world), world)
    code = do_as_rank(errand, world, store)
    if code:
        leave_now(code)
    return code


def keys_of(options: ModuleType, kind: type[Any], names: Sequence[str], takes: Mapping[str, Takes]) -> tuple[Key, ...]:
    """Return the declarations of a verb's own keys, and of `layout`.

    Args:
        options: the module in which the keys are documented.
        kind: the dataclass that has them.
        names: the keys.
        takes: kinds of value that no type tells.
    """
    told = meanings([options])
    defaults = {field.name: field.default for field in fields(kind) if field.name in names}
    return (
        *(
            Key(
                name,
                told[f"{kind.__name__}.{name}"].removesuffix("."),
                takes.get(name, _KINDS.get(type(default), Takes.text)),
                "" if name == "checkpoint" else _shown(default),
            )
            for name, default in defaults.items()
        ),
        Key(
            "layout",
            "Ranks that share the model, spelled as in training: tp2, pp2, tp2_pp2. Keys of layout.* and runtime.* are "
            "taken too",
            Takes.text,
            ALONE,
        ),
    )


def _shown(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else "none" if default == () else repr(default)
