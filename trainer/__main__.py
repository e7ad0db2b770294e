"""`python -m trainer` is `trident`."""

import os
import signal


def _end(number: int, _frame: object) -> None:
    # 130: ended by Ctrl-C; 75: asked to stop, run the same command again.
    os._exit(130 if number == signal.SIGINT else 75)


def main() -> None:
    """Run the command line of this process. A signal ends it also while the command line itself is imported."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    from trainer.garbage import look_seldom

    look_seldom()
    from trainer.cli import main as run

    run()


if __name__ == "__main__":
    main()
