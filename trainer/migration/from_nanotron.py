"""The settings of Hugging Face's nanotron, as keys here."""

from __future__ import annotations

from trainer.migration.batch import BatchNames, put_batch
from trainer.migration.draft import Draft, Why
from trainer.migration.foreign import shown
from trainer.migration.nanotron_model import put_model
from trainer.migration.rates import Curve, put_curve, put_optimizer
from trainer.migration.run_settings import UNKNOWN_DATA, put_evaluation, put_precision, put_saving
from trainer.migration.shape import There
from trainer.migration.token_pairs import path_names
from trainer.migration.zero import put_stage

_OPTIMIZER = "optimizer."
_RATE, _FACTORY = "optimizer.learning_rate_scheduler.", "optimizer.optimizer_factory."
_BATCH = BatchNames(micro=("tokens.micro_batch_size",), accumulation=("tokens.batch_accumulation_per_replica",))


def put_nanotron(draft: Draft) -> There:
    """Set the keys that a config of nanotron says or implies, and return its own numbers.

    Raises:
        ConfigError: a setting is missing, or is none.
    """
    there = There()
    for key, name in (("pipeline_parallel_size", "pp"), ("tensor_parallel_size", "tp"), ("data_parallel_size", "dp")):
        draft.put(f"layout.{key}", draft.size(f"parallelism.{name}", default=1), f"parallelism.{name}")
    if draft.count("layout.tensor_parallel_size") > 1:
        is_sharded = draft.text("parallelism.tp_mode", default="ALL_REDUCE").upper() == "REDUCE_SCATTER"
        draft.put("layout.sequence_parallel", is_sharded, "parallelism.tp_mode")
    else:
        draft.drop("parallelism.tp_mode", Why.no_effect, "there is one tensor-parallel rank")
    engine = draft.text("parallelism.pp_engine", default="1f1b").lower()
    if engine != "1f1b":
        draft.drop("parallelism.pp_engine", Why.no_effect, "1f1b computes the same, with fewer micro-batches in memory")
    else:
        draft.put("layout.pipeline_schedule", "1f1b", "parallelism.pp_engine")
    there.seq_length = draft.size("tokens.sequence_length")
    draft.put("model.seq_length", there.seq_length, "tokens.sequence_length")
    there.sequences_per_step = put_batch(draft, _BATCH, None)
    put_model(draft, there)
    _data(draft)
    steps = draft.size("tokens.train_steps")
    draft.put("train.steps", steps, "tokens.train_steps")
    _rates(draft, steps)
    draft.put("train.seed", draft.integer("general.seed", default=42), "general.seed")
    every = "logging.iteration_step_info_interval"
    draft.put("train.log_every", max(1, draft.integer(every, default=1)), every)
    put_evaluation(draft, "tokens.val_check_interval", "tokens.limit_val_batches", -1, 0)
    _rest(draft)
    return there


def _data(draft: Draft) -> None:
    stages = draft.find("data_stages")
    found = stages.value if stages is not None and isinstance(stages.value, list) else []
    dataset = _mapping(_mapping(found[0] if found else None, "data"), "dataset")
    if stages is not None and len(found) > 1:
        reason = f"the first of its {len(found)} stages is taken; the others are data.blend_schedule"
        draft.drop("data_stages", Why.by_hand, reason)
    folders = dataset.get("dataset_folder") or dataset.get("dataset_path")
    if folders:
        _folders(draft, folders, dataset)
    elif dataset.get("hf_dataset_or_datasets"):
        _hub(draft, dataset)
    else:
        draft.put("data.source", "tokens")
        draft.put("data.files", ["${oc.env:DATA_PATH,DATA_PATH}"], note=UNKNOWN_DATA)
    tokenizer = draft.find("tokenizer.tokenizer_name_or_path")
    name = shown(tokenizer.value) if tokenizer else str(dataset.get("tokenizer_name") or "")
    if name:
        draft.put("tokenizer.kind", "pretrained", "tokenizer.tokenizer_name_or_path")
        draft.put("tokenizer.path", name, "tokenizer.tokenizer_name_or_path")
        draft.put("tokenizer.allow_unused_ids", True, origin="the model's vocabulary is said apart")
    interval, batches = (
        draft.integer("tokens.val_check_interval", default=-1),
        draft.integer("tokens.limit_val_batches"),
    )
    if interval < 1 or batches < 1:
        draft.put("data.validation_fraction", 0.0, "tokens.limit_val_batches")


def _mapping(value: object, key: str = "") -> dict[str, object]:
    """Return a value that should be a mapping, or what it has under a key that should be one."""
    held = value if isinstance(value, dict) else {}
    inner = held.get(key) if key else held
    return inner if isinstance(inner, dict) else {}


def _folders(draft: Draft, folders: object, dataset: dict[str, object]) -> None:
    """Set folders of token files, with their weights."""
    weights = list(folders.values()) if isinstance(folders, dict) else dataset.get("dataset_weights")
    paths = [str(one) for one in folders] if isinstance(folders, (list, dict)) else [str(folders)]
    draft.put("data.source", "tokens", "data_stages")
    size = dataset.get("token_size_in_bytes")
    if size in (2, 4):
        draft.put("data.token_dtype", "uint16" if size == 2 else "uint32", "data_stages")
    if len(paths) == 1:
        draft.put("data.files", paths, "data_stages")
        return
    shares = weights if isinstance(weights, list) and len(weights) == len(paths) else [1.0] * len(paths)
    named = zip(path_names(paths), shares, paths, strict=True)
    draft.put("data.blend", {name: {"weight": share, "files": [path]} for name, share, path in named}, "data_stages")


def _hub(draft: Draft, dataset: dict[str, object]) -> None:
    names = dataset["hf_dataset_or_datasets"]
    if not isinstance(names, str):
        draft.drop("data_stages", Why.by_hand, "several data sets are data.blend, each with a weight and its hub_path")
        names = next(iter(names)) if isinstance(names, (list, dict)) and names else ""
    draft.put("data.source", "hub", "data_stages")
    draft.put("data.hub_path", str(names), "data_stages")
    for key, name in (
        ("hub_name", "hf_dataset_config_name"),
        ("hub_split", "hf_dataset_splits"),
        ("text_key", "text_column_name"),
    ):
        value = dataset.get(name)
        if value:
            draft.put(f"data.{key}", "+".join(map(str, value)) if isinstance(value, list) else value, "data_stages")


def _rates(draft: Draft, steps: int) -> None:
    lr = draft.number(f"{_RATE}learning_rate")
    draft.put("optimizer.lr", lr, f"{_RATE}learning_rate")
    put_optimizer(draft, f"{_FACTORY}name", "adamw")
    for key, name, default in (
        ("beta1", f"{_FACTORY}adam_beta1", 0.9),
        ("beta2", f"{_FACTORY}adam_beta2", 0.999),
        ("eps", f"{_FACTORY}adam_eps", 1e-8),
        ("weight_decay", f"{_OPTIMIZER}weight_decay", 0.0),
        ("grad_clip", f"{_OPTIMIZER}clip_grad", 0.0),
    ):
        draft.put(f"optimizer.{key}", draft.number(name, default=default), name)
    warmup = draft.integer(f"{_RATE}lr_warmup_steps")
    rise = draft.find(f"{_RATE}lr_warmup_style")
    is_risen = rise is None or str(rise.value) == "linear"
    start_name, length_name = f"{_RATE}lr_decay_starting_step", f"{_RATE}lr_decay_steps"
    start = draft.integer(start_name, default=warmup)
    taken = warmup + (start if draft.find(start_name) else 0)
    length = draft.integer(length_name, default=max(1, steps - taken))
    style = draft.text(f"{_RATE}lr_decay_style", default="constant").lower()
    is_stable = start > warmup and style != "constant"
    curve = Curve(
        style="wsd" if is_stable else style,
        warmup_steps=warmup if is_risen else 0,
        end=start + length,
        lr=lr,
        min_lr=draft.number(f"{_RATE}min_decay_lr"),
        names=(f"{_RATE}lr_decay_style",),
        warmup_names=(f"{_RATE}lr_warmup_steps", f"{_RATE}lr_warmup_style"),
        end_names=(start_name, length_name),
        min_names=(f"{_RATE}min_decay_lr",),
        decay=length,
        decay_style=style,
    )
    put_curve(draft, curve, steps)


def _rest(draft: Draft) -> None:
    dtype = draft.text("model.dtype", default="bfloat16").lower().removeprefix("torch.")
    put_precision(draft, {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(dtype, dtype), "model.dtype")
    put_stage(draft, draft.integer("optimizer.zero_stage"), "optimizer.zero_stage")
    every = "checkpoints.checkpoint_interval"
    put_saving(draft, draft.integer(every), (every,))
    draft.put("checkpoint.save_final", draft.flag("checkpoints.save_final_state"), "checkpoints.save_final_state")
    put_project(draft)
    draft.drop_all(
        (
            name
            for name in draft.settings
            if name.startswith(("checkpoints.", "general.", "logging.")) and name not in draft.used
        ),
        Why.no_effect,
        "the run's folder has it, or nothing needs it",
    )
    draft.drop_all(
        (
            name
            for name in draft.settings
            if name.startswith(("profiler", "lighteval", "s3_upload", "metrics_logging")) and name not in draft.used
        ),
        Why.no_effect,
        "it changes nothing that is trained",
    )
    draft.drop_all(
        (
            "parallelism.tp_linear_async_communication",
            "parallelism.tp_recompute_allgather",
            "parallelism.moe_layer_recompute",
            "optimizer.accumulate_grad_in_fp32",
            "model.ddp_bucket_cap_mb",
            f"{_FACTORY}torch_adam_is_fused",
            "tokenizer.tokenizer_max_length",
            "tokenizer.tokenizer_revision",
            "tokens.limit_test_batches",
        ),
        Why.no_effect,
        "it changes nothing that is trained",
    )
    excluded = draft.find("optimizer.weight_decay_exclude_named_params")
    if excluded is not None and excluded.value:
        draft.drop(excluded.name, Why.by_hand, "weight decay is of matrices only, norms and biases have none")


def put_project(draft: Draft) -> None:
    """Set the project in wandb, in which nanotron logs by itself."""
    project = draft.find("general.project")
    if project is not None:
        draft.put("logging.wandb_project", shown(project.value), "general.project")
    resume = draft.find("checkpoints.resume_checkpoint_path")
    if resume is not None:
        draft.drop(
            resume.name,
            Why.by_hand,
            "its checkpoints are of another form: a model that is exported to Hugging "
            "Face begins a run here with checkpoint.init_from",
        )
