from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest

from trainer.doctor import doctor
from trainer.doctor.doctor import CHECKS, Asked, doctor_verb
from trainer.doctor.doctor_screen import as_json, screen
from trainer.doctor.examine import _late, examine
from trainer.doctor.finding import Check, Examined, Finding, Status, fail, ok, skip, warn, worst
from trainer.doctor.surroundings import Surroundings
from trainer.errors import ConfigError

AROUND = Surroundings(environ={})


def raises(error: BaseException) -> Check:
    def look(around: Surroundings) -> Iterator[Finding]:
        yield ok("first", "fine")
        raise error

    return Check("it", "topic", look)


def test_checks_are_made_at_once_and_told_in_their_order() -> None:
    both = threading.Barrier(2, timeout=10)

    def look(around: Surroundings) -> Iterator[Finding]:
        yield ok("it", str(both.wait() >= 0))

    found = examine([Check("a", "x", look), Check("b", "x", look)], AROUND)
    assert [one.check.name for one in found] == ["a", "b"]
    assert worst(found) is Status.ok


def test_a_check_that_hangs_is_a_failure_and_does_not_hold_up_the_others() -> None:
    free = threading.Event()
    began = time.monotonic()
    hangs = Check("disk", "x", lambda _: [ok("disk", str(free.wait(30)))], seconds=0.2)
    [first, second] = examine([hangs, Check("b", "x", lambda _: [ok("b", "fine")])], AROUND)
    free.set()
    assert time.monotonic() - began < 10
    [found] = first.findings
    assert found.found.startswith("did not answer within 0.2 s")
    assert second.findings == (ok("b", "fine"),)


def test_no_answer_of_a_busy_machine_is_no_fault() -> None:
    check = Check("disk", "x", lambda _: ())
    assert _late(check, 8.0, 2).status is Status.fail
    busy = _late(check, 9.0, 2)
    assert (busy.status, busy.found) == (
        Status.warn,
        "did not answer within 30 s, while 9 processes want 2 processors",
    )


@pytest.mark.parametrize(
    ("error", "status", "found", "fix"),
    [
        (OSError("the disk\nis gone"), Status.warn, "not checked: OSError: the disk", "at fault"),
        (ConfigError("a must be b", ["use b"]), Status.fail, "a must be b", "use b"),
        (ModuleNotFoundError("No module named 'x'", name="x"), Status.warn, "No module named 'x'", "pip install x`"),
        (SystemExit(3), Status.warn, "not checked: RuntimeError", "at fault"),
        (RecursionError(), Status.warn, "not checked: RecursionError", "at fault"),
    ],
)
def test_a_check_that_raises_is_a_finding(error: BaseException, status: Status, found: str, fix: str) -> None:
    [one] = examine([raises(error)], AROUND)
    [finding] = one.findings
    assert finding.status is status
    assert found in finding.found
    assert fix in finding.fix


def test_no_checks_are_no_findings() -> None:
    assert examine([], AROUND) == []
    assert worst([]) is Status.ok


@pytest.mark.parametrize(
    ("status", "fix"), [(Status.fail, ""), (Status.warn, ""), (Status.ok, "x"), (Status.skip, "x")]
)
def test_exactly_what_is_wrong_has_a_fix(status: Status, fix: str) -> None:
    with pytest.raises(ValueError, match="have a fix"):
        Finding("it", status, "found", fix)


EXAMINED = [
    Examined(Check("a", "first", lambda _: ()), (ok("a", "fine"), skip("b", "nothing"))),
    Examined(Check("c", "first", lambda _: ()), (warn("longer name", "slow\x1b[31m\nline", "mend `it`"),)),
    Examined(Check("d", "second", lambda _: ()), (skip("d", "nothing"),)),
    Examined(Check("e", "third", lambda _: ()), (fail("e", "broken", "repair"),)),
]


def test_screen() -> None:
    assert screen(EXAMINED, show_all=False).splitlines() == [
        "first",
        "  ok    a            fine",
        "  warn  longer name  slow [31m line",
        "        fix          mend `it`",
        "third",
        "  fail  e    broken",
        "        fix  repair",
        "Not ready: 1 failed, 1 warned, 1 ok, 2 not needed.",
    ]
    assert "  skip  d    nothing" in screen(EXAMINED, show_all=True)
    assert screen(EXAMINED[:2], show_all=False).endswith("Ready, with warnings: 1 warned, 1 ok, 1 not needed.")
    assert screen(EXAMINED[:1], show_all=False).endswith("Ready: 1 ok, 1 not needed.")


def test_json() -> None:
    found = json.loads(json.dumps(as_json(EXAMINED)))
    assert found["status"] == "fail"
    assert found["findings"][2] == {
        "topic": "first",
        "name": "longer name",
        "status": "warn",
        "found": "slow\x1b[31m\nline",
        "fix": "mend `it`",
    }
    assert found["findings"][0]["fix"] is None


@pytest.mark.parametrize(("finding", "code"), [(ok("a", "b"), 0), (warn("a", "b", "c"), 0), (fail("a", "b", "c"), 1)])
def test_exit_code(
    finding: Finding, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (Check("a", "x", lambda _: [finding]),))
    assert doctor_verb([], Asked()) == code
    assert doctor_verb([], Asked(as_json=True)) == code
    assert json.loads(capsys.readouterr().out.partition("{")[2].join(("{", "")))["status"] == finding.status.value


def test_health_looks_at_progress_alone_and_composes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Surroundings] = []

    def look(around: Surroundings) -> Iterator[Finding]:
        looked.append(around)
        yield fail("progress", "none", "start")

    monkeypatch.setattr(doctor, "HEALTH", (Check("progress", "runs", look),))
    monkeypatch.setattr(doctor, "CHECKS", (Check("a", "x", lambda _: pytest.fail("not asked")),))
    monkeypatch.setattr("trainer.config.compose.compose", lambda _: pytest.fail("composed"))
    assert doctor_verb([], Asked(is_health=True)) == 1
    assert len(looked) == 1


def test_a_wrong_config_or_hostfile_is_refused_before_anything_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (Check("a", "x", lambda _: pytest.fail("looked")),))
    with pytest.raises(ConfigError, match="there is no key"):
        doctor_verb(["model.hiden_size=1"], Asked())
    with pytest.raises(ConfigError, match="--hostfile must name a file"):
        doctor_verb([], Asked(hostfile="none"))


def test_names_of_checks_are_their_own() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
