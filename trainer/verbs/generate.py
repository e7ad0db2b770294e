"""`trident generate`: text from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from trainer.generation import options
from trainer.generation.options import KEYS, GenerateOptions
from trainer.verbs.declare import Takes, Verb
from trainer.verbs.model_use import keys_of, use_model
from trainer.verbs.parse import Words

if TYPE_CHECKING:
    from trainer.generation.task import Task
    from trainer.topology.groups import ParallelGroups


def run(words: Words) -> int:
    """Draw texts and print them: in this process, in ranks that it starts, or as a rank that a launcher started."""
    return use_model("generate", words.rest, _settle, _begin)


def _settle(words: Sequence[str], world: int | None, device_count: int | None) -> Task:
    wanted = options.parse(words)
    from trainer.generation.task import settle

    return settle(wanted, world, device_count)


def _begin(task: Task) -> Callable[[ParallelGroups], object]:
    from trainer.generation.generate import write_texts

    return partial(write_texts, task)


_TAKES = {"checkpoint": Takes.run, "prompts": Takes.file, "tokenizer": Takes.file, "output": Takes.file}


VERB = Verb(
    name="generate",
    summary="write text with a run or a checkpoint",
    run=run,
    keys=keys_of(options, GenerateOptions, KEYS, _TAKES),
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
