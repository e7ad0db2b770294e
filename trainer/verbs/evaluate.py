"""`trident evaluate`: the loss of a model on documents, and its scores on tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from trainer.evaluation import evaluate_options
from trainer.evaluation.evaluate_options import KEYS, EvaluateOptions
from trainer.verbs.declare import Takes, Verb
from trainer.verbs.model_use import keys_of, use_model
from trainer.verbs.parse import Words

if TYPE_CHECKING:
    from trainer.evaluation.asked import Evaluation
    from trainer.topology.groups import ParallelGroups


def run(words: Words) -> int:
    """Score a model: in this process, in ranks that it starts, or as a rank that a launcher started."""
    return use_model("evaluate", words.rest, _settle, _begin)


def _settle(words: Sequence[str], world: int | None, device_count: int | None) -> Evaluation:
    wanted = evaluate_options.parse(words)
    from trainer.evaluation.asked import settle

    return settle(wanted, world, device_count)


def _begin(asked: Evaluation) -> Callable[[ParallelGroups], object]:
    from trainer.evaluation.evaluating import evaluate_model

    return partial(evaluate_model, asked)


_TAKES = {
    "checkpoint": Takes.run,
    "include_path": Takes.folder,
    "tokenizer": Takes.file,
    "output": Takes.file,
    "samples": Takes.file,
}
VERB = Verb(
    name="evaluate",
    summary="score a run, a checkpoint or a model on documents and tasks",
    run=run,
    keys=keys_of(evaluate_options, EvaluateOptions, KEYS, _TAKES),
    text=(
        "Without data.* and tasks it is the loss on what the run held out of its own data. Each document is scored by "
        "itself. The layout need not be the one that trained; replicas (dp) share the work.",
        "Keys of data.* say what is scored, and those of logging.* that it goes to TensorBoard or wandb too.",
    ),
    examples=(
        "trident evaluate runs/demo",
        "trident evaluate runs/demo data.source=files 'data.files=[texts/*.txt]' output=scores.json",
        "trident evaluate runs/demo tasks=my_quiz include_path=tasks num_fewshot=3 layout=tp2",
        "trident evaluate HuggingFaceTB/SmolLM2-135M tasks=arc_easy,hellaswag limit=100",
    ),
)
