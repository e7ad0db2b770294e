"""Numbers of the verbs about data."""

from __future__ import annotations

import pytest

from trainer.errors import ConfigError
from trainer.verbs.data_audit import VERB as AUDIT
from trainer.verbs.data_inspect import VERB as INSPECT
from trainer.verbs.parse import Words


@pytest.mark.parametrize("number", ["x", "9" * 5000])
def test_a_number_that_cannot_be_read_is_refused(number: str) -> None:
    with pytest.raises(ConfigError, match="--step must be a whole number"):
        AUDIT.run(Words({"--step": (number,)}, ("runs/a",)))
    with pytest.raises(ConfigError, match="--documents must be a whole number"):
        INSPECT.run(Words({"--documents": (number,)}, ("corpus",)))
