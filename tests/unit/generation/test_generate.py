from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.models import drawn_gpt
from tests.helpers.reference import TINY, TINY_LLAMA, reference_logits
from trainer.checkpoint.fragments import write_fragments
from trainer.checkpoint.manifest import MANIFEST, Manifest, describe_layout, file_facts, read_manifest
from trainer.config.compose import to_yaml
from trainer.config.plan import make_plan
from trainer.config.schema import (
    LayoutConfig,
    ModelConfig,
    PositionKind,
    RecomputeKind,
    TokenizerConfig,
    TokenizerKind,
    TridentConfig,
)
from trainer.data.tokenizer import ByteTokenizer, Tokenizer, train_bpe
from trainer.engine.face import Fragment
from trainer.errors import CheckpointError, ConfigError, TridentError
from trainer.generation.generate import generate_text, load_model, sample
from trainer.generation.options import GenerateOptions
from trainer.loop.state import TrainState
from trainer.model.gpt import GPT
from trainer.run_paths import CONFIG, TENSORS
from trainer.tensor_parallel.shard import shard, shard_spec, without_padding
from trainer.topology.groups import FakeGroup

VOCABULARY = 29
GREEDY = GenerateOptions(temperature=0.0)
MODELS = {
    "gpt2": TINY,
    "gpt2_untied_window": replace(TINY, tied_embeddings=False, sliding_window=4),
    "llama": TINY_LLAMA,
    "mistral": replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=4, sliding_window=4),
    "learned_swiglu": replace(TINY_LLAMA, position=PositionKind.learned),
}


def lively(model: GPT) -> GPT:
    """Make logits differ enough that no two ids are near a tie, norms and biases included."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 if name.endswith("weight") else -0.1)
            else:
                # Blocks outweigh the residual stream: a tied model would only repeat what it reads.
                parameter.mul_(60.0 if name.startswith("blocks.") else 12.0)
    return model.eval()


def model_of(config: ModelConfig, vocab_size: int = VOCABULARY) -> GPT:
    return lively(drawn_gpt(config, vocab_size, 5))


def weights_of(model: GPT) -> dict[str, torch.Tensor]:
    return {shard_spec(p).name: without_padding(p.detach(), shard_spec(p)) for p in model.parameters()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt", [[3], [7, 1, 20, 4, 4, 11]], ids=["one", "six"])
def test_greedy_with_the_cache_equals_the_oracle_on_the_whole_text(name: str, prompt: list[int]) -> None:
    model = model_of(MODELS[name])
    spec = MODELS[name]
    drawn = sample(model, prompt, GREEDY, None, seed=0)
    assert len(drawn) == spec.seq_length - len(prompt)
    text = torch.tensor([prompt + drawn])
    logits = reference_logits(spec, weights_of(model), text)[0]
    likeliest = logits.argmax(dim=-1).tolist()
    assert drawn == likeliest[len(prompt) - 1 : -1]
    top = logits.topk(2, dim=-1).values
    assert float((top[:, 0] - top[:, 1]).min()) > 1e-4, "a near tie would make this test a matter of luck"
    assert len(set(drawn)) > 1, "a model that says one word sees no mistake in the cache"


def test_a_number_of_tokens_is_kept() -> None:
    model = model_of(TINY)
    assert len(sample(model, [1, 2], replace(GREEDY, max_tokens=4), None, seed=0)) == 4
    assert len(sample(model, [1] * 11, GREEDY, None, seed=0)) == 1


def test_the_end_of_text_ends_it_and_is_not_part_of_it() -> None:
    model = model_of(TINY)
    drawn = sample(model, [3], GREEDY, None, seed=0)
    last = next(i for i, token in enumerate(drawn) if i >= 2 and token not in drawn[:i])
    assert sample(model, [3], GREEDY, drawn[last], seed=0) == drawn[:last]
    assert sample(model, [3], GREEDY, drawn[0], seed=0) == []


@pytest.mark.parametrize(
    ("length", "max_tokens", "words"),
    [
        (12, 0, "the prompt has 12 tokens, which leaves no room for another"),
        (40, 0, "the prompt has 40 tokens, which leaves no room for another"),
        (10, 3, "the prompt has 10 tokens and max_tokens is 3"),
        (1, 10**9, "the prompt has 1 tokens and max_tokens is 1000000000"),
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_does_not_fit_is_refused(name: str, length: int, max_tokens: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sample(model_of(MODELS[name]), [1] * length, replace(GREEDY, max_tokens=max_tokens), None, seed=0)
    assert words in str(caught.value)
    assert "model.seq_length (12 tokens)" in str(caught.value)


def test_seeds_are_reproducible_and_differ() -> None:
    model, options = model_of(TINY), GenerateOptions(temperature=2.0)
    first, again, *others = (sample(model, [3], options, None, seed) for seed in (1, 1, 2, 3, 4))
    assert first == again
    assert any(other != first for other in others)


def test_padding_and_ids_beyond_the_vocabulary_are_never_drawn() -> None:
    model = model_of(replace(TINY, vocab_pad_multiple=64))
    with torch.no_grad():
        model.embedding.weight[VOCABULARY:] = 50.0
    drawn = {t for seed in range(20) for t in sample(model, [3], GenerateOptions(temperature=50.0), None, seed)}
    assert max(drawn) < VOCABULARY
    assert len(drawn) > VOCABULARY // 2


# --- from a run folder


def write_run(
    run: Path, tp: int = 1, model: ModelConfig = TINY, tokenizer: Tokenizer | None = None, step: int = 5
) -> Path:
    """Write what a finished run leaves that generation reads; return the checkpoint."""
    tokenizer = tokenizer or ByteTokenizer()
    model = replace(model, seq_length=24)
    kind = TokenizerKind.bytes if isinstance(tokenizer, ByteTokenizer) else TokenizerKind.bpe
    config = TridentConfig(model=model, layout=LayoutConfig(tensor_parallel_size=tp), tokenizer=TokenizerConfig(kind))
    plan = make_plan(config, tokenizer.vocab_size)
    checkpoint = run / "checkpoints" / f"step_{step}"
    (checkpoint / TENSORS).mkdir(parents=True)
    whole = weights_of(model_of(model, tokenizer.vocab_size))
    for rank in range(tp):
        cut = drawn_gpt(plan.config.model, plan.model.vocab_size, 5, FakeGroup(rank, tp))
        parts = []
        for spec in map(shard_spec, cut.parameters()):
            if spec.dim is None and rank != 0:
                continue
            full = torch.zeros(spec.global_shape)
            without_padding(full, spec).copy_(whole[spec.name] + (step - 5))
            values = shard(full, spec, rank, tp).reshape(-1)
            # Moments lie beside the weights; generation must not take them.
            parts += [
                Fragment("weight", spec, rank, tp, 0, values),
                Fragment("exp_avg", spec, rank, tp, 0, values + 1),
            ]
        write_fragments(checkpoint / TENSORS / f"rank_{rank:05d}.safetensors", parts)
    (checkpoint / CONFIG).write_text(to_yaml(config))
    files = [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*.*") if path.is_file()]
    manifest = Manifest(
        step=step,
        vocab_size=tokenizer.vocab_size,
        train_state=TrainState(step, sample_length=8).to_dict(),
        scalars={},
        probe_loss=4.5,
        layout=describe_layout(plan),
        versions={},
        files={name: file_facts(checkpoint / name) for name in files},
    )
    (checkpoint / MANIFEST).write_text(manifest.to_json())
    (run / "config.yaml").write_text(to_yaml(config))
    (run / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(run / "tokenizer")
    return checkpoint


def texts(path: Path, prompt: str = "def ", **options: object) -> list[str]:
    chosen = replace(GenerateOptions(checkpoint=str(path), prompt=prompt, temperature=0.0), **options)  # type: ignore[arg-type]
    return list(generate_text(chosen))


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
    model = load_model(checkpoint, read_manifest(checkpoint))
    assert not model.training
    assert model.embedding.weight.shape[0] == 264
    assert model.embedding.weight[257:].abs().sum() == 0
    for name, tensor in weights_of(model).items():
        assert torch.equal(tensor, weights_of(model_of(replace(TINY, seq_length=24), 257))[name]), name
