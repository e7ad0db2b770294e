#!/usr/bin/env python3
"""Write docs/planner_times.md: step times that the planner predicts beside published ones, and where it misses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers import published_times as published  # noqa: E402
from tests.helpers.published_times import Row  # noqa: E402
from trainer.log import say  # noqa: E402
from trainer.planner.profiles import profile_for  # noqa: E402
from trainer.planner.step_time import TimeModel  # noqa: E402

PAGE = Path(__file__).parent / "planner_times.md"
MISS = 0.10

INTRODUCTION = """# Predicted and published step times

The planner's time model against runs that others measured. Constants come from one profile for each kind of device and
era of software (`trainer/planner/profiles.py`), never from the run that is predicted. *Fitted* tables are those whose
rows a profile was fitted on. No constant was chosen by a row of the other tables, but they were seen while the model
was written, and a term that all runs share (gradients that add up) came in because of them. The tables are in
[tests/unit/planner/rows/](../tests/unit/planner/rows/), each with its source; this page is written by `python
docs/generate_planner.py`. A row that is off by more than 10 % is marked.

"""


def errors_of(rows: Sequence[Row]) -> list[tuple[Row, float, float]]:
    """Return each row with the predicted seconds and their relative error."""
    found = []
    for row in rows:
        seconds = TimeModel(row.cluster, profile_for(row.cluster)).step(row.plan).time.total
        found.append((row, seconds, seconds / row.seconds - 1))
    return found


def line_of(title: str, found: Sequence[tuple[Row, float, float]]) -> str:
    """Return a line of the summary."""
    errors = [error for _, _, error in found]
    sizes = [abs(error) for error in errors]
    mean, bias = sum(sizes) / len(sizes), sum(errors) / len(errors)
    worst = sum(size > MISS for size in sizes)
    return f"| {title} | {len(found)} | {mean:.1%} | {max(sizes):.1%} | {bias:+.1%} | {worst} |"


def table_of(title: str, found: Sequence[tuple[Row, float, float]]) -> str:
    """Return all rows."""
    lines = [f"### {title}", "", "| run | measured, s | predicted, s | error |", "|---|---|---|---|"]
    for row, seconds, error in found:
        mark = " **miss**" if abs(error) > MISS else ""
        group = f"{row.group}: " if row.group else ""
        lines.append(f"| {group}{row.name} | {row.seconds:.2f} | {seconds:.2f} | {error:+.1%}{mark} |")
    return "\n".join(lines)


def order_of(title: str, found: Sequence[tuple[Row, float, float]]) -> str:
    """Return a line on how well the order of layouts is predicted, by the time of a sequence."""
    said = [seconds / row.plan.global_batch_size for row, seconds, _ in found]
    measured = [row.seconds / row.plan.global_batch_size for row, _, _ in found]
    lost = published.regret(said, measured)
    return f"| {title} | {len(found)} | {published.spearman(said, measured):.2f} | {lost:.1%} |"


def orders(chosen: Sequence[Row], others: Sequence[Row]) -> list[str]:
    """Return the table of orders; vTrain's groups stay as they were where its data are missing."""
    lines = ["| layouts of one model | count | Spearman | regret |", "|---|---|---|---|"]
    # The last row is another model.
    lines.append(order_of("BigScience, 181B", errors_of(chosen[:-1])))
    lines.append(order_of("BigScience, with a 176B one", errors_of(chosen)))
    if not others:
        return lines + [one for one in _old() if one.startswith("| vTrain")]
    for group in dict.fromkeys(row.group for row in others):
        lines.append(order_of(f"vTrain, {group}B", errors_of([row for row in others if row.group == group])))
    return lines


def _old() -> list[str]:
    return PAGE.read_text(encoding="utf-8").splitlines() if PAGE.is_file() else []


def page() -> str:
    """Return the text of docs/planner_times.md. Without vTrain's data its part stays as it was."""
    chronicles = published.bigscience(1, 3, 4)
    odd = [row for row in chronicles if "128 heads" in row.name]
    wide = [row for row in chronicles if "14400" in row.name]
    others = [row for row in chronicles if row not in odd and row not in wide]
    zero3 = published.zero3()
    parts = {
        "fitted: Megatron-LM, SC21 table 1": published.sc21(),
        "fitted: Megatron-LM, recomputation (2205.05198)": published.korthikanti(),
        "fitted: vTrain, several machines": published.vtrain(),
        "fitted: BigScience, 17 layouts of 25-26 February": published.bigscience(2),
        "fitted: SC21 table 2, ZeRO-3 of 175B": zero3[:3],
        "fitted: BigScience, heads of 108": odd,
        "not fitted: SC21 table 2, ZeRO-3 of 530B": zero3[3:],
        "not fitted: BigScience, other models and batches": others,
        "not fitted: BigScience, heads of 225": wide,
    }
    for row in published.elsewhere():
        used = "used for one choice" if row.group == "BLOOM" else "not fitted"
        parts.setdefault(f"{used}: {row.group}, {row.cluster.device}", []).append(row)
    kept = "\n".join(one for one in _old() if one.startswith("| fitted: vTrain"))
    summary = ["| rows | count | mean error | largest | bias | above 10 % |", "|---|---|---|---|---|---|"]
    tables = []
    for title, rows in parts.items():
        found = errors_of(rows)
        summary.append(line_of(title, found) if found else kept)
        # vTrain's rows are not a part of this project.
        if found and "vTrain" not in title:
            tables.append(table_of(title, found))
    ranked = orders(published.bigscience(2), published.vtrain())
    regret = "Regret: how much slower the layout is that the model would choose than the fastest one that was measured."
    head = "\n".join(["## Summary", "", *summary, "", "## Order", "", regret, "", *ranked, "", "## Rows", ""])
    return INTRODUCTION + head + "\n" + "\n\n".join(tables) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    say(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
