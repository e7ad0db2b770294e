"""The cache of keys and values: logits with it are those of the whole text, and it holds no more than it must."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.generation import at_rows, cached_logits, stage_with
from tests.helpers.models import drawn_gpt
from tests.helpers.thread_group import run_ranks
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.models import make_model
from trainer.config.schema import ModelConfig
from trainer.inference.stage import StageModel
from trainer.micro_batch import MicroBatch
from trainer.model.cache import KeyValueCache, cache_elements
from trainer.model.gpt import GPT
from trainer.tensor_parallel.shard import shard_spec, without_padding
from trainer.topology.groups import Group

VOCABULARY = 29
WINDOWED = replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=4, sliding_window=4)
MODELS = [TINY, TINY_LLAMA, WINDOWED]


def ids(batch: int = 1, length: int = 12) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(5))


def both(config: ModelConfig, group: Group | None = None) -> tuple[GPT, StageModel]:
    gpt = drawn_gpt(config, VOCABULARY, 5).eval()
    weights = {shard_spec(p).name: without_padding(p.detach(), shard_spec(p)) for p in gpt.parameters()}
    return gpt, stage_with(config, VOCABULARY, weights, group)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("begun", [1, 3, 4, 9, 12])
def test_cached_logits_equal_the_full_forward(model: ModelConfig, begun: int) -> None:
    gpt, stage = both(model)
    with torch.inference_mode():
        expected = gpt(MicroBatch.of(ids()))[begun - 1 :, 0, :VOCABULARY]
    torch.testing.assert_close(cached_logits(stage, ids(), [begun])[:, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_rows_of_different_lengths_see_their_own_tokens_only(model: ModelConfig) -> None:
    gpt, stage = both(model)
    text, begun = ids(3), (2, 7, 5)
    with torch.inference_mode():
        expected = gpt(MicroBatch.of(text))[..., :VOCABULARY]
    found = cached_logits(stage, text, begun)
    torch.testing.assert_close(found, at_rows(expected, begun), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_a_row_is_moved_and_used_again(model: ModelConfig) -> None:
    gpt, stage = both(model)
    text, cache = ids(3), KeyValueCache(3, 12)
    with torch.inference_mode():
        whole = gpt(MicroBatch.of(text))[..., :VOCABULARY]
        for row, length in enumerate((12, 9, 3)):
            stage(text[row : row + 1, :length], cache.begin(row, text[row : row + 1, :length]))
        cache.move(1, 0)
        assert cache.lengths == [9, 9, 3]
        # The place of a longer text.
        stage(text[2:, :2], cache.begin(1, text[2:, :2]))
        one = torch.stack([text[1, 9], text[2, 2], text[2, 3]]).unsqueeze(1)
        found = stage(one, cache.go_on(one))
    torch.testing.assert_close(found, torch.stack([whole[9, 1], whole[2, 2], whole[3, 2]]), rtol=1e-5, atol=1e-6)


def test_cache_works_over_tensor_parallel_ranks() -> None:
    begun = (3, 8)
    expected = cached_logits(both(WINDOWED)[1], ids(2), begun)
    for logits in run_ranks(2, lambda group: cached_logits(both(WINDOWED, group)[1], ids(2), begun)):
        assert logits.shape == (5, 2, VOCABULARY)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "slots"), [(None, 12), (4, 4), (64, 12)])
def test_memory_is_taken_once_for_what_can_be_seen(window: int | None, slots: int) -> None:
    config = replace(WINDOWED, sliding_window=window)
    stage, text = both(config)[1], ids()
    cache = KeyValueCache(3, 12)
    with torch.inference_mode():
        one = cache.begin(1, text[:, :3])
        stage(text[:, :3], one)
        held = {name: [tensor.data_ptr() for tensor in tensors] for name, tensors in one.layers.items()}
        assert {tensor.shape for tensors in one.layers.values() for tensor in tensors} == {(3, 4, slots, 2)}
        stage(text[:, :9], cache.begin(0, text[:, :9]))
        two = cache.go_on(text[:, 9:10])
        stage(text[:, 9:10], two)
        assert {name: [tensor.data_ptr() for tensor in tensors] for name, tensors in two.layers.items()} == held
    elements = sum(tensor.numel() for tensors in one.layers.values() for tensor in tensors)
    names = tuple(f"blocks.{layer}" for layer in range(config.num_layers))
    told = cache_elements(make_model(config, VOCABULARY), 1, ("embedding", *names, "head"), 12)
    assert 3 * told == elements
    assert 2 * cache_elements(make_model(config, VOCABULARY), 2, names, 12) == told


def test_what_does_not_fit_is_an_error() -> None:
    cache = KeyValueCache(2, 10)
    with pytest.raises(ValueError, match="must have at most 10 tokens, but would have 11"):
        cache.begin(0, ids(length=11))
    cache.begin(0, ids(length=10))
    cache.begin(1, ids(length=2))
    with pytest.raises(ValueError, match="must have at most 10 tokens, but would have 11"):
        cache.go_on(ids(2, 1))
