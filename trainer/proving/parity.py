"""`trident parity`: a config, scaled down, is trained in its layout and its neighbours, and by the oracle. No torch."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from trainer.config.schema import TridentConfig
from trainer.config.written import to_yaml
from trainer.errors import ConfigError, TridentError
from trainer.files import write_atomically
from trainer.launcher.start import python_environment
from trainer.log import say, write
from trainer.progress import TESTING, current
from trainer.proving.proof_trials import Proof, proof_of
from trainer.versions import source_digest, versions

STEPS = 3
SILENT_S = 600.0
"""Seconds without a verdict after which the trials are given up; the first offload compiles a kernel."""
END_S = 10.0
"""Seconds that the process gets to say why it ends."""
FORMAT = 1
"""Version of parity.json."""
_SHOWN_FINDINGS = 4
_COLUMNS = ("loss", "gradient norm", "gradient", "change")


@dataclass(frozen=True)
class Asked:
    """Wishes of a person who calls `trident parity`."""

    steps: int = STEPS
    layouts: tuple[str, ...] = ()
    """Spellings of layouts to try instead of the run's and its neighbours."""
    out: Path = Path("parity.json")
    as_json: bool = False


class ParityFailed(TridentError):
    """The process that trains the trials ended without a result."""


def prove(config: TridentConfig, vocab_size: int | None, asked: Asked) -> int:
    """Prove a config, print the verdicts, write parity.json, and return 0 if all trials agree, otherwise 1.

    Args:
        config: accepted by `validate`, with a layout.
        vocab_size: number of token ids; None if it is not known yet.
        asked: how.

    Raises:
        ConfigError: the config cannot be scaled down, a layout cannot be tried, or the file cannot be written.
        ParityFailed: the process that trains ended without a result.
        StorageError: parity.json cannot be written.
    """
    current().enter(TESTING)
    proof, begun = proof_of(config, vocab_size, asked.layouts), time.monotonic()
    _check_place(asked.out)
    if not asked.as_json:
        say(f"model    {config.model.name}: {proof.run.scale}")
        say(
            f"trials   {len(proof.trials)} of 1 to {max(one.world_size for one in proof.trials)} ranks on this CPU, "
            f"{asked.steps} steps each, beside the oracle in fp64"
        )
        say(_row("", "", ("loss", "norm", "gradients", "weights")))
    verdicts, faults = [], []
    for answer in _answers(config, vocab_size, asked):
        if "faults" in answer:
            faults = answer["faults"]
            continue
        verdicts.append(answer)
        if not asked.as_json:
            say(_verdict_row(answer))
    record = _record(config, proof, asked, verdicts, faults)
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(asked.out, text, "--out")
    if asked.as_json:
        write(text)
    else:
        say("\n".join(_conclusion(record, time.monotonic() - begun, asked.out)))
    return 0 if record["agrees"] else 1


def _check_place(out: Path) -> None:
    """Check that a file can be written before anything is trained; makes its folder."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ConfigError(
            f"--out must name a file that can be written, but {out} cannot ({error.strerror}); name another one"
        ) from error


def _row(mark: str, name: str, cells: Sequence[str]) -> str:
    return f"{mark:<8} {name:<66}" + "".join(f"{cell:>11}" for cell in cells)


def _verdict_row(answer: Mapping[str, Any]) -> str:
    errors = answer["errors"]
    cells = [f"{errors[name]:.0e}" if name in errors else "-" for name in _COLUMNS]
    ranks = f"{answer['ranks']} rank{'s' * (answer['ranks'] > 1)}"
    return _row("ok" if answer["agrees"] else "DIFFERS", f"{ranks:<8} {answer['trial']}", cells).rstrip()


def _record(
    config: TridentConfig,
    proof: Proof,
    asked: Asked,
    verdicts: Sequence[Mapping[str, Any]],
    faults: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "agrees": all(one["agrees"] for one in verdicts) and len(verdicts) == len(proof.trials),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "source": source_digest(),
        "steps": asked.steps,
        "scaled": proof.run.scale,
        "not_proved": list(proof.left_out),
        "faults": list(faults),
        "trials": list(verdicts),
        "config": to_yaml(config),
        "scaled_config": to_yaml(proof.run.config),
    }


def _conclusion(record: Mapping[str, Any], seconds: float, out: Path) -> Iterator[str]:
    for line in record["not_proved"]:
        yield f"not proved: {line}"
    by_name = {one["trial"]: one for one in record["trials"]}
    for fault in record["faults"]:
        one = by_name[fault["trial"]]
        yield f"at fault: {fault['title']}, as {one['trial']} shows"
        if one["failure"]:
            yield f"  {one['failure']}"
        if fault["vectors"]:
            yield f"  {fault['vectors']}"
        texts = [finding["text"] for finding in one["findings"]]
        yield from (f"  {text}" for text in texts[:_SHOWN_FINDINGS])
        if len(texts) > _SHOWN_FINDINGS:
            yield f"  and {len(texts) - _SHOWN_FINDINGS} more, in {out}"
    wrong = sum(not one["agrees"] for one in record["trials"])
    total = len(record["trials"])
    if record["agrees"]:
        yield f"PROVED   all {total} trials agree with the oracle ({seconds:.0f} s); {out}"
    else:
        yield f"DIFFERS  {wrong} of {total} trials do not agree with the oracle ({seconds:.0f} s); {out}"


def _answers(config: TridentConfig, vocab_size: int | None, asked: Asked) -> Iterator[dict[str, Any]]:
    """Start the process that trains, and yield its answers.

    Raises:
        ParityFailed: it ended without its last one, or is silent.
    """
    question = {
        "config": to_yaml(config),
        "vocab_size": vocab_size,
        "layouts": list(asked.layouts),
        "steps": asked.steps,
    }
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as log, os.fdopen(reading) as answers:
        try:
            process = _started(writing, log)
        finally:
            os.close(writing)
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            yield from _heard(answers, log, process)
        finally:
            _ended(process)


def _started(writing: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = python_environment()
    # The trials are trained on the CPU, whatever this machine has.
    environment.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.proving.parity_host", str(writing)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        pass_fds=(writing,),
        start_new_session=True,
    )


def _heard(answers: IO[str], log: IO[bytes], process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        while True:
            if not selector.select(SILENT_S):
                raise ParityFailed(f"a trial must end within {SILENT_S:g} s, but none did{_last(log)}")
            line = answers.readline()
            if not line:
                # It closes its end before it says why.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
                raise ParityFailed(f"the process that trains must end with a result, but did not{_last(log)}")
            answer: dict[str, Any] = json.loads(line)
            yield answer
            if "faults" in answer:
                return


def _last(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def _ended(process: subprocess.Popen[bytes]) -> None:
    """End the process with the ranks that it forked."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
