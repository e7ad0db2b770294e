from __future__ import annotations

import pytest

from tests.helpers.thread_group import run_ranks
from trainer.errors import ConfigError, TridentError
from trainer.evaluation.leading import Lead
from trainer.topology.groups import Group


def test_all_do_what_the_first_one_asks_for() -> None:
    done: dict[int, list[object]] = {0: [], 1: [], 2: []}

    def body(group: Group) -> object:
        def work(job: object) -> int:
            done[group.rank].append(job)
            return len(done[group.rank])

        lead = Lead(group, work)
        return lead.run(lambda: [lead.ask("one"), lead.ask("two")])

    assert run_ranks(3, body) == [[1, 2], None, None]
    assert done == {rank: ["one", "two"] for rank in range(3)}


@pytest.mark.parametrize("error", [ConfigError("it must not be"), KeyError("x")])
def test_a_failure_of_the_first_one_is_everyones(error: Exception) -> None:
    def body(group: Group) -> Exception:
        lead = Lead(group, lambda job: None)

        def fail() -> None:
            lead.ask("one")
            raise error

        with pytest.raises((TridentError, KeyError)) as caught:
            lead.run(fail)
        return caught.value

    first, *others = run_ranks(3, body)
    assert first is error
    expected = ["it must not be"] if isinstance(error, ConfigError) else ["rank 0 failed: KeyError: 'x'"]
    assert [str(one) for one in others] == expected * 2
