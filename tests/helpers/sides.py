"""How pytest-xdist shares out the tests of this project between processes: each of them works on one side."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

RANKS, ALL_OTHERS, WAITING = "tests that start ranks", "all other tests", "tests that wait"
SIDES = (RANKS, ALL_OTHERS, WAITING)
"""In the order in which processes take them up. Several that compute would only take the two cores from each other."""
FOLDERS = {
    **dict.fromkeys(("tests/e2e/", "tests/dist/"), RANKS),
    # They start ranks too, but wait more than they compute: for losses to be noticed, for processes to end.
    **dict.fromkeys(("tests/chaos/", "tests/launch/"), WAITING),
}
"""Folder of tests -> its side; a side begins with the folder whose files take longest."""
TOGETHER = ("tests/chaos/",)
"""Folders whose files share what takes long to make, so that one process runs them all."""
_AHEAD = 2
"""A process runs a test once it knows the next one; with fewer than these it is given more."""


def side_of(scope: str) -> str:
    """Return the side of a file or folder of tests."""
    return next((side for folder, side in FOLDERS.items() if scope.startswith(folder)), ALL_OTHERS)


class Sides(LoadScopeScheduling):  # type: ignore[misc]
    """A process goes on with its side; then it takes up one that nobody works on; then it helps, file by file.

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
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])

    def _reschedule(self, node: object) -> None:
        if node not in self.registered_collections:
            # It was just started in a dead one's place.
            return
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) <= _AHEAD:  # type: ignore[attr-defined]
            super()._reschedule(node)

    def _assign_work_unit(self, node: object) -> None:
        self.workqueue.move_to_end(self._next_for(node), last=False)
        super()._assign_work_unit(node)

    def _next_for(self, node: object) -> str:
        """Return the file or folder that a process is given next."""
        at_work = {one: side_of(next(reversed(units))) for one, units in self.assigned_work.items() if units}
        own = at_work.pop(node, None)
        order = [*([own] if own else []), *(side for side in SIDES if side not in at_work.values()), *reversed(SIDES)]
        folders = list(FOLDERS)

        def rank(scope: str) -> tuple[int, int]:
            folder = next((index for index, one in enumerate(folders) if scope.startswith(one)), 0)
            return order.index(side_of(scope)), folder

        # The first of those that are alike.
        first: str = min(self.workqueue, key=rank)
        return first
