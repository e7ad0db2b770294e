"""All that `trident plan` says of one run, as one value that the screen and `--json` are made of. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.plan import RunPlan
from trainer.planner.cluster import Cluster
from trainer.planner.layout_search import Found, faster
from trainer.planner.offers import offered
from trainer.planner.predict import Planner
from trainer.planner.prediction import LossBand, Prediction
from trainer.planner.price import Price, price_of, seconds_of
from trainer.planner.scaling_laws import DEFAULT_LAW, LAWS, Balance, balance, counted_parameters, loss_bands
from trainer.planner.schedule_time import is_simulated


@dataclass(frozen=True)
class PlanReport:
    """A run, the machines, what is predicted, and what could be changed."""

    plan: RunPlan
    cluster: Cluster
    prediction: Prediction
    tokens: int
    """Tokens of the whole run."""
    price: Price
    losses: dict[str, LossBand]
    """Predicted loss by the law's name, all tokens read once."""
    balance: Balance
    """Tokens a parameter beside the optimum of the default law."""
    fitting: tuple[Found, ...]
    """The layouts that fit and change least; none if the run fits as it is, or nothing does."""
    faster: Found | None
    """A layout of few changes that is faster; None if there is none, or the run does not fit."""

    @property
    def found(self) -> Found:
        """The run's own layout with its prediction."""
        return Found(self.plan, self.prediction)


def make_report(planner: Planner, plan: RunPlan) -> PlanReport:
    """Return the report of a run on the planner's cluster."""
    prediction = planner.predict(plan, exact=is_simulated(plan))
    tokens = plan.run_tokens
    law = LAWS[DEFAULT_LAW]
    near = () if prediction.fits else offered(planner, plan)
    return PlanReport(
        plan=plan,
        cluster=planner.cluster,
        prediction=prediction,
        tokens=tokens,
        price=price_of(
            planner.cluster,
            devices=plan.world_size,
            seconds=seconds_of(tokens, prediction.tokens_per_second),
            flops=plan.flops_per_token * tokens,
        ),
        losses=loss_bands(plan.model, tokens),
        balance=balance(law, counted_parameters(plan.model, law), tokens),
        fitting=near,
        faster=faster(planner, plan, prediction) if prediction.fits else None,
    )
