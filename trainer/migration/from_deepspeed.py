"""A DeepSpeed config, which says how a run is trained and not what, as keys here."""

from __future__ import annotations

from trainer.migration.batch import BatchNames, put_batch
from trainer.migration.draft import Draft, Why
from trainer.migration.model_numbers import rounded
from trainer.migration.rates import put_optimizer
from trainer.migration.run_settings import put_precision
from trainer.migration.shape import There
from trainer.migration.zero import put_zero

_BATCH = BatchNames(
    micro=("train_micro_batch_size_per_gpu",),
    whole=("train_batch_size",),
    accumulation=("gradient_accumulation_steps",),
)
_SCHEDULES = {"warmuplr": "constant", "warmupdecaylr": "linear", "warmupcosinelr": "cosine"}


def put_deepspeed(draft: Draft) -> There:
    """Set the keys that a DeepSpeed config says, and return its own numbers.

    Values "auto", which Hugging Face's Trainer fills in, are left out.

    Raises:
        ConfigError: a setting is none.
    """
    for name, setting in draft.settings.items():
        if setting.value == "auto":
            draft.drop(name, Why.by_hand, "Hugging Face's Trainer fills it in")
    auto = {name for name, setting in draft.settings.items() if setting.value == "auto"}
    known = {name: setting for name, setting in draft.settings.items() if name not in auto}
    draft.settings = known
    there = There()
    if any(draft.find(*names) for names in (_BATCH.micro, _BATCH.whole)):
        there.sequences_per_step = put_batch(draft, _BATCH, None)
    if draft.flag("fp16.enabled"):
        put_precision(draft, "fp16", "fp16.enabled")
    elif draft.flag("bf16.enabled", "bfloat16.enabled"):
        put_precision(draft, "bf16", "bf16.enabled", "bfloat16.enabled")
    else:
        put_precision(draft, "fp32", "fp16.enabled", "bf16.enabled")
    put_zero(draft)
    _optimizer(draft)
    _schedule(draft)
    draft.put("optimizer.grad_clip", draft.number("gradient_clipping"), "gradient_clipping")
    if draft.find("steps_per_print") is not None:
        draft.put("train.log_every", max(1, draft.integer("steps_per_print")), "steps_per_print")
    return there


def _optimizer(draft: Draft) -> None:
    if draft.find("optimizer.type") is None:
        return
    put_optimizer(draft, "optimizer.type")
    at = "optimizer.params."
    for key, name, default in (("lr", "lr", 1e-3), ("eps", "eps", 1e-8), ("weight_decay", "weight_decay", 0.0)):
        draft.put(f"optimizer.{key}", draft.number(f"{at}{name}", default=default), f"{at}{name}")
    betas = draft.find(f"{at}betas")
    first, second = betas.value if betas and isinstance(betas.value, list) and len(betas.value) == 2 else (0.9, 0.999)
    draft.put("optimizer.beta1", first, f"{at}betas")
    draft.put("optimizer.beta2", second, f"{at}betas")
    draft.drop_all(
        (f"{at}torch_adam", f"{at}adam_w_mode"), Why.no_effect, "AdamW is decoupled, and the fastest is taken"
    )


def _schedule(draft: Draft) -> None:
    setting = draft.find("scheduler.type")
    if setting is None:
        return
    at = "scheduler.params."
    kind = _SCHEDULES.get(str(setting.value).lower())
    if kind is None:
        draft.drop("scheduler.type", Why.unsupported, "schedules are constant, cosine, linear and wsd")
        return
    draft.put("schedule.kind", kind, "scheduler.type")
    draft.put("schedule.warmup_steps", draft.integer(f"{at}warmup_num_steps"), f"{at}warmup_num_steps")
    total = draft.find(f"{at}total_num_steps")
    if total is not None and kind != "constant":
        draft.put("train.steps", draft.integer(total.name), total.name, note="the steps of its schedule")
    lr = draft.number(f"{at}warmup_max_lr", "optimizer.params.lr", default=1e-3)
    if draft.find(f"{at}warmup_max_lr") is not None:
        draft.put("optimizer.lr", lr, f"{at}warmup_max_lr")
    if kind != "constant":
        ratio = draft.number(f"{at}cos_min_ratio", default=1e-4 if kind == "cosine" else 0.0)
        draft.put("schedule.min_lr_ratio", rounded(ratio), f"{at}cos_min_ratio")
    start = draft.find(f"{at}warmup_min_lr", f"{at}warmup_min_ratio")
    if start is not None and draft.number(start.name):
        draft.drop(start.name, Why.unsupported, "the warm-up begins at 0")
