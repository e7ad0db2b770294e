from __future__ import annotations

import pytest
import torch

from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.engine import layer_times
from trainer.engine.layer_times import measure_layers


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "_ENOUGH_S", 0.0)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["model.fused_loss=false"],
        ["model.tied_embeddings=false"],
        ["model.tied_embeddings=false", "model.fused_loss=false"],
        ["model.position=rope", "model.norm=rmsnorm", "model.activation=swiglu", "model.bias=false"],
        ["layout.tensor_parallel_size=2", "layout.sequence_parallel=true"],
        ["precision=bf16"],
        ["model.recompute=full", "model.dropout=0.1"],
        ["runtime.cpu_matmul=onednn", "zero.stage=0"],
    ],
)
def test_every_layer_of_every_model_is_timed(words: list[str]) -> None:
    common = ["model=gpt_debug", "data=synthetic", "model.vocab_size=61", "layout.pipeline_parallel_size=2"]
    plan = make_plan(compose([*common, *words]), 61)
    found = measure_layers(plan, torch.device("cpu"))
    assert list(found) == [layer.name for layer in plan.model.layers]
    assert found["blocks.0"] is found["blocks.1"]
    assert found["blocks.0"].forward > 0
    assert found["blocks.0"].backward > 0
    assert found["head"].total == found["head"].forward + found["head"].backward > 0
