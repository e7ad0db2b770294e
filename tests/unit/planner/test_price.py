from __future__ import annotations

import pytest

from tests.helpers.clusters import cluster
from tests.helpers.published import gpt_plan
from trainer.planner.price import PF_DAY_FLOPS, Price, price_of, seconds_of


def of_hours(hours: float, devices: int = 2048, usd: float | None = None) -> Price:
    return price_of(cluster(usd), devices=devices, seconds=hours / devices * 3600, flops=0)


@pytest.mark.parametrize(("hours", "mwh"), [(82_432, 36), (135_168, 59), (530_432, 233), (1_022_362, 449)])
def test_llamas_energy(hours: float, mwh: float) -> None:
    # LLaMA (arXiv 2302.13971), table 15: 400 W and a PUE of 1.1.
    assert abs(of_hours(hours).energy_kwh / 1000 - mwh) < 1


def test_deepseek_v3_takes_3_7_days_for_a_trillion_tokens() -> None:
    # arXiv 2412.19437, section 1: 180K H800-hours for each T on 2,048 devices, 2,664K for 14.8T.
    assert round(of_hours(180e3).days, 1) == 3.7
    assert of_hours(180e3).gpu_hours == pytest.approx(180e3)


def gpt3_flops_per_token() -> float:
    plan = gpt_plan(
        hidden=12288,
        heads=96,
        layers=96,
        vocab=51200,
        length=2048,
        pp=8,
        tp=8,
        dp=16,
        micro_batch=1,
        global_batch=1536,
    )
    return plan.flops_per_token


def test_gpt3_takes_34_days_on_1024_devices() -> None:
    # SC21 (arXiv 2104.04473), section 5.1: 8 T P / (n X), recomputation counted, at 140 TFLOP/s each.
    tokens, parameters = 300e9, 175e9
    speed = 1024 * 140e12 / (8 * parameters)
    price = price_of(cluster(), devices=1024, seconds=seconds_of(tokens, speed), flops=6 * parameters * tokens)
    assert round(price.days) == 34
    assert price.gpu_days == pytest.approx(1024 * price.days)


def test_gpt3_is_3640_petaflop_days() -> None:
    # arXiv 2005.14165, table D.1: 3.64e3, from 6 N D with N = 174.6e9; 3,637.5 with 174.6e9 and 300e9 tokens.
    price = price_of(cluster(), devices=1, seconds=1, flops=6 * 174.6e9 * 300e9)
    assert price.pf_days == pytest.approx(3637.5)
    # The FLOPs of the model itself count its scores too.
    assert gpt3_flops_per_token() * 300e9 / PF_DAY_FLOPS == pytest.approx(3637.5, rel=0.04)


def test_blooms_device_hours() -> None:
    # arXiv 2211.05100 and 2211.02001: 1,082,880 hours on 384 devices are 117.5 days; 433,196 kWh at 400 W, PUE apart.
    assert of_hours(1_082_880, devices=384).days == pytest.approx(117.5)
    price = price_of(cluster(pue=1.0), devices=384, seconds=117.5 * 86_400, flops=0)
    assert price.gpu_hours == pytest.approx(1_082_880)
    assert price.energy_kwh == pytest.approx(433_196, rel=0.0005)
    # 366e9 tokens at its 104.70 s a step of 2048 x 2048 are 90 % of them: the rest was restarts and other batches.
    steps = price_of(cluster(), devices=384, seconds=seconds_of(366e9, 2048 * 2048 / 104.70), flops=0)
    assert steps.gpu_hours == pytest.approx(1_082_880, rel=0.11)
    assert steps.gpu_hours < 1_082_880


def test_a_hundred_million_tokens_an_hour_read_a_trillion_in_1_1_years() -> None:
    price = price_of(cluster(), devices=8, seconds=seconds_of(1e12, 100e6 / 3600), flops=0)
    assert round(price.days / 365, 1) == 1.1


def test_what_has_no_price_costs_nothing_known() -> None:
    assert of_hours(10).cost_usd is None
    assert of_hours(10, usd=2.5).cost_usd == pytest.approx(25)
    assert of_hours(10, usd=0).cost_usd == 0


def test_the_values_of_the_json() -> None:
    price = price_of(cluster(usd=2), devices=4, seconds=43_200, flops=2 * PF_DAY_FLOPS)
    assert price.to_dict() == {
        "days": 0.5,
        "gpu_days": 2.0,
        "pf_days": 2.0,
        "cost_usd": 96.0,
        "energy_kwh": pytest.approx(48 * 0.4 * 1.1),
    }
