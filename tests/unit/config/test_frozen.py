# ruff: noqa: E501 - messages are compared whole
"""The words of `train.frozen`: what they name, what is refused, and what the plan tells of it."""

from __future__ import annotations

import pytest

from trainer.config.compose import compose
from trainer.config.keys import build
from trainer.config.plan import RunPlan, make_plan
from trainer.config.validate import problems
from trainer.description import describe, plan_record
from trainer.planner.own_memory import OwnMemory
from trainer.spec.frozen import tensors_named

NORMS = {f"blocks.{index}.{name}.weight" for index in range(4) for name in ("attention_norm", "mlp_norm")}
MODEL = {
    "model.hidden_size": 48,
    "model.num_layers": 4,
    "model.num_attention_heads": 12,
    "model.position": "rope",
    "model.bias": False,
}


def plan_of(words: str = "") -> RunPlan:
    model = "model=gpt_debug model.num_layers=4 model.position=rope model.bias=false model.query_key_norm=head"
    return make_plan(compose([*model.split(), "data=synthetic", "runtime.device=cpu", *words.split()]), 64)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("embedding", {"embedding.weight"}),
        ("norms", {*NORMS, *(f"blocks.{i}.attention.{part}_norm.weight" for i in range(4) for part in ("query", "key")), "final_norm.weight"}),
        ("layers.2.mlp", {"blocks.2.mlp.up.weight", "blocks.2.mlp.down.weight"}),
        ("layers.1-2.mlp.down", {"blocks.1.mlp.down.weight", "blocks.2.mlp.down.weight"}),
        ("blocks.0.mlp.up.weight", {"blocks.0.mlp.up.weight"}),
        ("mlp", {f"blocks.{index}.mlp.{part}.weight" for index in range(4) for part in ("up", "down")}),
        ("blocks.0.mlp.up.wei", set()),
        ("layers.3-4", set()),
        ("layers.2-1", set()),
        ("final", set()),
        ("biases", set()),
    ],
)  # fmt: skip
def test_a_word_names_tensors(word: str, named: set[str]) -> None:
    assert tensors_named(plan_of().model, word) == named


def test_layers_are_all_blocks_and_their_parts_add_up() -> None:
    model = plan_of().model
    layers = tensors_named(model, "layers")
    assert (
        layers == {name for name in model.tensors if name.startswith("blocks.")} == tensors_named(model, "layers.0-3")
    )
    parts = [
        tensors_named(model, word) for word in ("attention", "mlp", "layers.0-3.attention_norm", "layers.0-3.mlp_norm")
    ]
    assert layers == frozenset().union(*parts)
    assert len(layers) == sum(map(len, parts))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["embeding"], "must name parts of the model, but 'embeding' names none; did you mean 'embedding'?"),
        (["norms", "layer.0-3"], "must name parts of the model, but 'layer.0-3' names none; did you mean 'layers.0-3'?"),
        (["layers.1-2.atention"], "must name parts of the model, but 'layers.1-2.atention' names none; did you mean 'layers.1-2.attention'?"),
        (["layers.0-12"], "must name parts of the model, but 'layers.0-12' names none: layers are layers.0 to layers.3, and some of them layers.0-3"),
        (["head"], "must name parts of the model, but 'head' is the embedding, model.tied_embeddings being true; use embedding"),
        (["biases"], "must name parts of the model, but 'biases' names nothing: this model has no such tensors; leave it out"),
        (["tail"], "must name parts of the model, but 'tail' names none; use embedding, layers, final_norm, norms, attention or mlp"),
        (["layers", "embedding", "norms"], "must leave something to train, but names all 26 tensors of the model"),
    ],
)  # fmt: skip
def test_what_names_nothing_or_all_is_refused(words: list[str], problem: str) -> None:
    assert problems(build({**MODEL, "train.frozen": words})) == [f"train.frozen {problem}"]
    assert problems(build({**MODEL, "train.frozen": ["layers.0-1", "norms"]})) == []


def test_the_plan_tells_what_is_frozen_and_needs_no_gradients_and_moments_for_it() -> None:
    whole, half = plan_of(), plan_of("train.frozen=[embedding,layers.0-3,norms] model.tied_embeddings=false")
    assert "frozen" not in describe(whole)
    count, trained = half.model.parameter_count, half.model.tensors["head.weight"].numel
    told = " ".join(describe(half).split())
    assert f"frozen {count - trained:,} parameters (embedding, layers.0-3, norms); {trained:,} are trained" in told
    assert plan_record(half)["model"]["trained_parameters"] == trained == half.trained_parameters  # type: ignore[index]
    found = OwnMemory(on_cpu=True).stages(half)[0]
    assert (found.weights, found.gradients, found.moments) == (4 * count, 4 * trained, 8 * trained)
    assert whole.trained_parameters == whole.model.parameter_count
