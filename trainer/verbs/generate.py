"""`trident generate`: text from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from trainer.config.layout_words import ALONE
from trainer.config.meanings import meanings
from trainer.errors import ConfigError, TridentError
from trainer.generation import options
from trainer.generation.options import KEYS, GenerateOptions
from trainer.log import report_error, report_failure
from trainer.verbs.declare import Key, Takes, Verb
from trainer.verbs.parse import Words

if TYPE_CHECKING:
    from trainer.launcher.environment import World


def run(words: Words) -> int:
    """Draw texts and print them: in this process, in ranks that it starts, or as a rank that a launcher started."""
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
            return _as_rank(words.rest, world)
    wanted = options.parse(words.rest)
    from trainer.generation.task import settle

    task = settle(wanted, device_count=gpu_count(os.environ))
    if task.plan.mesh.size > 1:
        from trainer.launcher.errand import run_errand

        return run_errand(task.plan.mesh.size, ["generate", *words.rest])
    from trainer.writing import write_alone

    write_alone(task)
    return 0


def _as_rank(arguments: Sequence[str], world: World) -> int:
    from trainer.config.schema import DeviceKind
    from trainer.generation.task import settle
    from trainer.launcher.environment import gpu_count, prepare_environment
    from trainer.verbs.rank import decline_for, hear_of_launcher, leave_now, met

    hear_of_launcher()
    gpus = gpu_count(os.environ)
    try:
        task = settle(options.parse(arguments), world.size, gpus)
    except TridentError as error:
        report_error(error)
        decline_for(error, world)
        return error.exit_code
    prepare_environment(on_cpu=task.plan.device is DeviceKind.cpu or gpus == 0)
    from trainer.writing import join, write_as_rank

    store = met(lambda: join(task, world), world)
    code = write_as_rank(task, world, store)
    if code:
        leave_now(code)
    return code


_KINDS = {int: Takes.number, float: Takes.number, bool: Takes.choice}
_PLACES = {"checkpoint": Takes.run, "prompts": Takes.file, "tokenizer": Takes.file, "output": Takes.file}


def _keys() -> tuple[Key, ...]:
    told = meanings([options])
    of_verb = {field.name: field.default for field in fields(GenerateOptions) if field.name in KEYS}
    return (
        *(
            Key(
                name,
                told[f"GenerateOptions.{name}"].removesuffix("."),
                _PLACES.get(name, _KINDS.get(type(default), Takes.text)),
                "" if name == "checkpoint" else _shown(default),
            )
            for name, default in of_verb.items()
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


VERB = Verb(
    name="generate",
    summary="write text with a run or a checkpoint",
    run=run,
    keys=_keys(),
    text=(
        "The layout that writes need not be the one that trained; without layout=... it is one process. A text is "
        "printed as its tokens come. It depends on the checkpoint, its prompt, its seed and how tokens are drawn, and "
        "not on the other prompts or on the layout.",
    ),
    examples=(
        "trident generate runs/demo prompt='def read(' max_tokens=64 temperature=0.7",
        "trident generate runs/demo prompt='import ' prompt='class ' stop=$'\\n\\n' seed=3",
        "trident generate runs/demo prompts=questions.jsonl chat=true output=answers.jsonl layout=tp2_pp2",
    ),
)
