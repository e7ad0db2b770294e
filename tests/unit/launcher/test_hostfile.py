"""Hostfiles mean here what they mean to DeepSpeed's launcher, which reads them again, or they are refused."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.launcher.hostfile import Node, master_address, own_place, read_hostfile


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def deepspeeds(path: Path) -> Mapping[str, int] | None:
    try:
        found: Mapping[str, int] = fetch_hostfile(str(path))
    except ValueError:
        return None
    return found


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "hosts"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        read_hostfile(str(path))
    [line] = raised.value.problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "text",
    [
        "gpu-0 slots=1\ngpu-1 slots=2",
        "gpu-0 slots=1\r\ngpu-1 slots=2\r\n",
        "gpu-0 slots=1\rgpu-1 slots=2\r",
        "# nodes\n\n  gpu-0   slots=1  \n\t\n  # one more\ngpu-1\tslots=2\n",
        "gpu-0 slots=1 # rank 0\ngpu-1 slots=2#rank 1\n",
        "gpu-0 slots=01 max_slots=2\ngpu-1 slots=2 slots=3\n",
        "gpu-0\u00a0slots=1\u2028\ngpu-1\x0bslots=\u0662\n",
    ],
)
def test_spellings_that_deepspeed_takes(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert read_hostfile(str(path)) == [Node("gpu-0", 1), Node("gpu-1", 2)]
    assert deepspeeds(path) == {"gpu-0": 1, "gpu-1": 2}


def test_users_and_addresses(tmp_path: Path) -> None:
    text = (
        "amd00@192.168.1.10 slots=2\nroot@fe80::1%eth0 slots=1\n::ffff:10.0.0.1 slots=1\na_b.c-d slots=1\nN slots=1\n"
    )
    path = write(tmp_path, text)
    nodes = read_hostfile(str(path))
    assert [node.address for node in nodes] == ["192.168.1.10", "fe80::1%eth0", "::ffff:10.0.0.1", "a_b.c-d", "N"]
    assert {node.host: node.slots for node in nodes} == deepspeeds(path)
    assert master_address(nodes, "hosts") == "192.168.1.10"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must name a host, but names none"),
        ("# all commented out", "must name a host, but names none"),
        ("gpu-0\n", "line 1 of HOSTS must read 'HOST slots=RANKS', but is 'gpu-0'; write it as 'gpu-0 slots=8'"),
        ("\ngpu-0:4", "line 2 of HOSTS must read 'HOST slots=RANKS', but is 'gpu-0:4'; write it as 'gpu-0 slots=4'"),
        ("gpu-0 slots = 4", "but is 'gpu-0 slots = 4'; write it as 'gpu-0 slots=4'"),
        ("gpu-0 max_slots=4 slots=2", "write it as 'gpu-0 slots=4'"),
        ("gpu-0 4", "write it as 'gpu-0 slots=4'"),
        ("gpu-0 cpu=4", "write it as 'gpu-0 slots=4'"),
        ("gpu-0 slots=-1", "but is 'gpu-0 slots=-1'"),
        ("slots=4", "but is 'slots=4'"),
        ("gpu-0 slots=4\ngpu-0 slots=4\n", "once, but lines 1 and 2 name gpu-0; give all its ranks in one line"),
    ],
)
def test_what_deepspeed_refuses_too(text: str, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert deepspeeds(path) is None
    assert told in problem(path).replace(str(path), "HOSTS")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\ufeffgpu-0 slots=1\n", "must start with a host, but starts with a byte order mark"),
        (
            "gpu-0 slots=0\n",
            "must have slots of at least 1, but is 'gpu-0 slots=0'; put a # before a host to leave out",
        ),
        ("gpu-0 slots=1.5\n", "must read 'HOST slots=RANKS', but is 'gpu-0 slots=1.5'"),
        ("gpu-0 slots=4,5\n", "must read 'HOST slots=RANKS', but is 'gpu-0 slots=4,5'"),
        ("gpu-[0-3] slots=1\n", "must name one host, as NAME, ADDRESS or USER@NAME, but names 'gpu-[0-3]'"),
        ("gpu-0,gpu-1 slots=1\n", "must name one host"),
        ("-w slots=1\n", "must name one host"),
        ("ssh:gpu-0 slots=1\n", "must name one host"),
        ("a@b@gpu-0 slots=1\n", "must name one host"),
        ("$(reboot) slots=1\n", "must name one host"),
        ("ann@gpu-0 slots=1\nbob@GPU-0 slots=1\n", "once, but lines 1 and 2 name GPU-0"),
    ],
)
def test_what_deepspeed_would_start_something_else_for(text: str, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert deepspeeds(path), "DeepSpeed takes it"
    assert told in problem(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "--hostfile must name a file, but nowhere cannot be read" in problem(Path("nowhere"))
    assert "must name a plain file" in problem(tmp_path)
    assert "must name a plain file" in problem(Path("/dev/null")), "DeepSpeed takes a device or pipe for no hostfile"
    assert "must be text in UTF-8" in problem(write(tmp_path, "gpu-0 slots=1\n".encode("utf-16")))
    with pytest.raises(ConfigError, match="an empty name cannot be read"):
        read_hostfile("")


HOSTS = st.sampled_from(
    ["a", "b", "A", "u@a", "u@v@a", "::1", "fe80::1%eth0", "10.0.0.1", "a,b", "a[1-2]", "#a", "a#b"]
)
GAPS = st.sampled_from([" ", "\t", "  ", "", "\u00a0", "\x0c", ":"])
COUNTS = st.sampled_from(
    ["slots=1", "slots=02", "slots=0", "slots=", "slots=-1", "slots = 1", "slots=1x", "Slots=1", "1"]
)
RESTS = st.sampled_from(["", " ", "# c", " # c", " max_slots=2", "\u2028", ".5"])
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", ""])
LINES = st.tuples(st.sampled_from(["", " ", "# ", "\ufeff"]), HOSTS, GAPS, COUNTS, RESTS, ENDS).map("".join)
LIKELY = st.tuples(HOSTS, st.just(" "), st.sampled_from(["slots=1", "slots=2"]), RESTS, ENDS).map("".join)


TEXTS = st.lists(LIKELY | LINES, max_size=4).map("".join) | st.text("ab @#:[]slots=12\r\n\t", max_size=40)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=TEXTS)
def test_any_text_means_what_deepspeed_reads_or_is_refused(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    theirs = deepspeeds(path)
    try:
        ours = {node.host: node.slots for node in read_hostfile(str(path))}
    except ConfigError as error:
        [told] = error.problems
        if theirs is not None:
            machines = {host.rpartition("@")[2].lower() for host in theirs}
            reasons = {
                "byte order mark": text.startswith("\ufeff"),
                "must name one host": any(set(host) & set(",[]#:@=") or host[0] == "\ufeff" for host in theirs),
                "slots of at least 1": 0 in theirs.values(),
                "must read": re.search(r"slots=\d+[^\s\d#]", text) is not None,
                "give all its ranks in one line": len(machines) < len(theirs),
            }
            assert [holds for reason, holds in reasons.items() if reason in told] == [True], told
    else:
        assert theirs is not None
        assert list(ours.items()) == list(theirs.items())


def test_a_first_host_that_leads_everyone_to_themselves() -> None:
    alone, pair = [Node("localhost", 2)], [Node("ann@127.0.0.1", 2), Node("gpu-1", 2)]
    assert master_address(alone, "hosts") == "localhost"
    assert master_address([Node("127.0.0.1", 1), Node("127.0.0.2", 1)], "hosts") == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"must have a name by which the others reach it, but 127\.0\.0\.1 leads"):
        master_address(pair, "hosts")
    with pytest.raises(ConfigError, match="but ::1 leads"):
        master_address([Node("::1", 1), Node("fe80::1", 1)], "hosts")


def test_which_node_this_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-1.cluster")
    nodes = [Node("gpu-0", 1), Node("ann@GPU-1", 1)]
    assert own_place(nodes, "hosts") == 1
    assert own_place([Node("gpu-0.cluster", 1), Node("gpu-1.cluster", 1), Node("gpu-1.other", 1)], "hosts") == 1
    with pytest.raises(
        ConfigError, match=r"must say which line of hosts this node is, since none names gpu-1\.cluster"
    ):
        own_place(nodes[:1], "hosts")
    with pytest.raises(ConfigError, match=r"since 2 of them name gpu-1\.cluster"):
        own_place([Node("gpu-1.a", 1), Node("gpu-1.b", 1)], "hosts")
    monkeypatch.setattr("trainer.launcher.hostfile._own_addresses", lambda: {"10.0.0.7"})
    assert own_place([Node("10.0.0.6", 1), Node("root@10.0.0.7", 1)], "hosts") == 1
    assert own_place([Node("localhost", 4)], "hosts") == 0
