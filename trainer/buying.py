"""`trident plan budget=...`: the model, the number of tokens and the layout that a budget buys. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from trainer.config.cluster_size import devices_per_node
from trainer.config.compose import Composition, composition
from trainer.config.layout_words import LAYOUT
from trainer.config.plan import make_plan
from trainer.config.schema import Dtype
from trainer.config.validate import validate
from trainer.dry_run import plan_without_data
from trainer.errors import ConfigError
from trainer.hardware import Here
from trainer.log import say, write
from trainer.planner.as_json import answer_json
from trainer.planner.budget import Speed, parse_budget, spend
from trainer.planner.cluster import cluster_of, planned_ranks
from trainer.planner.layout_search import search
from trainer.planner.plan_screen import spent_screen
from trainer.planner.predict import Planner
from trainer.planner.shapes import Candidate, family, fixed
from trainer.planner.space import MESH
from trainer.settling import alone, held, judged

KIND = "model=llama_7b"
"""Kind of model whose sizes a budget chooses from, where no word names a model."""
TOKENS_PER_STEP = 1 << 19
"""Tokens of a step where no word says the batch: about those of GPT-3's smaller sizes (arXiv 2005.14165, table 2.1)."""
_NAMED = ("model.hidden_size", "model.num_layers", "model.path")
"""Keys with which words name a model."""


def buy(arguments: Sequence[str], budget_word: str, as_json: bool, here: Here) -> int:
    """Run `trident plan budget=...` and return the exit code.

    Args:
        arguments: the other words of the command line.
        budget_word: what may be spent, as 200usd.
        as_json: print one JSON object.
        here: this machine.

    Raises:
        ConfigError: the config is wrong, or the budget is none, or buys nothing.
    """
    budget = parse_budget(budget_word)
    composed = composition(list(arguments))
    request = composed.request
    is_named = "model" in request.choices or any(key in request.values for key in _NAMED)
    taken = sorted({*request.choices, *request.values} & {LAYOUT, *MESH})
    if taken:
        raise ConfigError(f"budget= chooses a model and its layout, so {taken[0]} would have no effect; leave it out")
    words = [*([] if is_named else [KIND]), *arguments]
    composed = composition(words)
    for word in _unsaid(composed, here):
        words.append(word)
        composed = composition(words)
    plain = alone(composed.config)
    validate(judged(composed.config))
    # Where nobody says how many, one machine of the kind that is planned for.
    world = planned_ranks(plain, here) or devices_per_node(plain.cluster) or len(here.gpus) or here.cores
    planner = Planner(cluster_of(plain, world, here))
    vocab_size = plan_without_data(plain).model.vocab_size
    models = fixed(plain.model, vocab_size) if is_named else family(plain.model, vocab_size)
    answer = spend(budget, planner.cluster, models, _speeds(planner, composed, world))
    if as_json:
        write(json.dumps(answer_json(answer, words), indent=2) + "\n")
    else:
        say(spent_screen(answer, planner.cluster, words))
    return 0


def _unsaid(composed: Composition, here: Here) -> Iterator[str]:
    """Yield words for what no word says, and what a small test run has otherwise: the batch and the precision."""
    request, config = composed.request, composed.config
    if "batch" not in request.choices and "batch.global_batch_size" not in request.values:
        yield f"batch.global_batch_size={max(1, TOKENS_PER_STEP // config.model.seq_length)}"
    if "precision" not in request.choices and "precision.dtype" not in request.values:
        peaks = cluster_of(alone(config), 1, here).peak_flops
        fastest = max(peaks, key=lambda dtype: (peaks[dtype].value, dtype is Dtype.bf16))
        if fastest is not config.precision.dtype:
            yield f"precision={fastest.value}"


def _speeds(planner: Planner, composed: Composition, world: int) -> Callable[[Candidate], Speed | None]:
    """Return a function that finds the fastest layout of a model on the cluster, beside what words have set."""
    config, stay = composed.config, held(composed)

    def speed(candidate: Candidate) -> Speed | None:
        wanted = replace(config, model=candidate.config)
        base = replace(make_plan(alone(wanted), candidate.vocab_size), config=wanted)
        found = search(planner, base, world, stay, shown=1).ranked
        if not found:
            return None
        best = found[0]
        return Speed(
            tokens_per_second=best.prediction.tokens_per_second,
            tokens_per_step=best.plan.tokens_per_step,
            devices=world,
            layout=best.words_after(config),
            mfu=best.prediction.mfu,
        )

    return speed
