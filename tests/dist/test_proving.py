"""Trials of a proof and the self-test, in forked ranks: healthy products agree with the oracle, broken ones do not."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch

from tests.helpers.broken_products import BROKEN, Broken
from tests.helpers.dist import run_distributed
from trainer.config.compose import compose, options
from trainer.config.plan import make_mesh
from trainer.config.schema import Dtype
from trainer.engine.warm_start import warm_up
from trainer.engine.world import start_world
from trainer.errors import TridentError
from trainer.proving.faults import Fault, faults_of
from trainer.proving.proof_trials import Proof, Setting, proof_of, sharded, trial_of
from trainer.proving.self_test import self_test
from trainer.proving.trying import explained, tried
from trainer.proving.verdict import Verdict

MODELS = [name for name in options()["model"] if name != "hf"]
OF_THE_ISSUE = BROKEN[:3]
"""Faults that every run of the tests looks at; the others are slow."""


def proof(words: Sequence[str], settings: Sequence[Setting]) -> Proof:
    """Return a proof of some settings alone."""
    config = compose(list(words))
    whole = proof_of(config, config.model.vocab_size)
    trials = (trial_of(whole.run.config, one) for one in settings)
    return Proof(whole.run, tuple(trials), ())


def verdicts_of(words: Sequence[str], settings: Sequence[Setting], steps: int = 2) -> list[Verdict]:
    warm_up()
    return list(tried(proof(words, settings), steps))


def check_healthy(verdicts: Sequence[Verdict]) -> None:
    for one in verdicts:
        assert one.agrees, f"{one.trial.name}: {[found.text for found in one.findings]} {one.failure}\n{one.details}"


def self_tested(rank: int, world_size: int, words: Sequence[str]) -> tuple[str, float]:
    """Return what the self-test says on this rank, error or not, and its seconds."""
    config = compose(list(words))
    begun = time.monotonic()
    groups = start_world(make_mesh(config, world_size), config.runtime, torch.device("cpu"))
    try:
        return self_test(config, 2048, groups), time.monotonic() - begun
    except TridentError as error:
        return f"{type(error).__name__} {error.exit_code}: {error}", time.monotonic() - begun


@pytest.mark.dist
def test_layouts_of_two_ranks_agree_with_the_oracle() -> None:
    two = (Setting(pp=2, micro_batches=4), Setting(tp=2, sequence_parallel=True), Setting(dp=2, micro_batches=2))
    verdicts = verdicts_of(["model=gemma3_1b"], two)
    check_healthy(verdicts)
    assert {one.trial.setting for one in verdicts} == set(two)
    assert {one.tensors for one in verdicts} == {6 * 10 + 2}


@pytest.mark.dist
@pytest.mark.parametrize("broken", OF_THE_ISSUE, ids=lambda one: one.name)
def test_a_broken_product_is_caught_and_tensor_and_axis_named(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    check_broken(broken, monkeypatch)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN[3:], ids=lambda one: one.name)
def test_another_broken_product_is_caught_too(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    check_broken(broken, monkeypatch)


def check_broken(broken: Broken, patch: pytest.MonkeyPatch) -> None:
    warm_up()
    broken.fault(patch)
    faults: list[Fault] = faults_of(verdicts_of(["model=gpt_debug"], broken.settings))
    assert [fault.title for fault in faults] == [broken.axis]
    found = explained(faults[0])
    named = [*found.vectors, *(one.tensor for one in found.verdict.findings if one.tensor)]
    assert any(broken.tensor in name for name in named[:5]), named
    said = run_distributed(self_tested, 2, [*broken.words, "batch.global_batch_size=16"])
    for text, _ in said:
        assert text.startswith("SelfTestFailed 1: DeepSpeed "), text
        assert text.endswith(f"the axis at fault: {broken.ranks_axis or broken.axis}"), text
        assert broken.tensor in text


@pytest.mark.dist
def test_the_self_test_passes_and_says_what_it_has_proved() -> None:
    said = run_distributed(self_tested, 2, ["layout=pp2", "precision=bf16"])
    assert {text for text, _ in said} == {said[0][0]}
    assert said[0][0].startswith(
        "self-test  pp2, 2 micro-batches, fp32; pp2, 2 micro-batches, ZeRO-1, bf16: 2 steps of a small model of this "
        "structure, with 28 tensors, equal the oracle's (largest relative differences in fp32: loss "
    )


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_preset_is_proved_in_all_layouts_in_two_minutes(name: str) -> None:
    warm_up()
    config = compose([f"model={name}", "precision=bf16", "layout=tp2_pp2_dp2_sp", "zero=stage1"])
    if config.model.num_attention_heads % 2:
        config = compose([f"model={name}", "precision=bf16", "layout=pp2_dp2", "zero=stage1"])
    begun = time.monotonic()
    check_healthy(list(tried(proof_of(config, config.model.vocab_size), 3)))
    assert time.monotonic() - begun < 120


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["layout=tp4", "model=qwen3_0_6b"],
        ["layout=pp4", "model=gpt2_124m", "precision=fp16"],
        ["layout=pp2_dualpipev", "model=gpt1_117m", "model.recompute=full"],
        ["layout=dp4", "zero=stage3_offload", "model=llama3_2_1b"],
        ["layout=dp2", "zero=stage3", "model=mistral_7b", "precision=bf16", "data.mask_documents=true"],
        ["layout=tp3", "model=smollm2_135m"],
        ["layout=tp2", "model=olmo2_1b", "optimizer=muon"],
        ["layout=dp2", "optimizer=lion", "optimizer.ema_decay=0.9"],
        ["layout=pp2", "optimizer.rates=[embedding:0.3,layers.2-3.mlp:2]", "train.frozen=[layers.0]"],
        ["layout=tp2_pp2", "optimizer.mup_base_width=32", "model.tied_embeddings=false"],
        ["layout=tp2", "model.lora.rank=4", "model.lora.alpha=8", "checkpoint.init_from=somewhere"],
    ],
    ids=" ".join,
)
def test_runs_of_every_kind_are_proved(words: list[str]) -> None:
    warm_up()
    config = compose(words)
    check_healthy(list(tried(proof_of(config, config.model.vocab_size), 3)))


def test_a_precision_of_16_bits_is_tried_beside_fp32() -> None:
    config = compose(["precision=bf16", "layout=dp2"])
    chosen = [one for one in proof_of(config, None).trials if one.is_chosen]
    assert [one.setting for one in chosen] == [
        sharded(Setting(dp=2, micro_batches=2, dtype=dtype), config.zero) for dtype in (Dtype.fp32, Dtype.bf16)
    ]
