"""`trident report`: one HTML page about a run, or about several."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.verbs.declare import Option, Positional, Takes, Verb
from trainer.verbs.parse import Words


def run(words: Words) -> int:
    """Write the page."""
    if not words.rest:
        raise ConfigError("usage must be `trident report RUN [RUN ...] [--output FILE]`, but no RUN is given")
    from trainer.reporting.written_report import Asked, report_verb

    return report_verb(Asked(words.rest, words.value("--output"), words.value("--png"), words.value("--pdf")))


VERB = Verb(
    name="report",
    summary="write one HTML page about a run, several, or a sweep",
    run=run,
    positionals=(Positional("RUN", "the folder of a run or of a sweep; several are drawn over each other", Takes.run),),
    options=(
        Option(
            "--output",
            "the file to write, instead of report.html in the run's folder, or here for several",
            aliases=("-o",),
            takes=Takes.file,
            metavar="FILE",
        ),
        Option("--png", "draw the curves into a picture too", takes=Takes.file, metavar="FILE"),
        Option("--pdf", "draw the curves into a PDF for a paper too", takes=Takes.file, metavar="FILE"),
    ),
    text=(
        "The page is one file that needs no network and no server: curves with the events of the run, memory as "
        "predicted and as measured, a measured step of the pipeline, texts, config and versions. Of several runs it "
        "has their curves over each other, what differs, and the points of a sweep.",
        "A run may be going on, may have crashed, and may be of an older version: what cannot be read is noted on the "
        "page. `logging.report=true` writes it at the end of a run.",
    ),
    examples=(
        "trident report runs/mine",
        "trident report runs/a runs/b -o comparison.html",
        "trident report sweeps/lr --pdf curves.pdf",
    ),
)
