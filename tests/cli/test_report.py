from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.helpers.made_runs import MadeRun, make_run, make_sweep

SMALL = MadeRun(steps=60, done=60, evaluates_every=20, saves_every=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine", SMALL)


def test_a_report_lies_in_the_folder_of_its_run(trident: Run, run: Path) -> None:
    answer = trident("report", str(run))
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"report  {run}/report.html (1.")
    assert answer.out.endswith(" MB; finished)\n")
    # And again over the earlier one.
    assert trident("report", str(run)).code == 0


def test_figures_beside_the_page(trident: Run, run: Path, tmp_path: Path) -> None:
    words = ["--png", str(tmp_path / "a.png"), "--pdf", str(tmp_path / "a.pdf"), "-o", str(tmp_path / "a.html")]
    answer = trident("report", str(run), *words)
    assert (answer.code, answer.err) == (0, "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "a.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    assert b"Curves of mine" in first
    trident("report", str(run), *words)
    assert (tmp_path / "a.pdf").read_bytes() == first


def test_several_runs_and_a_sweep(trident: Run, run: Path, tmp_path: Path) -> None:
    make_sweep(tmp_path / "sweep", runs=3)
    answer = trident("report", str(tmp_path / "sweep"), "--png", "s.png")
    assert (answer.code, answer.err) == (0, "")
    assert f"report  {tmp_path}/sweep/report.html" in answer.out
    assert "3 runs: 3 finished" in answer.out
    answer = trident("report", str(tmp_path / "sweep"), str(run))
    assert f"report  {Path.cwd()}/report.html" in answer.out
    assert "4 runs: 4 finished" in answer.out


def test_what_is_no_run(refused: Run, run: Path, tmp_path: Path) -> None:
    assert refused("report").problems == [
        "usage must be `trident report RUN [RUN ...] [--output FILE]`, but no RUN is given"
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused("report", str(empty)).problems == [f"RUN must be the folder of a run, but {empty} is empty"]
    assert refused("report", "nothing").problems[0].endswith("nothing is not there")
    assert refused("report", str(run / "config.yaml")).problems[0].endswith("config.yaml is a file")
    (empty / "sweep.json").write_text("[]")
    assert refused("report", str(empty)).problems == [
        f"RUN must be the folder of a run, or of a sweep with runs, but none of {empty} was started"
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-o", "x.txt"], "--output must end in .html, but is {place}/x.txt; use for example x.html"),
        (["-o", "no/x.html"], "--output must be in a folder that exists, but {place}/no is none"),
        (["-o", "folder.html"], "--output must name a file, but {place}/folder.html is a folder"),
        (["-o", "mine.html"], "--output must be a new file or an earlier report, but {place}/mine.html is neither"),
        (["--png", "a.pdf"], "--png must end in .png, but is {place}/a.pdf; use for example a.png"),
        (["--pdf", "no/a.pdf"], "--pdf must be in a folder that exists, but {place}/no is none"),
    ],
)
def test_where_nothing_can_be_written(words: list[str], problem: str, refused: Run, place: Path, run: Path) -> None:
    (place / "folder.html").mkdir()
    (place / "mine.html").write_text("<html>my own page</html>")
    answer = refused("report", str(run), *words)
    assert answer.code == 2
    assert answer.problems[0].startswith(problem.format(place=place))
    assert (place / "mine.html").read_text() == "<html>my own page</html>"


def test_a_run_of_somebody_else(trident: Run, run: Path, place: Path) -> None:
    """Its folder need not be writable when the page goes elsewhere."""
    run.chmod(0o555)
    try:
        assert trident("report", str(run), "-o", str(place / "theirs.html")).code == 0
    finally:
        run.chmod(0o755)
    assert (place / "theirs.html").stat().st_size > 1_000_000


def test_more_runs_than_a_page_holds(refused: Run, monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("trainer.reporting.written_report.MOST_RUNS", 1)
    assert refused("report", str(run), str(tmp_path)).problems == [
        "a report must be of at most 1 runs, but these are 2; name fewer folders"
    ]
