"""The loss that a scaling law expects of a run after each number of tokens, with its band."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.planner.scaling_laws import DEFAULT_LAW, LAWS, outside_of
from trainer.records.run_record import RunRecord
from trainer.reporting.charts import Kind, Line
from trainer.reporting.thinning import Thinned, evenly

POINTS = 160
_ABOVE = 1.08
"""Multiple of the highest measured loss at which the band is cut off, so that it does not flatten the curve."""


def band_line(record: RunRecord, highest: float) -> tuple[Line | None, list[str]]:
    """Return the band of the default law over a run's steps, and sentences about it.

    Args:
        record: the run.
        highest: highest loss that is drawn.

    No band: parameters or tokens are not known, the law expects more than `highest` throughout, or the run began
    with trained weights, for which no law holds.
    """
    parameters = parameters_of(record)
    steps, tokens = record.metrics.series("train/tokens_seen")
    known = np.isfinite(tokens) & (tokens > 0)
    steps, tokens = steps[known], tokens[known]
    if parameters is None or not len(steps) or record.config.get("checkpoint.init_from"):
        return None, []
    law = LAWS[DEFAULT_LAW]
    places = evenly(len(steps), POINTS)
    bands = [law.band(parameters, float(tokens[place])) for place in places]
    shown = [index for index, band in enumerate(bands) if band.low <= highest * _ABOVE]
    if len(shown) < 2:
        last = bands[-1].value
        return None, [
            f"The scaling law ({law.source.split(';')[0]}) expects {last:.3g} at the end, above everything drawn here: "
            "it holds for far more tokens."
        ]
    drawn = Thinned(
        [int(steps[places[index]]) for index in shown], [_cut(bands[index].value, highest) for index in shown]
    )
    line = Line(
        *("scaling law", 0, drawn, Kind.band, 0, "--band"),
        lows=[_cut(bands[index].low, highest) for index in shown],
        highs=[_cut(bands[index].high, highest) for index in shown],
    )
    return line, [f"Scaling law: {law.source}.", *outside_of(parameters, float(tokens[-1]))]


def _cut(loss: float, highest: float) -> float:
    return float(f"{min(loss, highest * _ABOVE):.6g}")


def parameters_of(record: RunRecord) -> int | None:
    """Return the number of parameters of a run's model without padding; None if no file says it."""
    held: Sequence[object] = [(record.summary or {}).get("parameters")]
    model = (record.plan or {}).get("model")
    if isinstance(model, dict):
        held = [*held, model.get("parameters")]
    return next((value for value in held if isinstance(value, int) and not isinstance(value, bool) and value > 0), None)
