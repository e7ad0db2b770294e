from __future__ import annotations

import math

import pytest

from tests.helpers.published import gpt_plan, llama_plan
from trainer.planner.price import PF_DAY_FLOPS
from trainer.planner.scaling_laws import (
    BESIROGLU,
    CHINCHILLA,
    CHINCHILLA_TEX,
    DEFAULT_LAW,
    KAPLAN,
    LAWS,
    LLAMA3,
    Chinchilla,
    TokenLine,
    balance,
    counted_parameters,
    loss_bands,
    outside,
)


def test_kaplan_gives_the_values_of_its_equations() -> None:
    found = (
        KAPLAN.loss_of_parameters(1.5e9),
        KAPLAN.loss_of_tokens(2.2e10),
        KAPLAN.loss_of_compute(PF_DAY_FLOPS),
        KAPLAN.loss_of_compute(3640 * PF_DAY_FLOPS),
        KAPLAN.loss(1.5e9, 2.2e10),
        KAPLAN.loss(175e9, 3e11),
    )
    assert [round(value, 4) for value in found] == [2.3036, 2.0992, 2.6581, 1.7641, 2.3125, 1.6610]
    # L(C) at the paper's fixed batch: (1.6e7 / C)^0.057, C in PF-days.
    assert KAPLAN.loss_of_compute_at_fixed_batch(PF_DAY_FLOPS * 1.6e7) == pytest.approx(1)
    assert KAPLAN.loss_of_compute_at_fixed_batch(PF_DAY_FLOPS) == pytest.approx(math.exp(0.057 * math.log(1.6e7)))
    assert KAPLAN.tokens_without_overfitting(1e9) == pytest.approx(5e3 * 10**6.66)


ROWS = (
    (70e9, 1.4e12, 1.9366, 1.9208, 1.9739),
    (175e9, 300e9, 2.0023, 1.9764, 2.0085),
    (280e9, 300e9, 1.9933, 1.9672, 1.9996),
    (8.03e9, 15e12, 1.9483, 1.9434, 2.0218),
    (124e6, 1e10, 3.0607, 3.0057, 3.0137),
)


@pytest.mark.parametrize(("parameters", "tokens", "rounded", "tex", "corrected"), ROWS)
def test_the_chinchilla_laws_give_their_losses(
    parameters: float, tokens: float, rounded: float, tex: float, corrected: float
) -> None:
    found = [round(law.loss(parameters, tokens), 4) for law in (CHINCHILLA, CHINCHILLA_TEX, BESIROGLU)]
    assert found == [rounded, tex, corrected]


OPTIMA = (
    (5.76e23, ("3.22e+10", 92.6), ("4.04e+10", 58.9), ("7.22e+10", 18.4)),
    (1e21, ("1.82e+09", 50.1), ("2.22e+09", 33.9), ("2.78e+09", 21.6)),
    (3.8e25, ("2.13e+11", 139), ("2.73e+11", 84.8), ("6.19e+11", 16.5)),
)


@pytest.mark.parametrize(("flops", "rounded", "tex", "corrected"), OPTIMA)
def test_the_chinchilla_laws_give_their_optima(
    flops: float, rounded: tuple[str, float], tex: tuple[str, float], corrected: tuple[str, float]
) -> None:
    laws = (CHINCHILLA, CHINCHILLA_TEX, BESIROGLU)
    for law, (parameters, ratio) in zip(laws, (rounded, tex, corrected), strict=True):
        best = law.optimum(flops)
        assert f"{best.parameters:.2e}" == parameters
        assert f"{best.tokens_per_parameter:.3g}" == f"{ratio:.3g}"
        assert best.flops == pytest.approx(flops)


# Kaplan's frontier was fitted by itself, not made from the joint equation.
@pytest.mark.parametrize("name", ["besiroglu", "chinchilla", "chinchilla_tex"])
def test_the_optimum_is_the_smallest_loss_of_its_budget(name: str) -> None:
    law, flops = LAWS[name], 1e22
    best = law.optimum(flops)
    least = law.loss(best.parameters, best.tokens)
    for factor in (0.9, 1.1):
        assert law.loss(best.parameters * factor, best.tokens / factor) > least


@pytest.mark.parametrize("name", list(LAWS))
def test_tokens_for_a_size_are_those_of_the_budget_that_it_is_best_for(name: str) -> None:
    law = LAWS[name]
    for parameters in (1e8, 7e9, 4e11):
        tokens = law.optimal_tokens(parameters)
        assert law.optimum(6 * parameters * tokens).parameters == pytest.approx(parameters)
    assert law.optimum(1e24).parameters > law.optimum(1e21).parameters


def test_llama3s_line_gives_its_own_tokens_only_with_more_digits_than_are_printed() -> None:
    printed = TokenLine("as section 3.2.1 prints it", 0.29, 0.53)
    assert printed.optimum(3.8e25).tokens == pytest.approx(10.5e12, rel=0.005)
    assert LLAMA3.optimum(3.8e25).tokens == pytest.approx(16.29e12, rel=0.0005)
    assert LLAMA3.optimum(3.8e25).tokens == pytest.approx(16.55e12, rel=0.02)


def test_the_corrected_law_is_the_default_and_agrees_with_20_tokens_a_parameter() -> None:
    assert LAWS[DEFAULT_LAW] is BESIROGLU
    assert BESIROGLU.optimum(5.76e23).tokens_per_parameter == pytest.approx(20, rel=0.1)
    assert CHINCHILLA.optimum(5.76e23).tokens_per_parameter > 90


@pytest.mark.parametrize("name", list(LAWS))
def test_a_band_holds_its_value(name: str) -> None:
    for parameters, tokens, *_ in ROWS:
        band = LAWS[name].band(parameters, tokens)
        assert band.value == LAWS[name].loss(parameters, tokens)
        assert 0.9 * band.value < band.low < band.value < band.high < 1.12 * band.value


BOOTSTRAP = {
    (1e9, 2e10): 0.00121,
    (70e9, 1.4e12): 0.01288,
    (175e9, 300e9): 0.01193,
    (8.03e9, 15e12): 0.01548,
    (124e6, 1e10): 0.00188,
    (4e11, 1.5e13): 0.01881,
}
"""Half the distance of the 2.5th and 97.5th percentile of log(loss) over 4,000 fits of resampled runs."""


def test_the_corrected_laws_band_is_that_of_the_bootstrap() -> None:
    narrow = Chinchilla(
        BESIROGLU.source,
        *(BESIROGLU.a, BESIROGLU.b, BESIROGLU.e, BESIROGLU.alpha, BESIROGLU.beta),
        scatter=0.0,
        covariance=BESIROGLU.covariance,
    )
    for (parameters, tokens), half in BOOTSTRAP.items():
        band = narrow.band(parameters, tokens)
        assert math.log(band.high / band.low) / 2 == pytest.approx(half, rel=0.07, abs=0.001)


def test_the_band_widens_where_nothing_was_measured() -> None:
    def width(parameters: float, tokens: float) -> float:
        band = BESIROGLU.band(parameters, tokens)
        return (band.high - band.low) / band.value

    assert width(4e11, 1.5e13) > width(7e10, 1.4e12) > width(1e9, 2e10)


def test_kaplan_counts_no_embeddings() -> None:
    plan = gpt_plan(
        hidden=768,
        heads=12,
        layers=12,
        vocab=50257,
        length=1024,
        pp=1,
        tp=1,
        dp=1,
        micro_batch=1,
        global_batch=1,
    )
    count = plan.model.parameter_count
    assert counted_parameters(plan.model, KAPLAN) == count - 50257 * 768 - 1024 * 768
    assert counted_parameters(plan.model, BESIROGLU) == count
    # 12 L h^2, and biases and norms.
    assert counted_parameters(plan.model, KAPLAN) == pytest.approx(12 * 12 * 768**2, rel=0.002)


def test_an_untied_head_is_an_embedding_too() -> None:
    plan = llama_plan(
        hidden=4096,
        heads=32,
        kv_heads=8,
        ffn=14336,
        layers=32,
        vocab=128256,
        length=8192,
        pp=1,
        tp=1,
        dp=1,
        micro_batch=1,
        global_batch=1,
    )
    assert plan.model.parameter_count == 8_030_261_248
    assert counted_parameters(plan.model, KAPLAN) == 8_030_261_248 - 2 * 128256 * 4096
    bands = loss_bands(plan.model, 15e12)
    assert list(bands) == list(LAWS)
    assert bands["besiroglu"].value == pytest.approx(2.0218, abs=5e-5)


def test_a_run_outside_the_fitted_range_says_so() -> None:
    plan = llama_plan(
        hidden=4096,
        heads=32,
        kv_heads=8,
        ffn=14336,
        layers=32,
        vocab=128256,
        length=8192,
        pp=1,
        tp=1,
        dp=1,
        micro_batch=1,
        global_batch=1,
    )
    assert outside(plan.model, 100e9) == ()
    assert outside(plan.model, 15e12) == (
        "The loss is extrapolated: its law was fitted on 0.82B to 318B tokens, not 15,000B.",
    )


def test_a_run_is_held_against_the_best_one_of_its_budget() -> None:
    found = balance(BESIROGLU, 8.03e9, 15e12)
    best = BESIROGLU.optimum(6 * 8.03e9 * 15e12)
    assert found.optimum == best
    assert found.tokens_per_parameter == pytest.approx(1868, rel=0.001)
    assert found.ratio == pytest.approx(found.tokens_per_parameter / best.tokens_per_parameter)
    assert found.words == f"{found.ratio:.0f}x over-trained"
    assert found.excess_loss == pytest.approx(
        BESIROGLU.loss(8.03e9, 15e12) - BESIROGLU.loss(best.parameters, best.tokens)
    )
    assert balance(BESIROGLU, 175e9, 300e9).words == "11x under-trained"
    assert balance(BESIROGLU, best.parameters, best.tokens).words == "compute-optimal"
