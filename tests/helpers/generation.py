"""Models that write, and what they write, without a command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from tests.helpers.models import drawn_gpt
from tests.helpers.tiny_models import TINY
from trainer.checkpoint.fragments import write_fragments
from trainer.checkpoint.manifest import MANIFEST, Manifest, describe_layout, file_facts
from trainer.config.compose import to_yaml
from trainer.config.models import make_execution, make_model
from trainer.config.plan import make_plan
from trainer.config.schema import LayoutConfig, ModelConfig, TokenizerConfig, TokenizerKind, TridentConfig
from trainer.data.tokenizer import ByteTokenizer, Tokenizer
from trainer.engine.face import Fragment
from trainer.generation.decoder import Decoder, Request
from trainer.generation.generate import written
from trainer.generation.options import GenerateOptions
from trainer.generation.sampling import Sampling
from trainer.generation.task import settle
from trainer.inference.loading import load_stage
from trainer.inference.stage import StageModel, stage_model
from trainer.loop.state import TrainState
from trainer.model.cache import KeyValueCache
from trainer.model.gpt import GPT
from trainer.run_paths import CONFIG, TENSORS
from trainer.tensor_parallel.init import fill
from trainer.tensor_parallel.shard import shard, shard_spec, with_padding, without_padding
from trainer.topology.groups import FakeGroup, Group, SingleGroup, single_process_groups

GREEDY = Sampling(temperature=0.0)


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


def model_of(config: ModelConfig, vocab_size: int) -> GPT:
    return lively(drawn_gpt(config, vocab_size, 5))


def weights_of(model: GPT | StageModel) -> dict[str, torch.Tensor]:
    return {shard_spec(p).name: without_padding(p.detach(), shard_spec(p)) for p in model.parameters()}


def stage_with(
    config: ModelConfig,
    vocab_size: int,
    weights: Mapping[str, torch.Tensor],
    group: Group | None = None,
    names: Sequence[str] | None = None,
) -> StageModel:
    """Return some layers of a model with whole weights by name; by default all, on one rank."""
    group = group or SingleGroup()
    model = stage_model(make_model(config, vocab_size), make_execution(config, group.size), group, names)
    fill(model, lambda spec, _: shard(with_padding(weights[spec.name], spec), spec, group.rank, group.size))
    return model


def draws(
    model: StageModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | Sequence[int],
    sampling: Sampling = GREEDY,
    *,
    seeds: Sequence[int] | None = None,
    ends: Collection[int] = (),
    batch_size: int = 8,
    pipeline: Group | None = None,
) -> list[list[int]]:
    """Return the tokens that follow each prompt."""
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
    found: list[list[int]] = [[] for _ in prompts]

    def take(index: int, token: int) -> bool:
        if token in ends:
            return False
        found[index].append(token)
        return len(found[index]) < limits[index]

    each = zip(prompts, limits, seeds or [0] * len(prompts), strict=True)
    requests = [Request(tuple(ids), limit, seed, partial(take, index)) for index, (ids, limit, seed) in enumerate(each)]
    Decoder(model, sampling, pipeline).write(requests, batch_size)
    return found


@torch.inference_mode()
def cached_logits(model: StageModel, text: torch.Tensor, begun: Sequence[int]) -> torch.Tensor:
    """Return the logits after the first `begun[row]` tokens of each text [B, S], then after each next one, [T, B, V].

    Texts that begin with different lengths stay apart; the longest goes to its end.
    """
    cache = KeyValueCache(len(begun), text.shape[1])
    firsts = [text[row : row + 1, :length] for row, length in enumerate(begun)]
    found = [torch.cat([model(first, cache.begin(row, first)) for row, first in enumerate(firsts)])]
    for step in range(text.shape[1] - max(begun)):
        one = torch.stack([text[row, length + step] for row, length in enumerate(begun)]).unsqueeze(1)
        found.append(model(one, cache.go_on(one)))
    return torch.stack(found)


def at_rows(logits: torch.Tensor, begun: Sequence[int]) -> torch.Tensor:
    """Return from the logits of whole texts, [S, B, V], those that `cached_logits` has."""
    steps = logits.shape[0] - max(begun) + 1
    return torch.stack([logits[length - 1 : length - 1 + steps, row] for row, length in enumerate(begun)], dim=1)


def texts(path: Path, prompt: str | tuple[str, ...] = "def ", **options: object) -> list[str]:
    """Return what this process writes with a checkpoint, greedy unless the options say otherwise, prompts in front."""
    prompts = (prompt,) if isinstance(prompt, str) else prompt
    values: dict[str, object] = {"temperature": 0.0, **options}
    task = settle(GenerateOptions(checkpoint=str(path), prompt=prompts, **values))  # type: ignore[arg-type]
    model = load_stage(task.source, single_process_groups())
    decoder = Decoder(model, Sampling.of(task.options))
    found = written(decoder, task.beginnings, task.tokenizer, task.ends, task.options.batch_size)
    return [one.prompt.shown + text.shown for one, text in zip(task.beginnings, found, strict=True)]


def write_run(
    run: Path,
    tp: int = 1,
    model: ModelConfig = TINY,
    tokenizer: Tokenizer | None = None,
    step: int = 5,
    seq_length: int = 24,
) -> Path:
    """Write what a finished run leaves that generation reads; return the checkpoint."""
    tokenizer = tokenizer or ByteTokenizer()
    model = replace(model, seq_length=seq_length)
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
