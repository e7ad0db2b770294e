"""The loss that a model of N parameters should reach after D tokens, and the best N and D for a budget. No torch.

Sources: Kaplan et al. 2020 (arXiv 2001.08361); Hoffmann et al. 2022, "Chinchilla" (arXiv 2203.15556); its correction by
Besiroglu et al. 2024 (arXiv 2404.10102), the default here: the constants that Chinchilla's paper prints contradict its
own 20 tokens a parameter, and miss the losses of its own runs by more than their scatter. A law tells the loss on the
text and with the tokenizer that it was fitted on (WebText2; MassiveText), so its values are for comparing sizes and
budgets. Training compute is 6 N D FLOPs throughout, as in all three papers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import mul
from types import MappingProxyType
from typing import Protocol

from trainer.planner.prediction import LossBand
from trainer.planner.price import PF_DAY_FLOPS
from trainer.spec.model import LayerKind, Model

CONFIDENCE_95 = 1.96
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""


@dataclass(frozen=True)
class Optimum:
    """Size and tokens that reach the lowest loss for their compute."""

    parameters: float
    """Parameters, counted as the law counts them."""
    tokens: float

    @property
    def tokens_per_parameter(self) -> float:
        """Tokens for each parameter."""
        return self.tokens / self.parameters

    @property
    def flops(self) -> float:
        """Training FLOPs."""
        return 6 * self.parameters * self.tokens


class Law(Protocol):
    """A scaling law."""

    @property
    def source(self) -> str:
        """Paper of the law, for the screen."""

    @property
    def counts_embeddings(self) -> bool:
        """True if N counts the embeddings."""

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss in nats a token.

        Args:
            parameters: N, counted as the law counts them.
            tokens: D, each read once.
        """

    def band(self, parameters: float, tokens: float) -> LossBand:
        """Return the loss with its band; each law says how its own is made."""

    def optimum(self, flops: float) -> Optimum:
        """Return the best size and tokens for a budget of training FLOPs."""

    def optimal_tokens(self, parameters: float) -> float:
        """Return the tokens at which a model of this size is the best one for its compute."""


@dataclass(frozen=True)
class Kaplan:
    """Kaplan et al. 2020: equation 1.5 with the constants of table 2, and the frontier of equation 6.1.

    The paper publishes no errors. It prints two sets of constants for the same law: those of equation 1.5 (table 2),
    and those fitted for size and data alone (equations 1.1 and 1.2). The band is as wide as the two differ, on both
    sides: it is a spread of fits, not a confidence interval.
    """

    source: str = "Kaplan et al. 2020 (arXiv 2001.08361), eq. 1.5; band: spread of the paper's two sets of constants"
    counts_embeddings: bool = False

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss: [(6.4e13 / N)^(.076 / .103) + 1.8e13 / D]^.103."""
        return self._joint(parameters, tokens, (6.4e13, 1.8e13, 0.076, 0.103))

    def band(self, parameters: float, tokens: float) -> LossBand:
        """Return the loss and the spread of the paper's two sets of constants."""
        value = self.loss(parameters, tokens)
        other = self._joint(parameters, tokens, (8.8e13, 5.4e13, 0.076, 0.095))
        factor = max(value, other) / min(value, other)
        return LossBand(value, value / factor, value * factor)

    def optimum(self, flops: float) -> Optimum:
        """Return N = 1.3e9 C^0.73 (equation 6.1, C in PF-days), and the tokens that the rest of the budget buys.

        The paper's own D = 2e10 C^0.27 is for training at the critical batch size, which takes twice the compute.
        """
        parameters = 1.3e9 * (flops / PF_DAY_FLOPS) ** 0.73
        return Optimum(parameters, flops / (6 * parameters))

    def optimal_tokens(self, parameters: float) -> float:
        """Return the tokens at which a model of this size is the best one for its compute."""
        flops = PF_DAY_FLOPS * (parameters / 1.3e9) ** (1 / 0.73)
        return float(flops / (6 * parameters))

    def loss_of_parameters(self, parameters: float) -> float:
        """Return the loss of a converged model with data without end (equation 1.1)."""
        return float((8.8e13 / parameters) ** 0.076)

    def loss_of_tokens(self, tokens: float) -> float:
        """Return the loss of a large model that stops early on limited data (equation 1.2)."""
        return float((5.4e13 / tokens) ** 0.095)

    def loss_of_compute(self, flops: float) -> float:
        """Return the loss of the best model for a budget at small batch sizes (equation 1.3)."""
        return float((3.1e8 * PF_DAY_FLOPS / flops) ** 0.050)

    def loss_of_compute_at_fixed_batch(self, flops: float) -> float:
        """Return the loss of the best model for a budget, trained at one batch size for all (the uncorrected L(C))."""
        return float((1.6e7 * PF_DAY_FLOPS / flops) ** 0.057)

    def tokens_without_overfitting(self, parameters: float) -> float:
        """Return the smallest data set on which a model of this size hardly overfits (equation 4.4)."""
        return float(5e3 * parameters**0.74)

    def _joint(self, parameters: float, tokens: float, constants: tuple[float, float, float, float]) -> float:
        size, data, alpha, beta = constants
        return float(((size / parameters) ** (alpha / beta) + data / tokens) ** beta)


@dataclass(frozen=True)
class Chinchilla:
    """L = E + A / N^alpha + B / D^beta, with one of the published sets of constants.

    The band holds 95 % of runs: the scatter of Chinchilla's own runs around the law, and, where a covariance of the
    constants is given, the uncertainty of the law itself, which grows outside the sizes and tokens that it was fitted
    on. The constants are strongly correlated (a larger A goes with a larger alpha), so their printed errors must not be
    added up as if they were independent: the variance is g^T S g, with the gradient g of the loss and the covariance S.
    """

    source: str
    a: float
    b: float
    e: float
    alpha: float
    beta: float
    scatter: float
    """Root mean square of log(law / loss) over the runs that Besiroglu et al. read from Chinchilla's figure 4."""
    covariance: tuple[tuple[float, ...], ...] | None = None
    """Covariance of (log A, log B, log E, alpha, beta); None: the source publishes none."""
    counts_embeddings: bool = True

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss in nats a token."""
        return sum(self._terms(parameters, tokens))

    def band(self, parameters: float, tokens: float) -> LossBand:
        """Return the loss and the interval that holds 95 % of runs."""
        value = self.loss(parameters, tokens)
        error = CONFIDENCE_95 * math.hypot(self.scatter, self._uncertainty(parameters, tokens))
        return LossBand(value, value * math.exp(-error), value * math.exp(error))

    def optimum(self, flops: float) -> Optimum:
        """Return the smallest loss with 6 N D = C: N = G (C / 6)^(beta / (alpha + beta)), their equation 4."""
        parameters = self._balance * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return Optimum(parameters, flops / (6 * parameters))

    def optimal_tokens(self, parameters: float) -> float:
        """Return the tokens at which a model of this size is the best one for its compute."""
        product = (parameters / self._balance) ** ((self.alpha + self.beta) / self.beta)
        return float(product / parameters)

    @property
    def _balance(self) -> float:
        return float((self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta)))

    def _terms(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        return self.a / parameters**self.alpha, self.b / tokens**self.beta, self.e

    def _uncertainty(self, parameters: float, tokens: float) -> float:
        """Return the standard deviation of the law's log(loss)."""
        if self.covariance is None:
            return 0.0
        size, data, rest = self._terms(parameters, tokens)
        # Of the loss in log A, log B, log E, alpha and beta.
        gradient = (size, data, rest, -size * math.log(parameters), -data * math.log(tokens))
        rows = zip(gradient, self.covariance, strict=True)
        variance = sum(one * sum(map(mul, gradient, row)) for one, row in rows)
        return math.sqrt(variance) / (size + data + rest)


KAPLAN = Kaplan()
_SCATTER = "band: scatter of the 240 runs of its figure 4 around the law"
CHINCHILLA = Chinchilla(
    f"Hoffmann et al. 2022 (arXiv 2203.15556), constants as printed; {_SCATTER}",
    *(406.4, 410.7, 1.69, 0.34, 0.28),
    scatter=0.01925,
)
CHINCHILLA_TEX = Chinchilla(
    f"Hoffmann et al. 2022 (arXiv 2203.15556), digits of its TeX source, quoted by arXiv 2404.10102; {_SCATTER}",
    *(math.exp(6.0073404), math.exp(6.0179186), math.exp(0.5267228), 0.33917084, 0.2849083),
    scatter=0.01000,
)
BESIROGLU = Chinchilla(
    f"Besiroglu et al. 2024 (arXiv 2404.10102), the fit of Chinchilla's runs; {_SCATTER}, and the fit's covariance",
    *(482.01, 2085.43, 1.8172, 0.3478, 0.3658),
    scatter=0.00754,
    # Of 4,000 bootstrap fits, made again here from github.com/epoch-research/analyzing-chinchilla as its notebook makes
    # them: the standard errors are the paper's (A 124.5, B 1293, E 0.0257, alpha 0.0154, beta 0.0206), and it prints no
    # covariances. Errors added as if they were independent would make a band of 21 % at 1B parameters, not 0.2 %.
    covariance=(
        (6.66310e-2, -2.77646e-2, 2.13532e-3, 3.97184e-3, -1.39060e-3),
        (-2.77646e-2, 1.77221e-1, 3.59986e-3, -1.72365e-3, 8.66687e-3),
        (2.13532e-3, 3.59986e-3, 1.98814e-4, 1.26121e-4, 1.75370e-4),
        (3.97184e-3, -1.72365e-3, 1.26121e-4, 2.37082e-4, -8.63851e-5),
        (-1.39060e-3, 8.66687e-3, 1.75370e-4, -8.63851e-5, 4.24120e-4),
    ),
)
LAWS: Mapping[str, Law] = MappingProxyType(
    {"besiroglu": BESIROGLU, "chinchilla": CHINCHILLA, "chinchilla_tex": CHINCHILLA_TEX, "kaplan": KAPLAN}
)
"""All laws of the loss, the default first."""
DEFAULT_LAW = "besiroglu"


@dataclass(frozen=True)
class TokenLine:
    """Llama 3's line of the best number of tokens for a budget, D = A C^alpha (arXiv 2407.21783, section 3.2.1).

    It tells no loss.
    """

    source: str
    factor: float
    exponent: float

    def optimum(self, flops: float) -> Optimum:
        """Return the best tokens for a budget of training FLOPs, and the size that it then pays for."""
        tokens = self.factor * flops**self.exponent
        return Optimum(flops / (6 * tokens), tokens)


LLAMA3 = TokenLine("Llama 3 (arXiv 2407.21783), digits that give the paper's 16.55T tokens to 2 %", 0.299, 0.537)


def parameter_count(model: Model, without: Collection[LayerKind] = ()) -> int:
    """Return a model's parameters without adapters, and without layers of some kinds.

    Layers that are one object are counted once and multiplied, so that a large model takes no longer than a small one.
    """
    counts: dict[int, int] = {}
    total = 0
    for layer in model.layers:
        if layer.kind in without:
            continue
        if id(layer.spec) not in counts:
            counts[id(layer.spec)] = sum(tensor.numel for tensor in layer.tensors() if not tensor.is_adapter)
        total += counts[id(layer.spec)]
    return total


def counted_parameters(model: Model, law: Law) -> int:
    """Return a model's parameters as a law counts them.

    Without embeddings: neither the token table, nor learned positions, nor a head of its own, which is another token
    table. Adapters count in no law.
    """
    kinds = (LayerKind.embedding, LayerKind.position, LayerKind.head)
    return parameter_count(model, () if law.counts_embeddings else kinds)


def loss_bands(model: Model, tokens: float) -> dict[str, LossBand]:
    """Return the predicted loss of a model by the law's name, all tokens read once."""
    return {name: law.band(counted_parameters(model, law), tokens) for name, law in LAWS.items()}


FITTED_PARAMETERS = (57e6, 16.2e9)
FITTED_TOKENS = (0.82e9, 318e9)
"""Smallest and largest of the runs that the corrected law was fitted on."""


def outside(model: Model, tokens: float) -> tuple[str, ...]:
    """Return sentences on what takes a run out of the range that the default law was fitted on."""
    return outside_of(parameter_count(model), tokens)


def outside_of(parameters: float, tokens: float) -> tuple[str, ...]:
    """Return the sentences of `outside` for a number of parameters, counted as the default law counts them."""
    found = []
    for name, value, (low, high) in (
        ("parameters", parameters, FITTED_PARAMETERS),
        ("tokens", tokens, FITTED_TOKENS),
    ):
        if not low <= value <= high:
            limits = f"{_billions(low)} to {_billions(high)}"
            found.append(f"The loss is extrapolated: its law was fitted on {limits} {name}, not {_billions(value)}.")
    return tuple(found)


def _billions(value: float) -> str:
    billions = value / 1e9
    return f"{billions:,.0f}B" if billions >= 1000 else f"{billions:.3g}B"


@dataclass(frozen=True)
class Balance:
    """A run's tokens a parameter beside those of the best run with the same compute, under one law."""

    tokens_per_parameter: float
    optimum: Optimum
    """The best size and tokens for the run's compute."""
    excess_loss: float
    """Loss that the run loses against that one, in nats a token."""

    @property
    def ratio(self) -> float:
        """Tokens a parameter, divided by those of the optimum: above 1 is over-trained, below 1 under-trained."""
        return self.tokens_per_parameter / self.optimum.tokens_per_parameter

    @property
    def words(self) -> str:
        """Phrase for the screen, as `6.2x over-trained`; within 5 % a run is compute-optimal."""
        if 0.95 <= self.ratio <= 1.05:
            return "compute-optimal"
        times, kind = (self.ratio, "over-trained") if self.ratio > 1 else (1 / self.ratio, "under-trained")
        return f"{times:.1f}x {kind}" if times < 10 else f"{times:,.0f}x {kind}"


def balance(law: Law, parameters: float, tokens: float) -> Balance:
    """Return how a run of N parameters, as the law counts them, and D tokens stands to the best of its compute."""
    best = law.optimum(6 * parameters * tokens)
    excess = law.loss(parameters, tokens) - law.loss(best.parameters, best.tokens)
    return Balance(tokens / parameters, best, excess)
