from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest

from trainer.errors import ConfigError, DataError, PeerLostError
from trainer.topology import muster
from trainer.topology.muster import Agreed, DisagreementError, Fact, Facts, LonelyError, Member, Refusal, agree

LIMIT_S = 20.0
GIVEN_UP = "gave up waiting for "


class FakeStore:
    """A store that counts what it is asked for."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def set(self, key: str, value: str) -> None:
        with self._lock:
            self.calls["set"] += 1
            self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        with self._lock:
            self.calls[f"get {key.partition('/')[0]}"] += 1
            return self.values[key]

    def check(self, keys: list[str]) -> bool:
        with self._lock:
            return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self.calls["add"] += 1
            total = int(self.values.get(key, b"0")) + amount
            if amount:
                self.values[key] = str(total).encode()
            return total


def wait_for(limit_s: float) -> Callable[[Callable[[], bool], Callable[[], str]], None]:
    end = time.monotonic() + limit_s

    def wait(holds: Callable[[], bool], what: Callable[[], str]) -> None:
        while not holds():
            if time.monotonic() > end:
                raise PeerLostError(GIVEN_UP + what())
            time.sleep(0.001)

    return wait


def facts(**values: object) -> Facts:
    return {name: Fact(value, value) for name, value in values.items()}


def outcomes(
    said: Sequence[Facts | Refusal],
    store: FakeStore | None = None,
    members: Sequence[Member] | None = None,
    limit_s: float = LIMIT_S,
) -> list[Agreed | Exception]:
    """What `agree` returns or raises on each rank; ranks are threads."""
    store = store or FakeStore()
    members = members or [Member(rank, len(said), f"h{rank // 2}", 100 + rank) for rank in range(len(said))]
    found: dict[int, Agreed | Exception] = {}

    def run(index: int) -> None:
        try:
            found[index] = agree(store, members[index], said[index], wait_for(limit_s))
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(said))]
    for thread in threads:
        thread.start()
        time.sleep(0.001)
    for thread in threads:
        thread.join(3 * LIMIT_S)
        assert not thread.is_alive()
    return [found[index] for index in range(len(said))]


def problem(said: Sequence[Facts | Refusal], **options: object) -> str:
    """The one line that every rank ends with."""
    found = outcomes(said, **options)  # type: ignore[arg-type]
    assert all(isinstance(error, DisagreementError) for error in found), found
    assert len({str(error) for error in found}) == 1
    assert all(error.exit_code == 2 for error in found if isinstance(error, ConfigError))
    return str(found[0])


def test_ranks_that_agree_go_on() -> None:
    assert outcomes([facts(lr=1, layout="dp2")] * 4) == [Agreed()] * 4


def test_a_value_that_differs_is_told_with_both_values_and_who() -> None:
    assert problem([facts(lr=0.001), facts(lr=0.001), facts(lr=1e-05), facts(lr=1e-05)]) == (
        "lr must be the same on every rank, but is 0.001 on rank 0 (h0) and 1e-05 on ranks 2, 3 (h1)"
    )


def test_several_values_are_told_in_one_line() -> None:
    first, other = facts(a=1, b="x", c=None), facts(a=2, b="y", c=[1])
    assert problem([first, other]) == (
        "every rank must be started with the same settings, but rank 1 (h0) is not with those of rank 0 (h0): "
        "a is 2, not 1; b is y, not x; c is [1], not null"
    )


def test_a_page_of_differences_is_cut() -> None:
    names = [f"key{index:02}" for index in range(30)]
    text = problem([facts(**dict.fromkeys(names, 1)), facts(**dict.fromkeys(names, "x" * 1000))])
    assert text.count("key") == 6
    assert text.endswith("; 24 more")
    assert len(text) < 1500


def test_ranks_that_differ_in_different_ways() -> None:
    text = problem([facts(a=1), facts(a=2), facts(a=1), facts(a=3), facts(a=3)])
    assert (
        text
        == "a must be the same on every rank, but is 1 on rank 0 (h0) and 2 on rank 1 (h0); 2 more ranks differ as well"
    )


@pytest.mark.parametrize("value", [2, "1", 1.0, True, [1], None])
def test_what_only_looks_alike_differs(value: object) -> None:
    assert "a must be the same" in problem([facts(a=1), facts(a=value)])


def test_what_is_not_a_number_is_the_same_as_itself() -> None:
    assert outcomes([facts(a=float("nan"), b=1)] * 2) == [Agreed()] * 2
    assert problem([facts(a=float("nan"), b=1), facts(a=float("nan"), b=2)]).startswith("b must be")


def test_a_name_that_only_one_rank_knows() -> None:
    assert "b must be the same on every rank, but is null on rank 0 (h0) and 1" in problem(
        [facts(a=1), facts(a=1, b=1)]
    )


def test_rank_0_decides_what_was_written_alike() -> None:
    written = "runs/${now:%S}"
    said = [{"run_dir": Fact(f"/runs/{second}", written), "lr": Fact(1, 1)} for second in (1, 2, 2, 1)]
    found = outcomes(said)
    assert found[1:] == [Agreed({"run_dir": "/runs/1"}), Agreed({"run_dir": "/runs/1"}), Agreed()]
    assert found[0] == Agreed(notes=("run_dir is rank 0's, /runs/1: ranks 1, 2 (h0, h1) would have taken /runs/2",))


def test_what_nobody_wrote_is_not_decided_by_rank_0() -> None:
    assert "torch must be the same on every rank" in problem([{"torch": Fact("2.1")}, {"torch": Fact("2.2")}])


def test_only_the_cause_is_told_where_other_values_follow_from_it() -> None:
    said = [{"name": Fact(name, name), "run_dir": Fact(f"runs/{name}", "runs/${name}")} for name in ("a", "b")]
    assert problem(said) == "name must be the same on every rank, but is a on rank 0 (h0) and b on rank 1 (h0)"


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_a_rank_that_cannot_take_part_ends_all(refused: int) -> None:
    said: list[Facts | Refusal] = [facts(a=1)] * 3
    said[refused] = Refusal.of(ConfigError("there is no key 'b'", hints=["see c"]))
    found = outcomes(said)
    told = "there is no key 'b'" if refused == 0 else f"rank {refused} (h{refused // 2}): there is no key 'b'"
    assert {str(error) for error in found} == {told}
    assert all(isinstance(error, DisagreementError) and error.hints == ("see c",) for error in found)


def test_ranks_that_are_refused_alike_are_told_once() -> None:
    wrong = Refusal.of(ConfigError(["a is wrong", "b is wrong"]))
    found = outcomes([wrong] * 5)
    assert {str(error) for error in found} == {"a is wrong\nb is wrong"}
    assert "ranks 1-4 (h0, h1, h2): a is wrong" in str(outcomes([facts(a=1), *[wrong] * 4])[2])


@pytest.mark.parametrize(("error", "code"), [(DataError("x"), 2), (PeerLostError("x"), 7), (KeyError("x"), 1)])
def test_all_end_with_the_code_of_the_one_that_failed(error: Exception, code: int) -> None:
    found = outcomes([facts(a=1), Refusal.of(error)])
    assert [getattr(each, "exit_code", None) for each in found] == [code, code]


def test_a_difference_is_told_before_everybody_is_there() -> None:
    members = [Member(rank, 8, "h", rank) for rank in range(2)]
    started = time.monotonic()
    assert "a must be the same" in problem([facts(a=1), facts(a=2)], members=members)
    assert time.monotonic() - started < muster.SETTLE_S + 5


def test_those_who_do_not_come_are_named() -> None:
    members = [Member(rank, 9, "h", rank) for rank in (0, 1, 4)]
    found = outcomes([facts(a=1)] * 3, members=members, limit_s=0.2)
    assert str(found[0]) == f"{GIVEN_UP}ranks 2, 3, 5-8 of 9 to join"
    assert str(found[1]) == f"{GIVEN_UP}all other ranks to join"


def test_without_rank_0_the_others_say_so() -> None:
    assert str(outcomes([facts(a=1)], members=[Member(1, 2, "h", 5)], limit_s=0.1)[0]) == (
        f"{GIVEN_UP}rank 0 to say what it trains"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_of_one_rank(rank: int) -> None:
    members = [Member(0, 3, "a", 10), Member(1, 3, "a", 11), Member(rank, 3, "b", 12)]
    assert problem([facts(a=1)] * 3, members=members) == (
        f"every rank must be one process, but two say that they are rank {rank}: process {10 + rank} on a and process "
        "12 on b"
    )


def test_one_that_comes_to_a_run_that_has_begun_disturbs_only_itself() -> None:
    store = FakeStore()
    members = [Member(0, 2, "a", 10), Member(1, 2, "a", 11)]
    assert outcomes([facts(a=1)] * 2, store, members) == [Agreed(), Agreed()]
    for rank in (0, 1):
        (found,) = outcomes([facts(a=2)], store, [Member(rank, 2, "b", 12)])
        assert isinstance(found, LonelyError)
        assert f"rank {rank} of the run that meets here is process {10 + rank} on a already" in str(found)


def test_worlds_of_different_sizes() -> None:
    members = [Member(0, 2, "a", 10), Member(2, 3, "b", 12)]
    said = [facts(size=2), facts(size=3)]
    assert problem(said, members=members) == (
        "size must be the same on every rank, but is 2 on rank 0 (a) and 3 on rank 2 (b)"
    )


def test_a_large_world_costs_each_rank_a_few_requests_and_one_digest() -> None:
    store, size = FakeStore(), 200
    said: Mapping[str, Fact] = facts(**{f"key{index}": index for index in range(150)})
    assert outcomes([said] * size, store) == [Agreed()] * size
    assert store.calls["get facts"] == 0
    assert store.calls["get digest"] == store.calls["get verdict"] == size - 1
    assert store.calls["set"] <= size + 5
    assert store.calls["add"] <= 3 * size + 5


def test_ranks_are_named_briefly() -> None:
    assert muster._named([5]) == "rank 5"
    assert muster._named([2, 0, 1, 5, 6, 9]) == "ranks 0-2, 5, 6, 9"
    assert muster._named(range(0, 100, 2)) == "ranks 0, 2, 4, 6, 8, 10 and more"
