"""What the shell scripts ask about a run before it starts and after it ended. Loads no torch.

usage: facts.py gpus                          GPUs that this process may use
       facts.py folder RANKS [key=value ...]  check the config for so many ranks, and print the run's folder
       facts.py finished [key=value ...]      exit 0 if the run in that folder has done all its steps, else 1
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from trainer.config.compose import compose
from trainer.config.validate import validate
from trainer.errors import TridentError
from trainer.launcher.environment import gpu_count
from trainer.log import report_error, say
from trainer.run_folder import RunFolder


def folder(ranks: int, arguments: list[str]) -> Path:
    """Return the run's folder.

    Raises:
        ConfigError: the config is wrong for this number of ranks.
    """
    config = compose(arguments)
    validate(config, ranks)
    return RunFolder.of(config).path


def finished(arguments: list[str]) -> bool:
    """Return whether the run has done all its steps."""
    config = compose(arguments)
    try:
        summary = json.loads((RunFolder.of(config).path / "summary.json").read_text(encoding="utf-8"))
        return summary["status"] == "finished" and int(summary["step"]) >= config.train.steps
    except (OSError, ValueError, KeyError):
        return False


def main(question: str, *arguments: str) -> int:
    """Answer one question on stdout."""
    try:
        if question == "gpus":
            say(str(gpu_count(os.environ)))
        elif question == "folder":
            say(str(folder(int(arguments[0]), list(arguments[1:]))))
        else:
            return 0 if finished(list(arguments)) else 1
    except TridentError as error:
        report_error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
