"""`trident plan`: memory, time, cost and loss of a run before it is started; layouts that fit; what a budget buys."""

from __future__ import annotations

import os

from trainer.errors import ConfigError
from trainer.verbs.composing import COMPOSING
from trainer.verbs.declare import Key, Option, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Print the plan, or what was asked for instead."""
    from trainer.hardware import look_here
    from trainer.planning import Asked, calibrate_here, plan_verb

    budgets = [word.partition("=")[2] for word in words.rest if word.startswith(f"{BUDGET}=")]
    if words.has("--calibrate"):
        if budgets or words.has("--search") or words.has("--json") or words.has("--picture"):
            raise ConfigError(
                "--calibrate measures this machine and plans nothing; it cannot be combined with --search, --json, "
                "--picture or budget="
            )
        return calibrate_here(words.rest, look_here(os.environ))
    here = look_here(os.environ)
    rest = [word for word in words.rest if not word.startswith(f"{BUDGET}=")]
    asked = Asked(as_json=words.has("--json"), searches=words.has("--search"), picture=words.value("--picture"))
    if not budgets:
        return plan_verb(rest, asked, here)
    if asked.searches or asked.picture is not None:
        raise ConfigError("budget= chooses a model and its layout; it cannot be combined with --search or --picture")
    from trainer.buying import buy

    return buy(rest, budgets[-1], asked.as_json, here)


BUDGET = "budget"
VERB = Verb(
    name="plan",
    summary="say what a run will need before it starts",
    run=run,
    keys=(
        Key(
            BUDGET,
            "what may be spent, as 200usd, 3000gpuh, 14days or 1e21flops: say which model, tokens and layout to buy",
            default="none",
        ),
    ),
    options=(
        Option("--search", "rank all legal layouts that fit by speed; keys that are set by a word or a file stay"),
        Option("--json", "print one JSON object with every number, and where each constant is from"),
        Option(
            "--picture",
            "draw the memory of each stage and the timeline of the pipeline into a file, .svg or .png",
            takes=Takes.file,
            metavar="FILE",
        ),
        Option(
            "--calibrate",
            "measure this machine (GEMM, memory, collectives, launches) for a minute or two, into a profile that later "
            "plans use; nothing else should run here meanwhile",
        ),
        *COMPOSING,
    ),
    takes_settings=True,
    text=(
        "Memory, time, money and loss of a run, and which layouts fit or are faster.",
        "Takes the groups and keys of `trident train`. cluster=FILE and cluster.* say which machines (see `trident "
        "plan --help cluster`); without them it is this one. Nothing is started; neither torch nor a GPU is needed.",
    ),
    examples=(
        "trident plan experiment=gpt3_1_3b_8gpu cluster=a100_80gb",
        "trident plan model=llama3_8b precision=bf16 batch.global_batch_size=512 cluster=h100 cluster.nodes=8 --search",
        "trident plan budget=200usd cluster=h100 cluster.usd_per_device_hour=2.5",
    ),
)
