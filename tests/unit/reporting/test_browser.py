"""Reports in a real headless Chromium: they draw, fit, can be used by keyboard, and ask the network for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.helpers.browser import chromium, opened, overflow, violations
from trainer.records.metric_columns import Metrics
from trainer.records.run_record import read_record
from trainer.reporting.page import Content, page
from trainer.reporting.sweep_board import Goal
from trainer.reporting.written_report import Asked, report_verb

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ALL_DRAWN = """[...document.querySelectorAll("[data-curve], [data-board]")]
  .filter((one) => one.offsetParent).every((one) => one.querySelector("canvas"))"""
ZOOMED = """Trident.curves.figures.map((one) => one.part.view.getOption().dataZoom[0])
  .map((one) => one.end - one.start)"""
KINDS = ("finished", "crashed", "troubled", "sweep")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def reports(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    for kind in KINDS:
        report_verb(Asked([str(made / kind)], output=str(folder / f"{kind}.html")))
    both = [str(made / "finished"), str(made / "crashed")]
    report_verb(Asked(both, output=str(folder / "both.html")))
    return {path.stem: path for path in folder.glob("*.html")}


@pytest.mark.parametrize("kind", [*KINDS, "both"])
def test_a_report_fits_every_screen_and_says_nothing(browser: Browser, reports: dict[str, Path], kind: str) -> None:
    with opened(browser, reports[kind]) as found:
        assert overflow(found.page) <= 0
        assert found.page.evaluate(ALL_DRAWN)
        found.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        assert overflow(found.page) <= 0
        found.page.set_viewport_size({"width": 390, "height": 800})
        assert overflow(found.page) <= 0
    assert (found.said, found.asked) == ([], [])


@pytest.mark.parametrize(("kind", "width", "theme"), [("troubled", 1600, "light"), ("sweep", 390, "dark")])
def test_everybody_can_read_a_report(
    browser: Browser, reports: dict[str, Path], kind: str, width: int, theme: str
) -> None:
    """The rules of axe-core, contrast among them; those of the charts' own colours are in test_contents.py."""
    with opened(browser, reports[kind], width, theme) as found:
        found.page.evaluate("for (const one of document.querySelectorAll('details:not(.more)')) one.open = true")
        assert violations(found.page) == []


def test_axe_finds_a_picture_without_words(browser: Browser, reports: dict[str, Path], tmp_path: Path) -> None:
    text = reports["crashed"].read_text()
    start = text.index('role="img"')
    broken = tmp_path / "broken.html"
    broken.write_text(text[:start] + text[start:].replace("aria-label=", "data-label=", 1))
    with opened(browser, broken) as found:
        assert any(one.startswith("role-img-alt") for one in violations(found.page))


def test_a_broken_script_is_found(browser: Browser, reports: dict[str, Path], tmp_path: Path) -> None:
    """The page's own policy refuses a script that is not as it was written."""
    broken = tmp_path / "broken.html"
    broken.write_text(reports["crashed"].read_text().replace("Trident.boards.start();", "Trident.boards.begin();"))
    with opened(browser, broken, waits=False) as found:
        pass
    assert any("Content Security Policy" in one for one in found.said)


def test_keys_read_and_zoom_a_curve(browser: Browser, reports: dict[str, Path]) -> None:
    with opened(browser, reports["troubled"]) as found:
        plot, told = found.page.locator('[data-curve="loss"]'), found.page.locator("#spoken")
        plot.focus()
        plot.press("ArrowRight")
        assert told.inner_text().startswith("step 10: training ")
        plot.press("End")
        assert told.inner_text().startswith("step 2,000: training ")
        reset = found.page.locator("#reset-zoom")
        assert reset.is_disabled()
        plot.press("+")
        assert reset.is_enabled()
        assert set(np.round(found.page.evaluate(ZOOMED), 3)) == {50.0}
        plot.press("0")
        assert set(np.round(found.page.evaluate(ZOOMED), 3)) == {100.0}


def test_controls_change_the_curves(browser: Browser, reports: dict[str, Path]) -> None:
    option = "Trident.curves.figures[0].part.view.getOption()"
    with opened(browser, reports["troubled"]) as found:
        page_ = found.page
        page_.locator("[name=x][value=hours]").check()
        # 2,000 steps of 1.18 s and more.
        assert 0.65 < page_.evaluate(f"{option}.xAxis[0].max") < 0.75
        page_.locator("[name=x][value=tokens]").check()
        assert page_.evaluate(f"{option}.xAxis[0].max") == pytest.approx(2000 * 524_288, rel=1e-5)
        page_.locator("[name=log]").check()
        assert page_.evaluate(f"{option}.yAxis[0].type") == "log"
        lines = page_.evaluate(f"{option}.series.length")
        page_.get_by_role("button", name="held out").first.click()
        assert page_.evaluate(f"{option}.series.length") == lines - 1
        page_.locator("[name=smoothing]").fill("0")
        assert page_.evaluate(f"{option}.series.filter((one) => one.name.endsWith('raw')).length") == 0


def test_light_and_dark(browser: Browser, reports: dict[str, Path]) -> None:
    with opened(browser, reports["crashed"], theme="dark") as found:
        background = "getComputedStyle(document.body).backgroundColor"
        dark = found.page.evaluate(background)
        found.page.get_by_role("button", name="Use light colours").click()
        assert found.page.evaluate(background) != dark
        assert found.page.get_by_role("button", name="Use dark colours").is_visible()


def test_a_step_of_the_pipeline_is_zoomed(browser: Browser, reports: dict[str, Path]) -> None:
    with opened(browser, reports["finished"]) as found:
        figure = found.page.locator("#step figure")
        figure.get_by_role("button", name="Zoom in").click()
        told = found.page.locator("#spoken").inner_text()
        assert told.startswith("Showing ")
        assert told.endswith(" of the step")
        found.page.locator('[data-board="step"]').press("0")
        assert found.page.locator("#spoken").inner_text().startswith("Showing 0 ms to ")


def test_the_config_is_filtered(browser: Browser, reports: dict[str, Path]) -> None:
    with opened(browser, reports["finished"]) as found:
        found.page.locator("#config-filter").fill("optimizer.lr")
        shown = found.page.locator("#config-table tbody tr:visible")
        assert shown.count() == 1
        assert found.page.locator("#config-table-count").inner_text().startswith("1 of ")


def long_metrics(rows: int) -> Metrics:
    steps = np.arange(1, rows + 1, dtype=np.int64)
    scatter = np.random.default_rng(0)
    loss = 2 + 8 * np.exp(-steps / 4000) + scatter.normal(0, 0.05, rows)
    names = ("train/loss", "train/grad_norm", "perf/tokens_per_second", "time/step_ms", "train/tokens_seen", "perf/mfu")
    more = {f"system/node0/value{number}": (steps, loss + number) for number in range(10)}
    return Metrics(steps, {**dict.fromkeys(names, (steps, loss * 100)), "train/loss": (steps, loss), **more})


def test_a_page_of_200000_rows_is_small_and_opens_quickly(browser: Browser, made: Path, tmp_path: Path) -> None:
    record = replace(read_record(made / "finished"), metrics=long_metrics(200_000))
    path = tmp_path / "long.html"
    path.write_text(page(Content([record], "long", Goal("train/loss"))))
    assert path.stat().st_size < 5e6
    with opened(browser, path, part="") as found:
        session: Any = found.page.context.new_cdp_session(found.page)
        session.send("Performance.enable")
        measured = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        # Time of the page's own thread: a machine that does other things too does not change it.
        assert measured["TaskDuration"] < 3.0
    assert found.said == []
