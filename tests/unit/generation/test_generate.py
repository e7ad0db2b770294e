from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.generation import draws, model_of, stage_with, texts, weights_of, write_run
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.checkpoint.manifest import MANIFEST, file_facts, read_manifest
from trainer.config.compose import to_yaml
from trainer.config.schema import (
    ModelConfig,
    PositionKind,
    RecomputeKind,
    TokenizerConfig,
    TokenizerKind,
    TridentConfig,
)
from trainer.data.tokenizer import train_bpe
from trainer.errors import CheckpointError, ConfigError, TridentError
from trainer.generation.options import GenerateOptions
from trainer.generation.sampling import Sampling
from trainer.generation.task import settle, tokens_that_fit
from trainer.inference.loading import load_stage
from trainer.inference.stage import StageModel
from trainer.oracle.reference import reference_logits
from trainer.run_paths import CONFIG, TENSORS
from trainer.topology.groups import single_process_groups

VOCABULARY = 29
MODELS = {
    "gpt2": TINY,
    "gpt2_untied_window": replace(TINY, tied_embeddings=False, sliding_window=4),
    "llama": TINY_LLAMA,
    "mistral": replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=4, sliding_window=4),
    "learned_swiglu": replace(TINY_LLAMA, position=PositionKind.learned),
}


def writer(config: ModelConfig, vocab_size: int = VOCABULARY) -> StageModel:
    return stage_with(config, vocab_size, weights_of(model_of(config, vocab_size)))


def greedy(config: ModelConfig, weights: dict[str, torch.Tensor], prompt: list[int], count: int) -> list[int]:
    """What the oracle says one token after the other, reading the whole text again each time."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(reference_logits(config, weights, torch.tensor([text]))[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt", [[3], [7, 1, 20, 4, 4, 11]], ids=["one", "six"])
def test_greedy_with_the_cache_equals_the_oracle_on_the_whole_text(name: str, prompt: list[int]) -> None:
    model, spec = writer(MODELS[name]), MODELS[name]
    (drawn,) = draws(model, [prompt], spec.seq_length - len(prompt))
    assert len(drawn) == spec.seq_length - len(prompt)
    text = torch.tensor([prompt + drawn])
    logits = reference_logits(spec, weights_of(model), text)[0]
    likeliest = logits.argmax(dim=-1).tolist()
    assert drawn == likeliest[len(prompt) - 1 : -1]
    top = logits.topk(2, dim=-1).values
    assert float((top[:, 0] - top[:, 1]).min()) > 1e-4, "a near tie would make this test a matter of luck"
    assert len(set(drawn)) > 1, "a model that says one word sees no mistake in the cache"


PROMPTS = [[3], [7, 1, 20, 4, 4, 11], [2, 2], [28, 0, 5, 9, 1], [16], [8, 8, 8]]
LIMITS = [9, 6, 3, 7, 1, 5]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [2, 4, 8])
def test_a_text_is_the_same_whichever_others_are_written_with_it(name: str, batch_size: int) -> None:
    model, hot = writer(MODELS[name]), Sampling(temperature=1.5, top_k=20)
    seeds = [5, 6, 5, 7, 8, 9]
    for sampling in (Sampling(temperature=0.0, repetition_penalty=1.3), hot):
        alone = [
            draws(model, [ids], [limit], sampling, seeds=[seed])[0]
            for ids, limit, seed in zip(PROMPTS, LIMITS, seeds, strict=True)
        ]
        assert [len(one) for one in alone] == LIMITS
        assert draws(model, PROMPTS, LIMITS, sampling, seeds=seeds, batch_size=batch_size) == alone
        backwards = draws(model, PROMPTS[::-1], LIMITS[::-1], sampling, seeds=seeds[::-1], batch_size=batch_size)
        assert backwards[::-1] == alone


def test_a_row_that_is_used_again_knows_nothing_of_the_text_before() -> None:
    model = writer(MODELS["mistral"])
    weights = weights_of(model)
    found = draws(model, [[1, 2, 3, 4, 5, 6, 7], [9], [4, 4]], [5, 2, 4], batch_size=1)
    expected = [
        greedy(MODELS["mistral"], weights, ids, n) for ids, n in (([1, 2, 3, 4, 5, 6, 7], 5), ([9], 2), ([4, 4], 4))
    ]
    assert found == expected


def test_the_end_of_text_ends_it_and_is_not_part_of_it() -> None:
    model = writer(TINY)
    (drawn,) = draws(model, [[3]], 11)
    last = next(i for i, token in enumerate(drawn) if i >= 2 and token not in drawn[:i])
    assert draws(model, [[3]], 11, ends=[28, drawn[last]]) == [drawn[:last]]
    assert draws(model, [[3]], 11, ends=[drawn[0]]) == [[]]


@pytest.mark.parametrize(
    ("length", "max_tokens", "words"),
    [
        (12, 0, "the prompt has 12 tokens, which leaves no room for another"),
        (40, 0, "the prompt has 40 tokens, which leaves no room for another"),
        (10, 3, "the prompt has 10 tokens and max_tokens is 3"),
        (1, 10**9, "the prompt has 1 tokens and max_tokens is 1000000000"),
    ],
)
def test_what_does_not_fit_is_refused(length: int, max_tokens: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tokens_that_fit(length, max_tokens, 12, "prompts.txt, line 3")
    assert words in str(caught.value)
    assert str(caught.value).startswith("prompts.txt, line 3 and max_tokens must fit into model.seq_length (12 tokens)")


def test_a_number_of_tokens_is_kept() -> None:
    assert tokens_that_fit(2, 4, 12) == 4
    assert tokens_that_fit(11, 0, 12) == 1
    assert tokens_that_fit(2, 0, 12) == 10


def test_seeds_are_reproducible_and_differ() -> None:
    model, hot = writer(TINY), Sampling(temperature=2.0)
    first, again, *others = draws(model, [[3]] * 5, 11, hot, seeds=[1, 1, 2, 3, 4])
    assert first == again
    assert any(other != first for other in others)


def test_padding_and_ids_beyond_the_vocabulary_are_never_drawn() -> None:
    model = writer(replace(TINY, vocab_pad_multiple=64))
    with torch.no_grad():
        weight = model.get_parameter("layers.embedding.weight")
        assert weight.shape[0] == 64
        weight[VOCABULARY:] = 50.0
    drawn = draws(model, [[3]] * 20, 11, Sampling(temperature=50.0), seeds=range(20))
    found = {token for text in drawn for token in text}
    assert max(found) < VOCABULARY
    assert len(found) > VOCABULARY // 2


# --- from a run folder


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_same_text_comes_out_of_every_layout(tmp_path: Path, name: str) -> None:
    found = []
    for tp in (1, 2, 4):
        write_run(tmp_path / f"tp{tp}", tp, MODELS[name])
        found.append(texts(tmp_path / f"tp{tp}"))
    assert found[0] == found[1] == found[2]
    assert found[0][0].startswith("def ")
    assert len(found[0][0]) > len("def ")


def test_a_run_folder_gives_its_newest_checkpoint_and_a_checkpoint_itself(tmp_path: Path) -> None:
    first, second = write_run(tmp_path, step=5), write_run(tmp_path, step=10)
    assert texts(tmp_path) == texts(second)
    assert texts(tmp_path) != texts(first)


def test_a_relative_path_is_one_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_run(tmp_path)
    monkeypatch.chdir(checkpoint)
    assert texts(Path(".")) == texts(checkpoint)


def test_samples_are_numbered_by_their_seeds(tmp_path: Path) -> None:
    write_run(tmp_path)
    three = texts(tmp_path, temperature=3.0, num_samples=3, seed=10)
    assert len(set(three)) == 3
    assert texts(tmp_path, temperature=3.0, seed=11) == [three[1]]


def test_a_trained_tokenizer_and_an_empty_prompt(tmp_path: Path) -> None:
    tokenizer = train_bpe(["the cat sat on the mat", "the dog sat on the log"] * 5, 280)
    write_run(tmp_path, tokenizer=tokenizer)
    (text,) = texts(tmp_path, prompt="", max_tokens=5)
    assert isinstance(text, str)
    assert texts(tmp_path, prompt="the cat", max_tokens=1)[0].startswith("the cat")


def test_a_model_that_was_trained_with_dropout_and_recomputation_samples_without(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", model=replace(TINY, dropout=0.5, attention_dropout=0.5, recompute=RecomputeKind.full))
    assert texts(tmp_path / "a") == texts(tmp_path / "b")


def test_a_prompt_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(ConfigError, match=r"must fit into model.seq_length \(24 tokens\).*has 30 tokens"):
        texts(tmp_path, prompt="x" * 30)


def remove_tokenizer(run: Path) -> None:
    (run / "tokenizer" / "kind.json").unlink()
    (run / "tokenizer").rmdir()


def empty_tokenizer(run: Path) -> None:
    (run / "tokenizer" / "kind.json").unlink()


def in_checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "step_5"


def seal(checkpoint: Path, name: str) -> None:
    """Let the manifest say of a file what it is now."""
    manifest = read_manifest(checkpoint)
    files = {**manifest.files, name: file_facts(checkpoint / name)}
    (checkpoint / MANIFEST).write_text(replace(manifest, files=files).to_json())


def rewrite_config(edit: Callable[[ModelConfig], ModelConfig]) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        config = TridentConfig(model=edit(replace(TINY, seq_length=24)), tokenizer=TokenizerConfig(TokenizerKind.bytes))
        (in_checkpoint(run) / CONFIG).write_text(to_yaml(config))
        seal(in_checkpoint(run), CONFIG)

    return apply


def break_config(run: Path) -> None:
    (in_checkpoint(run) / CONFIG).write_text("model: [1")
    seal(in_checkpoint(run), CONFIG)


def lose_weights(run: Path) -> None:
    (in_checkpoint(run) / TENSORS / "rank_00001.safetensors").unlink()


def lose_weights_from_the_list(run: Path) -> None:
    manifest = read_manifest(in_checkpoint(run))
    files = {name: facts for name, facts in manifest.files.items() if "rank_00001" not in name}
    (in_checkpoint(run) / MANIFEST).write_text(replace(manifest, files=files).to_json())


def shorten_weights(run: Path) -> None:
    path = in_checkpoint(run) / TENSORS / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (remove_tokenizer, ConfigError, "must hold its tokenizer"),
        (empty_tokenizer, TridentError, "tokenizer"),
        (lambda run: (in_checkpoint(run) / CONFIG).unlink(), CheckpointError, "must hold a whole checkpoint"),
        (break_config, CheckpointError, "must be YAML"),
        (rewrite_config(lambda m: replace(m, num_layers=3)), CheckpointError, "must hold weight of blocks.2."),
        (rewrite_config(lambda m: replace(m, num_layers=1)), CheckpointError, "but also holds blocks.1."),
        (
            rewrite_config(lambda m: replace(m, tied_embeddings=False)),
            CheckpointError,
            "must hold weight of head.weight",
        ),
        (rewrite_config(lambda m: replace(m, hidden_size=32)), CheckpointError, "must have shape"),
        (
            rewrite_config(lambda m: replace(m, seq_length=48)),
            CheckpointError,
            "position.weight must have shape (48, 16) for this model, but has (24, 16)",
        ),
        (lose_weights, CheckpointError, "must hold a whole checkpoint"),
        (lose_weights_from_the_list, CheckpointError, "elements from 0 on of tensor-parallel rank 1 are missing"),
        (shorten_weights, CheckpointError, "must hold a whole checkpoint"),
    ],
)
def test_a_run_that_lacks_something_is_told_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], kind: type[TridentError], words: str
) -> None:
    write_run(tmp_path, tp=2)
    damage(tmp_path)
    with pytest.raises(kind) as caught:
        texts(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_config_is_the_checkpoints_own_and_not_that_of_the_run(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = texts(tmp_path)
    config = TridentConfig(model=replace(TINY, num_layers=7), tokenizer=TokenizerConfig(TokenizerKind.bytes))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert texts(tmp_path) == before


def test_a_file_that_the_manifest_does_not_know_is_not_opened(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = texts(tmp_path)
    (in_checkpoint(tmp_path) / TENSORS / "rank_00009.safetensors").write_bytes(b"of somebody else")
    assert texts(tmp_path) == before


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must hold a whole checkpoint"):
        texts(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        texts(tmp_path / "nothing")


def test_padding_of_the_loaded_model_is_zero(tmp_path: Path) -> None:
    checkpoint = write_run(tmp_path, tp=2)
    model = load_stage(settle(GenerateOptions(checkpoint=str(checkpoint))).source, single_process_groups())
    assert not model.training
    weight = model.get_parameter("layers.embedding.weight")
    assert weight.shape[0] == 264
    assert weight[257:].abs().sum() == 0
    for name, tensor in weights_of(model).items():
        assert torch.equal(tensor, weights_of(model_of(replace(TINY, seq_length=24), 257))[name]), name
