"""DeepSpeed's section about ZeRO, which three trainers have, as keys here."""

from __future__ import annotations

from trainer.migration.draft import Draft, Why


def put_stage(draft: Draft, stage: int, *names: str) -> None:
    """Set the stage of ZeRO; the precision is set already."""
    if stage == 0 and draft.value("precision.dtype") in ("fp16", "bf16"):
        note = "there it is 0; the fp32 master weights of half precision are ZeRO's here, with the same numbers"
        draft.put("zero.stage", 1, *names, note=note)
    else:
        draft.put("zero.stage", stage, *names)


def put_zero(draft: Draft) -> None:
    """Set `zero.*` from DeepSpeed's section zero_optimization, or from the stage as Megatron-DeepSpeed has it."""
    names = ("zero_stage", "zero_optimization.stage")
    put_stage(draft, draft.integer(*names, default=0), *names)
    offload = ("zero_optimization.offload_optimizer.device", "zero_optimization.cpu_offload")
    device = draft.text(offload[0], default="cpu" if draft.flag(offload[1]) else "none").lower()
    draft.put("zero.offload", device, *offload)
    parameters = ("zero_optimization.offload_param.device", "zero_optimization.cpu_offload_params")
    if draft.text(parameters[0], default="none").lower() != "none" or draft.flag(parameters[1]):
        draft.put("zero.offload_parameters", True, *parameters)
    path = draft.find("zero_optimization.offload_optimizer.nvme_path", "zero_optimization.offload_param.nvme_path")
    if path is not None and device == "nvme":
        draft.put("zero.nvme_path", str(path.value), path.name)
    if draft.find("zero_optimization.overlap_comm") is not None:
        draft.put("zero.overlap_comm", draft.flag("zero_optimization.overlap_comm"), "zero_optimization.overlap_comm")
    draft.drop(
        "zero_optimization.reduce_bucket_size",
        Why.no_effect,
        "buffers follow from the size of a rank's model; zero.reduce_bucket_size sets them",
    )
