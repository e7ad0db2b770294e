from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest

from tests.helpers.clusters import cluster
from trainer.config.compose import compose
from trainer.errors import ConfigError
from trainer.planner.budget import Answer, Budget, BudgetUnit, Predictor, Speed, parse_budget, spend
from trainer.planner.scaling_laws import BESIROGLU, LAWS, counted_parameters
from trainer.planner.shapes import Candidate, family, fixed, shipped

PEAK = 312e12


@cache
def llama() -> tuple[Candidate, ...]:
    base = compose(["model=llama_7b"]).model
    return family(base, 32_000)


def at(mfu: Callable[[float], float], *, devices: int = 8, step: int = 1 << 19, most: float = math.inf) -> Predictor:
    """A cluster on which a model of N parameters reaches mfu(N), and none of more than `most` fits."""

    def predict(candidate: Candidate) -> Speed | None:
        count = candidate.parameters
        if count > most:
            return None
        return Speed(mfu(count) * devices * PEAK / (6 * count), step, devices, ("layout=dp8",), mfu(count))

    return predict


def counted(predict: Predictor, calls: list[Candidate]) -> Predictor:
    def count(candidate: Candidate) -> Speed | None:
        calls.append(candidate)
        return predict(candidate)

    return count


def loss_of(budget: Budget, candidate: Candidate, predict: Predictor, usd: float | None = None) -> float:
    speed = predict(candidate)
    if speed is None:
        return math.inf
    return BESIROGLU.loss(candidate.parameters, budget.tokens(candidate, speed, cluster(usd)))


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("200usd", 200, BudgetUnit.usd),
        ("3000gpuh", 3000, BudgetUnit.gpuh),
        ("14days", 14, BudgetUnit.days),
        ("1day", 1, BudgetUnit.days),
        ("1e21flops", 1e21, BudgetUnit.flops),
        ("2.5E3USD", 2500, BudgetUnit.usd),
        ("1_000 gpuh", 1000, BudgetUnit.gpuh),
        (".5days", 0.5, BudgetUnit.days),
    ],
)
def test_a_budget_is_read(text: str, amount: float, unit: BudgetUnit) -> None:
    assert parse_budget(text) == Budget(amount, unit)
    assert parse_budget(str(parse_budget(text))) == parse_budget(text)


PATTERN = "budget must be a number and its unit, as 200usd, 3000gpuh, 14days or 1e21flops"
UNITS = "use one of usd, gpuh, days, flops"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("200", f"{PATTERN}, but '200' has no unit; {UNITS}"),
        ("200eur", f"{PATTERN}, but the unit of '200eur' is eur; {UNITS}"),
        ("much", f"{PATTERN}, but is 'much'; {UNITS}"),
        ("", f"{PATTERN}, but is ''; {UNITS}"),
        ("usd", f"{PATTERN}, but is 'usd'; {UNITS}"),
        ("1e5e5usd", f"{PATTERN}, but is '1e5e5usd'; {UNITS}"),
        ("0usd", "budget must be a finite number above 0, but is '0usd'; raise it"),
        ("-5usd", "budget must be a finite number above 0, but is '-5usd'; raise it"),
        ("nanusd", "budget must be a finite number above 0, but is 'nanusd'; raise it"),
        ("inf days", "budget must be a finite number above 0, but is 'inf days'; raise it"),
        ("1e999flops", "budget must be a finite number above 0, but is '1e999flops'; raise it"),
    ],
)
def test_what_is_no_budget_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_budget(text)
    assert caught.value.problems == (message,)


@pytest.mark.parametrize("flops", [1e19, 1e21, 1e23, 5.76e23])
def test_at_one_mfu_for_all_sizes_the_laws_optimum_is_bought(flops: float) -> None:
    answer = spend(Budget(flops, BudgetUnit.flops), cluster(), llama(), at(lambda _: 0.4))
    best = BESIROGLU.optimum(flops)
    # The family's sizes are a tenth to a half apart.
    assert answer.best.candidate.parameters == pytest.approx(best.parameters, rel=0.25)
    assert answer.best.tokens == pytest.approx(best.tokens, rel=0.35)
    assert 6 * answer.best.candidate.parameters * answer.best.tokens == pytest.approx(flops, rel=0.01)
    assert answer.best.loss == pytest.approx(BESIROGLU.loss(best.parameters, best.tokens), abs=0.003)
    assert answer.balance.ratio == pytest.approx(1, rel=0.6)


@pytest.mark.parametrize("days", [0.1, 3, 90])
def test_days_and_device_hours_of_the_same_time_buy_the_same(days: float) -> None:
    found = [
        spend(budget, cluster(2.0), llama(), at(lambda _: 0.4))
        for budget in (
            Budget(days, BudgetUnit.days),
            Budget(8 * 24 * days, BudgetUnit.gpuh),
            Budget(2 * 8 * 24 * days, BudgetUnit.usd),
        )
    ]
    assert len({answer.best.candidate.overrides for answer in found}) == 1
    assert len({answer.overrides for answer in found}) == 1
    best = BESIROGLU.optimum(0.4 * 8 * PEAK * days * 86_400)
    assert found[0].best.candidate.parameters == pytest.approx(best.parameters, rel=0.25)
    # A last step that is not whole is not run.
    assert found[0].price.days == pytest.approx(days, rel=0.02)
    assert found[2].price.cost_usd is not None
    assert found[2].price.cost_usd == pytest.approx(2 * 8 * 24 * days, rel=0.02)
    assert found[2].price.cost_usd <= 2 * 8 * 24 * days


def rising(count: float) -> float:
    """MFU of a device that small models cannot keep busy."""
    return 0.5 * count / (count + 3e9)


def falling(count: float) -> float:
    return 0.5 / (1 + math.sqrt(count / 2e9))


@pytest.mark.parametrize("mfu", [rising, falling])
@pytest.mark.parametrize("hours", [1, 100, 30_000, 3_000_000])
@pytest.mark.parametrize("most", [math.inf, 4e9])
def test_the_best_of_all_is_found_with_few_predictions(
    mfu: Callable[[float], float], hours: float, most: float
) -> None:
    budget, calls = Budget(hours, BudgetUnit.gpuh), list[Candidate]()
    predict = at(mfu, most=most)
    answer = spend(budget, cluster(), llama(), counted(predict, calls))
    losses = {one.overrides: loss_of(budget, one, predict) for one in llama()}
    assert answer.best.candidate.overrides == min(losses, key=lambda name: losses[name])
    assert len(calls) == len({one.overrides for one in calls})
    assert len(calls) <= 16 < len(losses) / 3


def test_a_model_that_memory_keeps_small_says_so() -> None:
    answer = spend(Budget(1e6, BudgetUnit.gpuh), cluster(), llama(), at(lambda _: 0.4, most=1e9))
    assert answer.best.candidate.parameters <= 1e9
    assert answer.is_held_back_by_memory
    assert min(one.parameters for one in answer.too_large) > 1e9
    free = spend(Budget(1e6, BudgetUnit.gpuh), cluster(), llama(), at(lambda _: 0.4))
    assert not free.is_held_back_by_memory
    assert free.too_large == ()
    assert free.best.loss < answer.best.loss


def test_an_answer_is_made_of_words_that_make_the_run() -> None:
    answer = spend(parse_budget("200usd"), cluster(2.0), llama(), at(lambda _: 0.4))
    config = compose(["model=llama_7b", *answer.best.candidate.overrides]).model
    assert config.hidden_size == answer.best.candidate.config.hidden_size
    assert answer.overrides[-2:] == ("layout=dp8", f"train.steps={answer.best.steps}")
    assert answer.losses["besiroglu"].value == pytest.approx(answer.best.loss, abs=1e-3)
    assert answer.losses["besiroglu"].low < answer.best.loss < answer.losses["besiroglu"].high
    assert list(answer.losses) == list(LAWS)
    assert answer.best in answer.considered
    assert [one.candidate.parameters for one in answer.considered] == sorted(
        one.candidate.parameters for one in answer.considered
    )


def refusal(budget: str, candidates: tuple[Candidate, ...], predict: Predictor, usd: float | None = 2.0) -> str:
    with pytest.raises(ConfigError) as caught:
        spend(parse_budget(budget), cluster(usd), candidates, predict)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_money_needs_a_price() -> None:
    calls = list[Candidate]()
    assert refusal("200usd", llama(), counted(at(lambda _: 0.4), calls), usd=None) == (
        "budget=200usd needs the price of a device, but the cluster has none; set cluster.usd_per_device_hour, or give "
        "the budget in gpuh or days"
    )
    assert calls == []


@pytest.mark.parametrize("budget", ["0.0001usd", "1e-9gpuh", "1e-9days", "1flops", "1e12flops"])
def test_a_budget_that_buys_nothing_is_refused(budget: str) -> None:
    text = refusal(budget, llama(), at(lambda _: 0.4))
    assert text.startswith(f"budget={parse_budget(budget)} must buy a model that learns something, but pays for ")
    assert text.endswith("raise the budget")


def test_a_few_steps_that_teach_nothing_are_nothing() -> None:
    # Of the smallest model, 1.3 steps of 32k tokens: the law puts its loss above ln(32000).
    text = refusal("2.5e12flops", llama(), at(lambda _: 0.4, step=1 << 15))
    assert "1.3 steps" in text


def test_a_cluster_on_which_nothing_fits_is_refused() -> None:
    assert refusal("200usd", llama(), at(lambda _: 0.4, most=1)) == (
        "budget=200usd needs a model that fits on the cluster, but the smallest, with 0.0095B parameters, fits in no "
        "layout; use a smaller model, more cluster.nodes, or devices with more memory"
    )


def test_the_users_own_model_stays() -> None:
    base = compose(["model=gpt2_124m"]).model
    answer = spend(parse_budget("100gpuh"), cluster(), fixed(base, 50257), at(lambda _: 0.4))
    assert answer.best.candidate.overrides == ()
    assert answer.overrides == ("layout=dp8", f"train.steps={answer.best.steps}")
    assert answer.best.tokens * 6 * 124_439_808 == pytest.approx(0.4 * PEAK * 100 * 3600, rel=0.01)


def test_shipped_models_are_choices() -> None:
    answer: Answer = spend(parse_budget("1e21flops"), cluster(), shipped(), at(lambda _: 0.4))
    # 2.78e9 is best.
    assert answer.best.candidate.overrides in {("model=gpt3_2_7b",), ("model=pythia_2_8b",)}


@pytest.mark.parametrize("preset", ["gpt3_350m", "llama3_8b", "gemma3_1b", "llama_7b"])
def test_a_family_has_sane_shapes(preset: str) -> None:
    base = compose([f"model={preset}"]).model
    assert base.vocab_size is not None
    found = family(base, base.vocab_size)
    counts = [one.parameters for one in found]
    assert counts == sorted(counts)
    assert all(1.05 < larger / smaller < 1.8 for smaller, larger in pairwise(counts))
    assert counts[-1] > 1e12
    for one in found:
        config = one.config
        assert config.hidden_size == config.num_attention_heads * (128 if config.hidden_size >= 2048 else 64)
        assert config.num_attention_heads % (config.num_key_value_heads or 1) == 0
        assert config.num_layers % 2 == 0
        assert 20 < config.hidden_size / config.num_layers < 135


def test_the_words_of_a_family_make_its_models() -> None:
    base = compose(["model=llama3_8b"]).model
    found = family(base, 128_256)
    for one in (found[0], found[len(found) // 2]):
        again = compose(["model=llama3_8b", *one.overrides]).model
        assert again == type(again)(**{**vars(one.config), "name": again.name})


def test_llama_7b_is_in_its_family() -> None:
    # 4096 wide with 32 heads and an MLP of 11008; 32 layers are a width / layers of 128.
    config = next(one.config for one in llama() if one.config.hidden_size == 4096)
    assert (config.num_attention_heads, config.ffn_hidden_size) == (32, 11008)


@pytest.mark.parametrize("name", ["gemma3_1b", "gpt3_175b", "llama3_2_1b", "pythia_14m"])
def test_shipped_models_are_those_that_are_composed(name: str) -> None:
    candidate = next(one for one in shipped() if one.overrides == (f"model={name}",))
    assert compose([*candidate.overrides]).model == candidate.config


def test_shipped_models_are_counted_as_everywhere() -> None:
    assert len(shipped()) > 30
    for one in shipped():
        assert one.parameters == one.model.parameter_count == counted_parameters(one.model, BESIROGLU)
