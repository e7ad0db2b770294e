"""The settings of Megatron-LM and Megatron-DeepSpeed, as keys here."""

from __future__ import annotations

import math
from collections.abc import Mapping

from trainer.migration.batch import BatchNames, Samples, put_batch, put_rampup, put_size_steps
from trainer.migration.draft import Draft, Why
from trainer.migration.foreign import Setting, Unresolved, as_number
from trainer.migration.megatron_model import put_model
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

_BATCH = BatchNames(micro=("micro_batch_size", "batch_size"), whole=("global_batch_size",))
_OWN = (
    *("deepspeed", "deepspeed_config", "data_impl", "tensorboard_queue_size", "log_batch_size_to_tensorboard"),
    *("log_validation_ppl_to_tensorboard", "log_optimizer_states_to_tensorboard", "valid_num_workers"),
    *("abort_on_unmet_fused_kernel_constraints", "sync_tp_duplicated_parameters", "no_query_key_layer_scaling"),
    *("no_async_tensor_model_parallel_allreduce", "log_memory_to_tensorboard", "synchronize_each_layer"),
    *("deepspeed_activation_checkpointing", "distribute_checkpointed_activations", "cpu_optimizer_pin"),
)
_DECAYS = ("lr_decay_iters", "lr_decay_samples", "lr_decay_tokens")


def put_megatron(draft: Draft, surroundings: Mapping[str, Setting]) -> There:
    """Set the keys that Megatron's arguments say or imply, and return its own numbers.

    Args:
        draft: the experiment; its settings are the arguments, and those of a DeepSpeed config beside them.
        surroundings: arguments of the launcher.

    Raises:
        ConfigError: an argument is missing, or is none.
    """
    there = There()
    _layout(draft)
    put_model(draft, there)
    length = draft.count("model.seq_length")
    there.seq_length = length
    there.sequences_per_step = put_batch(draft, _BATCH, _ranks(surroundings))
    whole = draft.count("batch.global_batch_size")
    if draft.find("step_batch_size_schedule") is not None:
        samples = put_size_steps(draft, "step_batch_size_schedule", whole, length)
    else:
        samples = put_rampup(draft, "rampup_batch_size", whole, length)
    _data(draft, there)
    _length(draft, samples, length)
    _rates(draft, samples, draft.count("train.steps"), length)
    _engine(draft)
    draft.put("train.seed", draft.interval("seed", default=1234), "seed")
    draft.put("train.log_every", max(1, draft.interval("log_interval", default=100)), "log_interval")
    put_evaluation(draft, "eval_interval", "eval_iters", 1000, 100)
    every = draft.find("save_interval")
    if every is not None:
        put_saving(draft, draft.interval("save_interval", default=0), ("save_interval",))
    put_places(draft, "save", "load")
    if draft.find("tensorboard_dir") is not None:
        draft.put("logging.tensorboard", True, "tensorboard_dir", note="in the run's own folder")
    draft.drop_all(_OWN, Why.no_effect, "how it is computed or logged there; it changes no parameter")
    return there


def _layout(draft: Draft) -> None:
    pipeline, tensor = ("pipeline_model_parallel_size",), ("tensor_model_parallel_size", "model_parallel_size")
    draft.put("layout.pipeline_parallel_size", draft.size(*pipeline, default=1), *pipeline)
    draft.put("layout.tensor_parallel_size", draft.size(*tensor, default=1), *tensor)
    if draft.flag("no_pipeline_parallel"):
        draft.put("layout.pipeline_parallel_size", 1, "no_pipeline_parallel")
    if draft.count("layout.tensor_parallel_size") > 1:
        draft.put("layout.sequence_parallel", draft.flag("sequence_parallel"), "sequence_parallel")
    else:
        draft.drop("sequence_parallel", Why.no_effect, "there is one tensor-parallel rank")


def _ranks(surroundings: Mapping[str, Setting]) -> int | None:
    """Return the GPUs that the launcher starts, if it says how many."""

    def known(*names: str) -> int | None:
        for name in names:
            value = surroundings[name].value if name in surroundings else None
            if isinstance(value, str) and value.isdigit() and int(value) > 0:
                return int(value)
        return None

    gpus = known("nproc_per_node", "num_gpus")
    nodes = known("nnodes", "num_nodes")
    given = surroundings.get("nnodes") or surroundings.get("num_nodes")
    if nodes is None and given is not None and isinstance(given.value, Unresolved):
        nodes = known("sbatch_nodes")
    elif nodes is None:
        nodes = 1
    return gpus * nodes if gpus is not None and nodes is not None else None


def _data(draft: Draft, there: There) -> None:
    train = "train_data_path" if draft.find("train_data_path") else "data_path"
    if draft.flag("mock_data"):
        draft.put("data.source", "synthetic", "mock_data")
    named = put_files(draft, train, valid=("valid_data_path",))
    draft.drop("test_data_path", Why.no_effect, "`trident evaluate` takes data of its own")
    if "data.source" not in draft.entries:
        put_unknown_data(draft)
    for name in (
        "train_weighted_split_paths_path",
        "valid_weighted_split_paths_path",
        "train_weighted_split_paths",
        "valid_weighted_split_paths",
        "per_split_data_args_path",
        "data_args_path",
    ):
        draft.drop(name, Why.by_hand, "its files and weights are data.blend, and data.validation_files for evaluation")
    if draft.value("data.source") != "synthetic":
        put_split(draft, "split", named)
    tensor = draft.count("layout.tensor_parallel_size")
    multiple = draft.size("make_vocab_size_divisible_by", default=128)
    there.vocab_size = settle_vocabulary(
        draft, ("pad_vocab_size_to", "padded_vocab_size", "vocab_size"), "tokenizer_type", ("vocab_file",)
    )
    if (
        there.vocab_size is not None
        and "pad_vocab_size_to" in draft.settings
        and there.vocab_size % (multiple * tensor)
    ):
        multiple = 1
    draft.put("model.vocab_pad_multiple", multiple, "make_vocab_size_divisible_by")
    if there.vocab_size is not None:
        there.padded_vocab_size = padded(there.vocab_size, multiple * tensor)
    _tokenizer(draft)
    if draft.flag("reset_attention_mask") and draft.flag("reset_position_ids"):
        draft.put("data.mask_documents", True, "reset_attention_mask", "reset_position_ids")
    if draft.flag("eod_mask_loss"):
        draft.put("data.boundary_label", "ignore", "eod_mask_loss")


def _tokenizer(draft: Draft) -> None:
    kind = draft.text("tokenizer_type").lower()
    path = draft.find("tokenizer_model", "tokenizer_name_or_path")
    names = ("tokenizer_type", "tokenizer_model", "tokenizer_name_or_path", "vocab_file", "merge_file")
    if (
        path is not None
        and not path.is_unresolved
        and kind in ("huggingfacetokenizer", "pretrainedfromhf", "hftokenizer", "")
    ):
        draft.put("tokenizer.kind", "pretrained", "tokenizer_type")
        draft.put("tokenizer.path", str(path.value), path.name)
        if draft.find("pad_vocab_size_to") is not None:
            draft.put("tokenizer.allow_unused_ids", True, "pad_vocab_size_to")
        return
    draft.drop_all(
        names,
        Why.by_hand,
        "training reads ready ids; for texts set tokenizer=pretrained and tokenizer.path (a tokenizer.json, "
        "or a folder with vocab.json and merges.txt)",
    )


def _length(draft: Draft, samples: Samples, length: int) -> None:
    tokens, read = draft.find("train_tokens"), draft.find("train_samples")
    if draft.find("train_iters") is not None:
        draft.put("train.steps", draft.size("train_iters"), "train_iters")
    elif tokens is not None:
        # Megatron-DeepSpeed ends at whichever comes first.
        number = min(as_number(tokens) / length, as_number(read) if read else math.inf)
        draft.put("train.steps", samples.steps(number), "train_tokens", "train_samples")
    elif read is not None:
        draft.put("train.steps", samples.steps(as_number(read), is_run=True), "train_samples")
    else:
        put_unknown_length(draft)


def _rates(draft: Draft, samples: Samples, steps: int, length: int) -> None:
    lr = draft.number("lr")
    if draft.find("lr") is not None:
        draft.put("optimizer.lr", lr, "lr")
    put_optimizer(draft, "optimizer")
    for key, name, default in (
        ("beta1", "adam_beta1", 0.9),
        ("beta2", "adam_beta2", 0.999),
        ("eps", "adam_eps", 1e-8),
        ("weight_decay", "weight_decay", 0.01),
        ("grad_clip", "clip_grad", 1.0),
    ):
        draft.put(f"optimizer.{key}", draft.number(name, default=default), name)
    end = next((_steps(draft, name, samples, length) for name in _DECAYS if draft.find(name) is not None), steps)
    warmup, names = _warmup(draft, samples, end, length)
    decays = ("lr_wsd_decay_iters", "lr_wsd_decay_samples")
    decay = next((_steps(draft, name, samples, length) for name in decays if draft.find(name) is not None), None)
    curve = Curve(
        style=draft.text("lr_decay_style", default="linear").lower(),
        warmup_steps=warmup,
        end=end,
        lr=lr,
        min_lr=draft.number("min_lr"),
        names=("lr_decay_style",),
        warmup_names=names,
        end_names=(*_DECAYS, *decays),
        decay=decay,
        decay_style=draft.text("lr_wsd_decay_style", default="exponential").lower(),
    )
    put_curve(draft, curve, steps)


def _steps(draft: Draft, name: str, samples: Samples, length: int) -> int:
    """Return a number of iterations, samples or tokens as steps."""
    if name.endswith("iters"):
        return draft.integer(name)
    return samples.steps(draft.number(name) / (length if name.endswith("tokens") else 1))


def _warmup(draft: Draft, samples: Samples, end: int, length: int) -> tuple[int, tuple[str, ...]]:
    if draft.find("lr_warmup_fraction") is not None:
        return round(draft.number("lr_warmup_fraction") * end), ("lr_warmup_fraction",)
    for name in ("lr_warmup_iters", "lr_warmup_samples", "lr_warmup_tokens"):
        if draft.find(name) is not None and draft.number(name):
            return _steps(draft, name, samples, length), (name,)
    if draft.find("warmup") is not None:
        return round(draft.number("warmup") * end), ("warmup",)
    return 0, ("lr_warmup_iters", "lr_warmup_samples", "lr_warmup_tokens")


def _engine(draft: Draft) -> None:
    """Set precision and ZeRO, which DeepSpeed's config beside the arguments may say, too."""
    for dtype in ("fp16", "bf16"):
        if draft.flag(dtype, f"{dtype}.enabled"):
            put_precision(draft, dtype, dtype, f"{dtype}.enabled")
            break
    else:
        put_precision(draft, "fp32", "fp16.enabled", "bf16.enabled")
    scale = draft.find("initial_loss_scale")
    if draft.value("precision.dtype") == "fp16" and scale is not None:
        power = round(math.log2(max(1.0, as_number(scale))))
        draft.put("precision.initial_scale_power", min(31, power), "initial_loss_scale")
    stages = ("zero_stage", "zero_optimization.stage")
    if draft.find(*stages) is not None or not draft.flag("use_distributed_optimizer"):
        put_zero(draft)
    else:
        draft.put("zero.stage", 1, "use_distributed_optimizer")
    if draft.flag("cpu_optimizer") or draft.flag("optimizer_cpu_offload"):
        draft.put("zero.offload", "cpu", "cpu_optimizer", "optimizer_cpu_offload")
