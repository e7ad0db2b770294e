"""Python looks for garbage among its objects: seldom at first, then as often as ever. No torch.

While a process starts, nearly all new objects are modules, which stay. Looking through them again and again takes a
quarter of the time in which torch and DeepSpeed are imported; and as long as they are looked through later, a step in
which Python does so takes a tenth of a second more.
"""

from __future__ import annotations

import atexit
import gc

_OWN = gc.get_threshold()
_SELDOM = (50_000, 20, 100)


def look_seldom() -> None:
    """Look for garbage seldom: the process starts."""
    gc.set_threshold(*_SELDOM)


def look_as_usual() -> None:
    """Look for garbage as often as Python does, and never again among what is there by now: the process has started."""
    gc.freeze()
    # Libraries tell of objects that are still there at the end.
    atexit.register(gc.unfreeze)
    gc.set_threshold(*_OWN)
