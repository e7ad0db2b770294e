"""The model with dropout: the same elements fall in every layout, and recomputation sees them again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers.models import drawn_gpt
from tests.helpers.thread_group import local_gradients, local_weights, run_ranks, whole
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.schema import ModelConfig, RecomputeKind
from trainer.micro_batch import MicroBatch, Place
from trainer.model.attention import Attention
from trainer.model.gpt import GPT
from trainer.tensor_parallel import random
from trainer.topology.groups import Group

Gradients = dict[str, torch.Tensor]
DROPPING = replace(TINY, dropout=0.3, attention_dropout=0.2)
MODELS = {
    "gpt2": DROPPING,
    "llama": replace(TINY_LLAMA, dropout=0.3, attention_dropout=0.2, sliding_window=4),
    "hidden_only": replace(TINY, dropout=0.3),
    "attention_only": replace(TINY, attention_dropout=0.3),
}
SAMPLES = 4


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(0, 29, (SAMPLES, 13), generator=torch.Generator().manual_seed(1))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def parts(dp: int, micro_batch_size: int) -> Iterator[list[slice]]:
    """Yield the samples of each data-parallel rank's micro-batches."""
    count = SAMPLES // (dp * micro_batch_size)
    for dp_rank in range(dp):
        starts = [(index * dp + dp_rank) * micro_batch_size for index in range(count)]
        yield [slice(start, start + micro_batch_size) for start in starts]


def step_gradients(
    model: ModelConfig,
    size: int = 1,
    sequence_parallel: bool = False,
    dp: int = 1,
    micro_batch_size: int = SAMPLES,
    step: int = 2,
) -> tuple[float, Gradients]:
    """Return loss and gradients of one training step over the whole global batch."""
    input_ids, labels = tokens()

    def body(group: Group) -> tuple[GPT, float]:
        gpt = drawn_gpt(model, 29, 9, group, sequence_parallel)
        total = 0.0
        for slices in parts(dp, micro_batch_size):
            for samples in slices:
                batch = MicroBatch.of(input_ids[samples], labels[samples], place=Place(9, step, samples.start))
                loss = gpt(batch) * (micro_batch_size / SAMPLES)
                loss.backward()
                total += loss.item()
        return gpt, total

    models, losses = zip(*run_ranks(size, body), strict=True)
    return losses[0], whole(models, [local_gradients(gpt) for gpt in models])


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("size", "sequence_parallel"), [(2, False), (2, True), (4, True)])
def test_tensor_and_sequence_parallel_drop_the_same(model: str, size: int, sequence_parallel: bool) -> None:
    assert_same(step_gradients(MODELS[model], size, sequence_parallel), step_gradients(MODELS[model]))


@pytest.mark.parametrize(("dp", "micro_batch_size"), [(1, 1), (2, 1), (2, 2)])
def test_data_parallel_and_accumulation_drop_the_same(dp: int, micro_batch_size: int) -> None:
    found = step_gradients(DROPPING, dp=dp, micro_batch_size=micro_batch_size)
    assert_same(found, step_gradients(DROPPING))


def test_every_dropout_of_the_model_has_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    mask = random.keep_mask

    def noted(place: Place, name: str, *args: Any) -> torch.Tensor:
        names.append(name)
        return mask(place, name, *args)

    monkeypatch.setattr(random, "keep_mask", noted)
    step_gradients(DROPPING)
    blocks = [f"blocks.{i}.{part}" for i in range(2) for part in ("attention.weights", "attention", "mlp")]
    assert names == ["position", *blocks]


def test_dropout_changes_with_the_step_and_is_off_in_evaluation() -> None:
    assert step_gradients(DROPPING, step=3)[0] != step_gradients(DROPPING)[0]
    input_ids, labels = tokens()
    gpt = drawn_gpt(DROPPING, 29, 9).eval()
    plain = drawn_gpt(TINY, 29, 9)
    assert gpt(MicroBatch.of(input_ids, labels)).item() == pytest.approx(
        plain(MicroBatch.of(input_ids, labels)).item(), rel=1e-6
    )


def test_training_on_a_micro_batch_without_a_place_is_an_error() -> None:
    for model, layer in ((DROPPING, "position"), (MODELS["attention_only"], r"blocks\.0\.attention\.weights")):
        with pytest.raises(RuntimeError, match=f"must have a place for {layer} to train with dropout, but has none"):
            drawn_gpt(model, 29, 9)(MicroBatch.of(*tokens()))


@pytest.mark.parametrize("recompute", [RecomputeKind.selective, RecomputeKind.full])
@pytest.mark.parametrize("model", [TINY, TINY_LLAMA, *MODELS.values()])
def test_recomputation_gives_identical_gradients(model: ModelConfig, recompute: RecomputeKind) -> None:
    loss, gradients = step_gradients(replace(model, recompute=recompute), dp=2, micro_batch_size=1)
    expected_loss, expected = step_gradients(model, dp=2, micro_batch_size=1)
    assert loss == expected_loss
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("recompute", [RecomputeKind.selective, RecomputeKind.full])
def test_recomputation_works_over_tensor_parallel_ranks(recompute: RecomputeKind) -> None:
    assert_same(step_gradients(replace(DROPPING, recompute=recompute), 2, True), step_gradients(DROPPING))


@pytest.mark.parametrize(
    ("recompute", "expected"), [(RecomputeKind.none, 2), (RecomputeKind.selective, 4), (RecomputeKind.full, 4)]
)
def test_recomputation_runs_the_attention_core_again_in_training_only(
    recompute: RecomputeKind, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    core = Attention._core

    def counted(self: Attention, *args: object) -> torch.Tensor:
        calls.append(self.name)
        return core(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Attention, "_core", counted)
    step_gradients(replace(TINY, recompute=recompute))
    assert len(calls) == expected
    calls.clear()
    gpt = drawn_gpt(replace(TINY, recompute=recompute), 29, 9).eval()
    gpt(MicroBatch.of(*tokens())).backward()
    assert len(calls) == 2


def test_evaluation_between_steps_leaves_training_alone() -> None:
    input_ids, labels = tokens()
    results = []
    for evaluate in (False, True):
        config = replace(DROPPING, recompute=RecomputeKind.full)
        gpt = drawn_gpt(config, 29, 9)
        gpt(MicroBatch.of(input_ids[:2], labels[:2], place=Place(9, 1, 0))).backward()
        if evaluate:
            gpt.eval()
            with torch.no_grad():
                gpt(MicroBatch.of(input_ids, labels))
            gpt.train()
        gpt(MicroBatch.of(input_ids[2:], labels[2:], place=Place(9, 1, 2))).backward()
        results.append(whole([gpt], [local_gradients(gpt)]))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_attention_dropout_path_equals_the_fused_one_without_dropping() -> None:
    input_ids, labels = tokens()
    config = replace(TINY_LLAMA, num_key_value_heads=2)
    batch = MicroBatch.of(input_ids, labels, place=Place(9, 1, 0))
    plain = drawn_gpt(config, 29, 9)
    rare = replace(config, attention_dropout=1e-9)
    explicit = drawn_gpt(rare, 29, 9)
    assert local_weights(plain).keys() == local_weights(explicit).keys()
    assert explicit(batch).item() == pytest.approx(plain(batch).item(), rel=1e-6)
