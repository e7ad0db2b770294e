"""The units of a source done, from whatever is finished already. No torch."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config.schema import TridentConfig
from trainer.corpus.cutting import cut
from trainer.corpus.inputs import input_files
from trainer.corpus.units import UNIT_BYTES
from trainer.data.build.chosen import Places
from trainer.data.build.crew import Build, Crew, build_here
from trainer.data.build.meter import Meter
from trainer.data.build.schedule import Schedule, Share
from trainer.data.build.work_folder import WorkFolder
from trainer.machine import usable_cores

Say = Callable[[str], None]


def do_units(
    config: TridentConfig,
    work: WorkFolder,
    share: Share,
    say: Say,
    is_done: Callable[[], bool],
    unit_bytes: int = UNIT_BYTES,
) -> Places:
    """Do all units that are not finished, and return the results in order.

    One that is alone is done in this process, where the tokenizer uses all cores by itself; others by processes.

    Args:
        config: a validated config.
        work: the folder of the results, which exists and has a tokenizer.
        share: this node's share.
        say: is told what is being done when it takes a while.
        is_done: returns whether somebody else has finished the shards meanwhile; then the results may be gone.
        unit_bytes: content of a unit and of a block, about, in bytes.

    Raises:
        DataError: the input cannot be read, or a process died.
        OutOfMemoryError: a process was ended for its memory.
        PeerLostError: a process stands still.
        OSError: the disk is full.
    """
    files = input_files(config.data)
    units = list(cut(files, unit_bytes))
    work.beat(share.node)
    schedule = Schedule(units, files, work, share, config.data.max_documents)
    if schedule.done:
        say(f"data    goes on: {len(units) - schedule.left} of {len(units)} units are finished")
    sizes = [schedule.size(unit) for unit in units if not schedule.is_finished(unit)]
    build = Build(config, work, schedule, share, Meter(say, sizes), unit_bytes)
    workers = _workers(config, say)
    if not share.others:
        if len(units) == 1:
            build_here(build, most_blocks=1)
        elif workers == 1:
            build_here(build)
    if not schedule.is_over():
        Crew(build, workers, is_done).run()
    return schedule.places()


def _workers(config: TridentConfig, say: Say) -> int:
    cores, wanted = usable_cores(), config.data.workers
    if wanted is not None and wanted > cores:
        say(
            f"data    data.workers={wanted} is more than the {cores} processors that this process may use: they take "
            "turns, and need the memory of all"
        )
    return wanted or cores
