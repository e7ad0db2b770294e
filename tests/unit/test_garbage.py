"""Python looks for garbage seldom while a process starts, and as usual afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.house.checks import ROOT

PROGRAM = """
import gc, json, sys
own = gc.get_threshold()
from trainer import garbage
garbage.look_seldom()
seldom = gc.get_threshold()
import json.tool
kept = gc.get_freeze_count()
garbage.look_as_usual()
print(json.dumps([own, seldom, gc.get_threshold(), kept, gc.get_freeze_count(), gc.isenabled()]))
"""


def test_it_looks_seldom_at_first_and_then_as_often_as_ever() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    own, seldom, after, kept, frozen, is_on = json.loads(ended.stdout)
    assert seldom[0] > 10 * own[0]
    assert after == own
    assert kept == 0
    assert frozen > 1000
    assert is_on
