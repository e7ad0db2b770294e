from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.calibration.test_device_profile import CLUSTER, gemms, messages
from trainer.calibration import calibrate as module
from trainer.calibration.measurements import Measurements, StepSeconds, StreamTime, joined
from trainer.calibration.measuring import MeasuringFailed, measured_by_ranks
from trainer.calibration.trials import Trial
from trainer.config.schema import DeviceKind
from trainer.errors import ConfigError
from trainer.planner.profile_file import find_calibration


def made_up(
    trials: Sequence[Trial], device: DeviceKind, rounds: int, budget_s: float, told: Callable[[str], None]
) -> Measurements:
    """Stand in for ranks: every step takes 0.1 s, and the last trial cannot be run."""
    told("kernels")
    ranks = trials[0].ranks
    return Measurements(
        ranks=ranks,
        threads=2 // ranks,
        gemms=gemms(),
        streams=(StreamTime(10**8, 1e-2),),
        messages=messages(2) if ranks == 2 else (),
        steps=tuple(StepSeconds(trial.name, (0.1,) * rounds) for trial in trials[:-1]),
        failed={trials[-1].name: "no compiler"},
    )


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setattr(module, "measured_by_ranks", made_up)
    monkeypatch.setenv("TRIDENT_CACHE", str(tmp_path))
    return []


def test_a_machine_is_calibrated_and_found_again(said: list[str], tmp_path: Path) -> None:
    path = module.calibrate(CLUSTER, said.append, rounds=2)
    assert path == tmp_path / "profiles" / "CPU.json"
    found = find_calibration("CPU")
    assert found.note is None
    assert found.calibration is not None
    assert found.calibration.profile.measured_on == found.calibration.date
    text = "\n".join(said)
    assert "1 rank: kernels" in text
    assert "2 ranks: kernels" in text
    assert "left out pp2_dualpipev: no compiler" in text
    assert "100.0 ms a step" in text
    assert said[-1] == f"wrote {path}"


def test_absurd_times_are_not_kept(said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absurd(*given: object) -> Measurements:
        return replace(made_up(*given), streams=(StreamTime(10**8, 1e12),))  # type: ignore[arg-type]

    monkeypatch.setattr(module, "measured_by_ranks", absurd)
    with pytest.raises(ConfigError, match="must have a "):
        module.calibrate(CLUSTER, said.append, rounds=2)
    assert not (tmp_path / "profiles").exists()


def test_ranks_that_fail_are_told_in_one_line() -> None:
    trial = Trial("bad", 1, ("model.hidden_size=-1",))
    with pytest.raises(MeasuringFailed, match=r"must end with a result, but rank 0 ended: .*hidden_size") as failure:
        measured_by_ranks([trial], DeviceKind.cpu, 1, 1e-3, lambda part: None)
    assert "\n" not in str(failure.value)


def test_what_processes_measured_is_put_together() -> None:
    whole = made_up([Trial("dp2", 2, ()), Trial("broken", 2, ())], DeviceKind.cpu, 1, 1e-3, lambda part: None)
    again = Measurements(2, 1, steps=(StepSeconds("dp2", (0.2,)), StepSeconds("broken", (0.3,))))
    found = joined([whole, again])
    assert found.gemms == whole.gemms
    assert found.messages == whole.messages
    # What failed once has no time, although it ran another time.
    assert found.steps == (StepSeconds("dp2", (0.1, 0.2)),)
    assert found.failed == {"broken": "no compiler"}
