"""The small models that a calibration trains for a few steps, and the way in which they are told to a rank. No torch.

They are other models than those on which the planner is checked (`python -m benchmarks plan_time`).
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import DeviceKind
from trainer.config.validate import validate

VOCABULARY = 4096
PASSES = 2
"""Times that every trial is run, each time in a process of its own."""


@dataclass(frozen=True)
class Trial:
    """A run of a few steps."""

    name: str
    ranks: int
    words: tuple[str, ...]
    """Words after `trident train`, besides those of every trial."""

    def plan(self, device: DeviceKind, vocab_size: int = VOCABULARY) -> RunPlan:
        """Return its plan."""
        words = [
            *("data=synthetic", "checkpoint=none", "checkpoint.resume=never", f"model.vocab_size={vocab_size}"),
            *("schedule=constant", f"runtime.device={device.value}", *self.words),
        ]
        config = compose(words)
        validate(config, self.ranks)
        return make_plan(config, vocab_size, self.ranks)


def _model(hidden: int, layers: int, length: int, *, batch: int, micro: int, dtype: str = "fp32") -> tuple[str, ...]:
    return (
        *(f"model.hidden_size={hidden}", f"model.num_layers={layers}", f"model.num_attention_heads={hidden // 64}"),
        *(f"model.seq_length={length}", f"batch.global_batch_size={batch}", f"batch.micro_batch_size={micro}"),
        f"precision={dtype}",
    )


def cpu_trials() -> tuple[Trial, ...]:
    """Return the trials of a machine whose ranks compute on CPU cores."""
    short, tall = _model(256, 6, 64, batch=4, micro=1), _model(256, 6, 64, batch=4, micro=2)
    wide = _model(512, 3, 192, batch=4, micro=2)
    half = _model(256, 6, 64, batch=4, micro=1, dtype="bf16")
    halves = _model(512, 3, 192, batch=4, micro=2, dtype="bf16")
    heavy = _model(640, 4, 32, batch=2, micro=1)
    one = {
        "short": ("zero=stage0", *short),
        "tall": ("zero=stage0", *tall),
        "wide": ("zero=stage0", *wide),
        "wide_full": ("zero=stage0", "model.recompute=full", *wide),
        "heavy": ("zero=stage0", *heavy),
        "half": ("zero=stage1", *half),
        "halves": ("zero=stage1", *halves),
    }
    two = {
        "dp2": ("layout=dp2", "zero=stage0", *wide),
        "dp2_heavy": ("layout=dp2", "zero=stage0", *heavy),
        "dp2_zero1": ("layout=dp2", "zero=stage1", *heavy),
        "dp2_zero1_wide": ("layout=dp2", "zero=stage1", *wide),
        "dp2_zero2": ("layout=dp2", "zero=stage2", *heavy),
        "dp2_zero2_short": ("layout=dp2", "zero=stage2", *short),
        "dp2_zero3": ("layout=dp2", "zero=stage3", *heavy),
        "dp2_zero3_wide": ("layout=dp2", "zero=stage3", *wide),
        "dp2_zero3_short": ("layout=dp2", "zero=stage3", *short),
        "dp2_offload": ("layout=dp2", "zero=stage1_offload", *heavy),
        "dp2_half": ("layout=dp2", "zero=stage1", *halves),
        "tp2": ("layout=tp2", "zero=stage0", *wide),
        "tp2_short": ("layout=tp2", "zero=stage0", *short),
        "tp2_half": ("layout=tp2", "zero=stage1", *halves),
        "tp2_sp": ("layout=tp2_sp", "zero=stage0", *wide),
        "tp2_sp_short": ("layout=tp2_sp", "zero=stage0", *short),
        "pp2": ("layout=pp2", "zero=stage0", *short),
        "pp2_wide": ("layout=pp2", "zero=stage0", *wide),
        "pp2_dualpipev": ("layout=pp2_dualpipev", "zero=stage0", *short),
    }
    return (
        *(Trial(name, 1, words) for name, words in one.items()),
        *(Trial(name, 2, words) for name, words in two.items()),
    )


def cuda_trials() -> tuple[Trial, ...]:
    """Return the trials of a machine with GPUs."""
    short = _model(512, 8, 512, batch=8, micro=1, dtype="bf16")
    wide = _model(2048, 4, 1024, batch=16, micro=4, dtype="bf16")
    heavy = _model(2048, 8, 256, batch=4, micro=2, dtype="bf16")
    plain = _model(1024, 4, 1024, batch=8, micro=4)
    one = [("short", short), ("wide", wide), ("heavy", heavy), ("plain", plain)]
    two = [
        ("dp2", ("layout=dp2", "zero=stage1", *wide)),
        ("dp2_zero2", ("layout=dp2", "zero=stage2", *heavy)),
        ("dp2_zero3", ("layout=dp2", "zero=stage3", *heavy)),
        ("tp2", ("layout=tp2", *wide)),
        ("tp2_sp", ("layout=tp2_sp", *wide)),
        ("pp2", ("layout=pp2", *short)),
    ]
    return (*(Trial(name, 1, words) for name, words in one), *(Trial(name, 2, words) for name, words in two))


def trials_for(is_cpu: bool, devices: int) -> tuple[Trial, ...]:
    """Return the trials of this machine.

    Args:
        is_cpu: ranks compute on CPU cores.
        devices: number of devices, of which two at most are used.
    """
    if is_cpu:
        return cpu_trials()
    return tuple(trial for trial in cuda_trials() if trial.ranks <= devices)
