"""How pytest-xdist shares out the tests of this project between two processes."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

RANKS = ("tests/dist/", "tests/e2e/")
"""Folders of tests that start ranks, which keep both cores busy: one after the other, beside all other tests."""
WAITING = ("tests/chaos/", "tests/launch/")
"""Folders of tests that start ranks, and wait more than they compute: last of all, two files at once."""
_RANKS = "ranks"
_AHEAD = 2
"""A process runs a test once it knows the next one; with fewer than these it is given more."""


class TwoSides(LoadScopeScheduling):  # type: ignore[misc]
    """One process runs the tests of `RANKS`, the other one all other files; both end with `WAITING`.

    When a process dies, its test has failed, and another process goes on with the rest. As pytest-xdist 3.8 has it the
    dead one's finished files would be shared out again: a process that gets one of those has no test whose end would
    make it ask for more, and the session would wait for ever.
    """

    def remove_node(self, node: object) -> str | None:
        """Give back what a process had left to do; return the test in which it died, if it died in one."""
        left = {scope: tests for scope, tests in self.assigned_work.pop(node).items() if not all(tests.values())}
        if not left:
            return None
        scope = next(iter(left))
        died_in: str = next(name for name, is_done in left[scope].items() if not is_done)
        # It counts as failed; run again it might end the next process too.
        left[scope][died_in] = True
        self.workqueue.update({scope: tests for scope, tests in left.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return died_in

    def _split_scope(self, nodeid: str) -> str:
        return _RANKS if nodeid.startswith(RANKS) else nodeid.partition("::")[0]

    def _reschedule(self, node: object) -> None:
        if node not in self.registered_collections:
            # It was just started in a dead one's place.
            return
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) <= _AHEAD:  # type: ignore[attr-defined]
            super()._reschedule(node)

    def _assign_work_unit(self, node: object) -> None:
        if _RANKS in self.workqueue:
            self.workqueue.move_to_end(_RANKS, last=False)
        for scope in [one for one in self.workqueue if one.startswith(WAITING)]:
            self.workqueue.move_to_end(scope)
        super()._assign_work_unit(node)
