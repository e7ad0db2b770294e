"""The reverse question: which model, how many tokens, and what loss a budget buys. No torch.

How fast a model trains is asked of a function that is handed in, for each size anew: a larger model uses a device
better or worse, and may need a layout that is slower, or not fit at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from trainer.errors import ConfigError
from trainer.planner.cluster import Cluster
from trainer.planner.prediction import LossBand
from trainer.planner.price import SECONDS_PER_DAY, Price, price_of
from trainer.planner.scaling_laws import DEFAULT_LAW, LAWS, Balance, balance, counted_parameters, loss_bands
from trainer.planner.shapes import Candidate

SECONDS_PER_HOUR = 3600
FIRST_STRIDE = 4
"""Sizes between the first ones that are compared. Near the best one it is halved down to 1, so that a jump of the speed
between two sizes, where the layout changes, is not taken for the best."""
MOST = 1e30
"""Largest budget, in any unit: 20,000 times the FLOPs of the largest runs of today."""
_WRITTEN = re.compile(r"([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:nan|inf))\s*([a-z]*)", re.IGNORECASE)


class BudgetUnit(Enum):
    """Unit of a budget."""

    usd = "usd"
    """US dollars for devices, at cluster.usd_per_device_hour."""
    gpuh = "gpuh"
    """Hours of one device."""
    days = "days"
    """Days of the whole layout."""
    flops = "flops"
    """Training FLOPs as the scaling laws count them, 6 N D."""


@dataclass(frozen=True)
class Budget:
    """The most that may be spent on a run."""

    amount: float
    unit: BudgetUnit

    def tokens(self, candidate: Candidate, speed: Speed, cluster: Cluster) -> float:
        """Return the tokens that it buys of a model at a speed.

        Raises:
            ConfigError: it is money, and the cluster has no price.
        """
        if self.unit is BudgetUnit.flops:
            return self.amount / (6 * counted_parameters(candidate.model, LAWS[DEFAULT_LAW]))
        return speed.tokens_per_second * self._seconds(speed.devices, cluster)

    def _seconds(self, devices: int, cluster: Cluster) -> float:
        if self.unit is BudgetUnit.days:
            return self.amount * SECONDS_PER_DAY
        hours = self.amount
        if self.unit is BudgetUnit.usd:
            hours /= _price(cluster, self)
        return hours * SECONDS_PER_HOUR / devices

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        return f"{self.amount:g}{self.unit.value}"


@dataclass(frozen=True)
class Speed:
    """The fastest way in which the cluster trains a model."""

    tokens_per_second: float
    """Speed of all ranks together."""
    tokens_per_step: int
    devices: int
    """Devices that the layout takes."""
    layout: tuple[str, ...]
    """Words of the layout and all that goes with it."""
    mfu: float | None = None
    """Share of the devices' peak; None where it is not known."""


Predictor = Callable[[Candidate], Speed | None]
"""Returns the speed of a model, or None if no layout of it fits on the cluster."""


@dataclass(frozen=True)
class Purchase:
    """Tokens and loss that a budget buys with one model."""

    candidate: Candidate
    speed: Speed
    affordable: float
    """Tokens that it pays for."""
    loss: float
    """Predicted loss after so many tokens under the default law."""

    @property
    def steps(self) -> int:
        """Whole steps that it pays for."""
        return int(self.affordable / self.speed.tokens_per_step)

    @property
    def tokens(self) -> int:
        """Tokens of the whole steps."""
        return self.steps * self.speed.tokens_per_step


@dataclass(frozen=True)
class Answer:
    """The best that a budget buys."""

    budget: Budget
    best: Purchase
    losses: Mapping[str, LossBand]
    """Predicted loss by the law's name."""
    balance: Balance
    """Tokens a parameter beside those that the default law finds best for this compute."""
    price: Price
    considered: tuple[Purchase, ...]
    """All models whose speed was asked for and that the budget can train, smallest first, the best one too."""
    too_large: tuple[Candidate, ...]
    """Models that fit in no layout, smallest first."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """Words that make the run: model, layout, steps."""
        return (*self.best.candidate.overrides, *self.best.speed.layout, f"train.steps={self.best.steps}")

    @property
    def is_held_back_by_memory(self) -> bool:
        """True if the next larger model would be better if it fitted."""
        return (
            bool(self.too_large) and self.balance.ratio > 1.05 and self.best.candidate is self.considered[-1].candidate
        )


def parse_budget(text: str) -> Budget:
    """Return the budget that a word such as `200usd`, `3000gpuh`, `14days` or `1e21flops` stands for.

    Raises:
        ConfigError: it is no number with one of the units, or nothing can be bought with it.
    """
    units = [unit.value for unit in BudgetUnit]
    pattern = "budget must be a number and its unit, as 200usd, 3000gpuh, 14days or 1e21flops"
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{pattern}, but is {text!r}; use one of {', '.join(units)}")
    number, unit = float(match[1].replace("_", "")), match[2].lower()
    if not unit:
        raise ConfigError(f"{pattern}, but {text!r} has no unit; use one of {', '.join(units)}")
    if unit == "day":
        unit = BudgetUnit.days.value
    if unit not in units:
        raise ConfigError(f"{pattern}, but the unit of {text!r} is {unit}; use one of {', '.join(units)}")
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"budget must be a finite number above 0, but is {text!r}; raise it")
    if number > MOST:
        raise ConfigError(f"budget must be at most {MOST:g}, but is {text!r}; lower it")
    return Budget(number, BudgetUnit(unit))


def spend(budget: Budget, cluster: Cluster, candidates: Sequence[Candidate], predict: Predictor) -> Answer:
    """Return the model, the tokens and the layout with the lowest predicted loss that a budget buys.

    The loss has one minimum over the size: a smaller model learns less, a larger one sees too few tokens. So the search
    starts at the size that the law finds best at the speed of a model in the middle, repeats that with the speed of
    what it found until it stays there, and then compares with others around it: a handful of predictions, not all.

    Args:
        budget: what may be spent.
        cluster: the machines, with their price.
        candidates: models to choose from, smallest first.
        predict: the speed of a model on the cluster. It is called once for each model that is looked at.

    Raises:
        ConfigError: the budget is money and the cluster has no price; no model fits; or the budget buys nothing.
    """
    if budget.unit is BudgetUnit.usd:
        _price(cluster, budget)
    market = _Market(budget, cluster, candidates, predict)
    best = market.best()
    if best is None:
        raise ConfigError(market.problem())
    model = best.candidate.model
    law = LAWS[DEFAULT_LAW]
    return Answer(
        budget=budget,
        best=best,
        losses=loss_bands(model, best.tokens),
        balance=balance(law, counted_parameters(model, law), best.tokens),
        price=price_of(
            cluster,
            devices=best.speed.devices,
            seconds=best.tokens / best.speed.tokens_per_second,
            flops=best.tokens * model.flops_per_token(best.candidate.config.seq_length),
        ),
        considered=market.purchases(),
        too_large=market.too_large(),
    )


class _Market:
    """The candidates with what the budget buys of each, asked for once."""

    def __init__(self, budget: Budget, cluster: Cluster, candidates: Sequence[Candidate], predict: Predictor) -> None:
        self._budget, self._cluster, self._candidates, self._predict = budget, cluster, candidates, predict
        self._speeds: dict[int, Speed | None] = {}

    def best(self) -> Purchase | None:
        """Return the purchase with the lowest loss; None if there is none."""
        index = self._start()
        if index is None:
            return None
        stride = FIRST_STRIDE
        while stride:
            near = [other for other in (index - stride, index, index + stride) if 0 <= other < len(self._candidates)]
            # The smaller one if both are alike, so that the search ends.
            better = min(near, key=lambda other: (self._loss(other), other))
            if better == index:
                stride //= 2
            index = better
        return self._purchase(index)

    def purchases(self) -> tuple[Purchase, ...]:
        """Return everything that was looked at and can be bought, smallest first."""
        found = (self._purchase(index) for index in sorted(self._speeds))
        return tuple(one for one in found if one is not None)

    def too_large(self) -> tuple[Candidate, ...]:
        """Return what was looked at and does not fit, smallest first."""
        return tuple(self._candidates[index] for index, speed in sorted(self._speeds.items()) if speed is None)

    def problem(self) -> str:
        """Return why nothing can be bought, as one line for the user."""
        smallest = self._candidates[0]
        speed = self._speed(0)
        if speed is None:
            size = f"{smallest.parameters / 1e9:.2g}B parameters"
            return (
                f"budget={self._budget} needs a model that fits on the cluster, but the smallest, with {size}, fits in "
                f"no layout; use a smaller model, more cluster.nodes, or devices with more memory"
            )
        tokens = self._budget.tokens(smallest, speed, self._cluster)
        return (
            f"budget={self._budget} must buy a model that learns something, but pays for {tokens:,.0f} tokens of the "
            f"smallest one, {tokens / speed.tokens_per_step:.2g} steps; raise the budget"
        )

    def _start(self) -> int | None:
        """Return the size that the law finds best at its own speed, or the largest below it that can be bought."""
        law, index, seen = LAWS[DEFAULT_LAW], len(self._candidates) // 2, set[int]()
        while index not in seen:
            seen.add(index)
            speed = self._speed(index)
            if speed is None:
                index //= 2
                continue
            candidate = self._candidates[index]
            tokens = self._budget.tokens(candidate, speed, self._cluster)
            best = law.optimum(6 * counted_parameters(candidate.model, law) * tokens).parameters
            index = min(
                range(len(self._candidates)), key=lambda other: abs(math.log(self._candidates[other].parameters / best))
            )
        return self._largest_bought(index)

    def _largest_bought(self, index: int) -> int | None:
        """Return the largest model up to a size that fits and learns something: all smaller ones do, too."""
        if self._purchase(index) is not None:
            return index
        if self._purchase(0) is None:
            return None
        bought, not_bought = 0, index
        while not_bought - bought > 1:
            middle = (bought + not_bought) // 2
            if self._purchase(middle) is None:
                not_bought = middle
            else:
                bought = middle
        return bought

    def _speed(self, index: int) -> Speed | None:
        if index not in self._speeds:
            self._speeds[index] = self._predict(self._candidates[index])
        return self._speeds[index]

    def _loss(self, index: int) -> float:
        found = self._purchase(index)
        return math.inf if found is None else found.loss

    def _purchase(self, index: int) -> Purchase | None:
        """Return what the budget buys of a model; None: it does not fit, or learns nothing."""
        candidate, speed = self._candidates[index], self._speed(index)
        if speed is None:
            return None
        tokens = self._budget.tokens(candidate, speed, self._cluster)
        if tokens < speed.tokens_per_step:
            return None
        law = LAWS[DEFAULT_LAW]
        loss = law.loss(counted_parameters(candidate.model, law), tokens)
        # Above the loss of a model that gives all token ids the same probability the law says nothing.
        return Purchase(candidate, speed, tokens, loss) if loss < math.log(candidate.vocab_size) else None


def _price(cluster: Cluster, budget: Budget) -> float:
    price = cluster.usd_per_device_hour
    if price is None or price.value <= 0:
        raise ConfigError(
            f"budget={budget} needs the price of a device, but the cluster has none; set cluster.usd_per_device_hour, "
            f"or give the budget in gpuh or days"
        )
    return price.value
