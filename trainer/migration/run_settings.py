"""Settings of a run that several foreign trainers have in the same way. No torch."""

from __future__ import annotations

from trainer.config.schema import TrainConfig
from trainer.migration.draft import Draft, Why

UNKNOWN_DATA = "the files name no data: set DATA_PATH in the environment, or the key"


def put_precision(draft: Draft, dtype: str, *names: str) -> None:
    """Set the precision, and the loss scale of fp16 where DeepSpeed's section says it."""
    draft.put("precision.dtype", dtype, *names)
    power, window = draft.find("fp16.initial_scale_power"), draft.find("fp16.loss_scale_window", "loss_scale_window")
    if dtype != "fp16":
        return
    if power is not None:
        draft.put("precision.initial_scale_power", min(31, draft.integer(power.name)), power.name)
    if window is not None:
        draft.put("precision.loss_scale_window", draft.integer(window.name), window.name)
    for name in ("fp16.loss_scale", "loss_scale"):
        if name in draft.settings and draft.find(name) is not None and draft.number(name):
            draft.drop(name, Why.unsupported, "a fixed loss scale is not available: it finds itself")


def put_evaluation(draft: Draft, interval: str, batches: str, default_interval: int, default_batches: int) -> None:
    """Set how often, and with how many batches, the run is evaluated; not at all without data held out for it."""
    every = draft.interval(interval, default=default_interval)
    number = draft.interval(batches, default=default_batches)
    has_data = bool(draft.value("data.validation_files")) or draft.value("data.validation_fraction") != 0
    if every < 1 or number < 1 or not has_data:
        note = "" if has_data or every < 1 else "nothing is held out"
        draft.put("train.eval_every", 0, interval, batches, note=note)
        return
    draft.put("train.eval_every", every, interval)
    draft.put("train.eval_batches", number, batches)


def put_places(draft: Draft, save: str, load: str) -> None:
    """Settle where checkpoints are written and read: in the run's own folder."""
    reason = "checkpoints are in the run's folder, run_dir"
    draft.drop(save, Why.no_effect, reason)
    saves, loads = draft.settings.get(save), draft.settings.get(load)
    if loads is None:
        return
    if saves is not None and saves.value == loads.value:
        draft.drop(load, Why.no_effect, "a run goes on from its own newest checkpoint by itself")
    else:
        draft.drop(
            load,
            Why.by_hand,
            "its checkpoints are of another form: a model that is exported to Hugging Face "
            "begins a run here with checkpoint.init_from",
        )


def put_saving(draft: Draft, every: int, names: tuple[str, ...], keep: str = "") -> None:
    """Set how often checkpoints are saved; without a number to keep, all stay, as they do there.

    Args:
        draft: the experiment.
        every: steps between checkpoints; none if it is not positive.
        names: settings that say it.
        keep: setting with the number of newest ones that are kept.
    """
    if every < 1:
        draft.put("checkpoint.every", 0, *names)
        return
    draft.put("checkpoint.every", every, *names)
    if keep and draft.find(keep) is not None and draft.integer(keep) > 0:
        draft.put("checkpoint.keep", draft.integer(keep), keep)
    else:
        draft.put("checkpoint.keep_every", every, origin="all are kept there")


def put_unknown_data(draft: Draft) -> None:
    """Set data that a variable of the environment names."""
    draft.put("data.source", "megatron")
    draft.put("data.files", ["${oc.env:DATA_PATH,DATA_PATH}"], note=UNKNOWN_DATA)


def put_unknown_length(draft: Draft) -> None:
    """Set a length of the run that the files do not say, unless the user does."""
    if draft.value("train.steps") is None and draft.value("train.epochs") is None:
        note = "the files do not say how long the run is: give train.steps=N behind them"
        draft.put("train.steps", TrainConfig().steps, note=note)
