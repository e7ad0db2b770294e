"""The settings of EleutherAI's GPT-NeoX, as keys here."""

from __future__ import annotations

import math

from trainer.migration.batch import BatchNames, Samples, put_batch
from trainer.migration.draft import Draft, Why
from trainer.migration.foreign import as_number
from trainer.migration.gpt_neox_model import put_model
from trainer.migration.model_numbers import padded
from trainer.migration.rates import Curve, put_curve, put_optimizer
from trainer.migration.run_settings import (
    put_evaluation,
    put_places,
    put_precision,
    put_saving,
    put_unknown_data,
    put_unknown_length,
)
from trainer.migration.shape import There
from trainer.migration.token_pairs import put_files, put_split, settle_vocabulary
from trainer.migration.zero import put_zero

_BATCH = BatchNames(
    micro=("train_micro_batch_size_per_gpu", "batch_size"),
    whole=("train_batch_size",),
    accumulation=("gradient_accumulation_steps", "gas"),
)
_OWN = ("output_layer_parallelism", "use_bias_in_norms", "layernorm_fusion", "rmsnorm_fusion", "rope_fusion")


def put_gpt_neox(draft: Draft) -> There:
    """Set the keys that a config of GPT-NeoX says or implies, and return its own numbers.

    Raises:
        ConfigError: a setting is missing, or is none.
    """
    there = There()
    pipeline = max(1, draft.integer("pipe_parallel_size", default=0))
    draft.put("layout.pipeline_parallel_size", pipeline, "pipe_parallel_size")
    tensor = max(1, draft.integer("model_parallel_size", default=1))
    draft.put("layout.tensor_parallel_size", tensor, "model_parallel_size")
    if tensor > 1:
        draft.put("layout.sequence_parallel", draft.flag("sequence_parallel"), "sequence_parallel")
    else:
        draft.drop("sequence_parallel", Why.no_effect, "there is one tensor-parallel rank")
    put_model(draft, there)
    there.seq_length = draft.count("model.seq_length")
    there.sequences_per_step = put_batch(draft, _BATCH, _ranks(draft))
    _data(draft, there, tensor)
    _length(draft, there)
    _rates(draft, draft.count("train.steps"))
    _engine(draft)
    draft.put("train.seed", draft.interval("seed", default=1234), "seed")
    draft.put("train.log_every", max(1, draft.interval("log_interval", default=100)), "log_interval", "steps_per_print")
    put_evaluation(draft, "eval_interval", "eval_iters", 1000, 100)
    _checkpoints(draft)
    draft.drop_all(_OWN, Why.no_effect, "how it is computed there; it changes no parameter")
    return there


def _ranks(draft: Draft) -> int | None:
    whole = draft.find("global_num_gpus", "world_size")
    if whole is not None:
        return draft.integer(whole.name)
    nodes, gpus = draft.integer("num_nodes", default=-1), draft.integer("num_gpus", default=0)
    return nodes * gpus if nodes > 0 and gpus > 0 else None


def _data(draft: Draft, there: There, tensor: int) -> None:
    train = "train_data_paths" if draft.find("train_data_paths") else "data_path"
    named = put_files(draft, train, "train_data_weights", ("valid_data_paths",))
    if "data.source" not in draft.entries:
        put_unknown_data(draft)
    put_split(draft, "split", named)
    draft.drop("test_data_paths", Why.no_effect, "`trident evaluate` takes data of its own")
    multiple = draft.size("make_vocab_size_divisible_by", default=128)
    there.vocab_size = settle_vocabulary(draft, ("padded_vocab_size", "vocab_size"), "tokenizer_type", ("vocab_file",))
    if there.vocab_size is None and "tokenizer_type" not in draft.settings and "vocab_file" not in draft.settings:
        there.vocab_size = 50257
        draft.put("model.vocab_size", 50257, note="of the default there, GPT-2's tokenizer")
    draft.put("model.vocab_pad_multiple", multiple, "make_vocab_size_divisible_by")
    if there.vocab_size is not None:
        there.padded_vocab_size = padded(there.vocab_size, multiple * tensor)
    file = draft.find("vocab_file")
    if file is not None and str(file.value).endswith("tokenizer.json"):
        draft.put("tokenizer.kind", "pretrained", "tokenizer_type", "vocab_file")
        draft.put("tokenizer.path", str(file.value), "vocab_file")
    else:
        draft.drop_all(
            ("tokenizer_type", "vocab_file", "merge_file"),
            Why.by_hand,
            "training reads ready ids; for texts set tokenizer=pretrained and tokenizer.path (a tokenizer.json, or a "
            "folder with vocab.json and merges.txt)",
        )


def _length(draft: Draft, there: There) -> None:
    samples, epochs = draft.find("train_samples"), draft.find("train_epochs")
    if draft.find("train_iters") is not None:
        draft.put("train.steps", draft.size("train_iters"), "train_iters")
    elif epochs is not None:
        draft.put("train.epochs", as_number(epochs), "train_epochs")
    elif samples is not None and there.sequences_per_step:
        steps = Samples(there.sequences_per_step).steps(as_number(samples), is_run=True)
        draft.put("train.steps", steps, "train_samples")
    else:
        put_unknown_length(draft)


def _rates(draft: Draft, steps: int) -> None:
    lr = draft.number("optimizer.params.lr", "lr", default=0.001)
    draft.put("optimizer.lr", lr, "optimizer.params.lr", "lr")
    put_optimizer(draft, "optimizer.type")
    betas = draft.find("optimizer.params.betas")
    first, second = betas.value if betas and isinstance(betas.value, list) and len(betas.value) == 2 else (0.9, 0.999)
    draft.put("optimizer.beta1", first, "optimizer.params.betas")
    draft.put("optimizer.beta2", second, "optimizer.params.betas")
    draft.put("optimizer.eps", draft.number("optimizer.params.eps", default=1e-8), "optimizer.params.eps")
    draft.put("optimizer.weight_decay", draft.number("weight_decay", default=0.1), "weight_decay")
    draft.put(
        "optimizer.grad_clip",
        draft.number("gradient_clipping", "clip_grad", default=1.0),
        "gradient_clipping",
        "clip_grad",
    )
    end = steps
    if draft.find("lr_decay_iters") is not None:
        end = draft.size("lr_decay_iters")
    elif draft.find("lr_decay_fraction") is not None:
        end = max(1, math.floor(steps * draft.number("lr_decay_fraction")))
    curve = Curve(
        style=draft.text("lr_decay_style", default="linear").lower(),
        warmup_steps=round(draft.number("warmup", default=0.01) * end),
        end=end,
        lr=lr,
        min_lr=draft.number("min_lr"),
        names=("lr_decay_style",),
        warmup_names=("warmup",),
        end_names=("lr_decay_iters", "lr_decay_fraction"),
    )
    put_curve(draft, curve, steps)


def _engine(draft: Draft) -> None:
    """Set precision and ZeRO."""
    # Earlier versions wrote {"fp16": {"enabled": true, "type": "bfloat16"}}.
    said = draft.text("precision", "fp16.type").lower()
    if said in ("bfloat16", "bf16"):
        put_precision(draft, "bf16", "precision", "fp16.type", "fp16.enabled")
    elif draft.flag("fp16.enabled", "fp16.fp16") or said == "fp16":
        put_precision(draft, "fp16", "fp16.enabled", "fp16.fp16", "precision")
    elif draft.flag("bf16.enabled", "bfloat16.enabled") or said in ("bfloat16", "bf16"):
        put_precision(draft, "bf16", "bf16.enabled", "bfloat16.enabled", "precision")
    else:
        put_precision(draft, "fp32", "precision", "fp16.enabled", "bf16.enabled")
    put_zero(draft)


def _checkpoints(draft: Draft) -> None:
    scale = draft.text("checkpoint_scale", default="linear")
    names = ("save_interval", "checkpoint_factor")
    if scale != "linear":
        draft.drop_all((*names, "checkpoint_scale"), Why.by_hand, "checkpoints are saved every checkpoint.every steps")
    elif draft.find(*names) is not None:
        put_saving(draft, int(draft.number(*names)), names, "keep_last_n_checkpoints")
    draft.drop("extra_save_iters", Why.by_hand, "checkpoints are saved every checkpoint.every steps")
    put_places(draft, "save", "load")
    if draft.find("tensorboard_dir") is not None:
        draft.put("logging.tensorboard", True, "tensorboard_dir", note="in the run's own folder")
