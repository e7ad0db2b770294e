"""The command line: it finds the verb, and prints a fault as a person should see it. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from trainer import __version__, interruption
from trainer.errors import Interrupted, TridentError
from trainer.log import report_error, say, tell
from trainer.verbs.table import NAMES, find_verb, named_verb

HELP = ("--help", "-h")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without `argv`, as this process's own command, which then ends."""
    if argv is None:
        interruption.leave(_run_listening(sys.argv[1:]))
    return _run(list(argv))


def _run_listening(arguments: list[str]) -> int:
    try:
        interruption.listen()
        return _run(arguments)
    except Interrupted as stop:
        # A signal may come between the first moment of listening and the first of the command.
        _end_as_asked(stop)


def _end_as_asked(stop: Interrupted) -> NoReturn:
    interruption.tell_end(stop.name)
    interruption.end(stop.exit_code)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["--complete"]:
        # A shell asks while a person types; the words are not a command yet.
        from trainer.verbs.complete import answer

        for line in answer(arguments[1], arguments[2:]):
            tell(line)
        return 0
    if any(word.startswith("--local") for word in arguments):
        from trainer.config.compose import without_local_rank

        arguments = without_local_rank(arguments)
    try:
        return _dispatch(arguments)
    except TridentError as error:
        report_error(error)
        return error.exit_code
    except Interrupted as stop:
        _end_as_asked(stop)
    except KeyboardInterrupt:
        return interruption.INTERRUPTED


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].partition("=")[0] in (*HELP, "help"):
        from trainer.verbs.usage import overview

        if topics := _topics(arguments):
            return _explain(topics)
        say(overview([find_verb(name) for name in NAMES]))
        return 0
    if arguments[0] == "--version":
        say(__version__)
        return 0
    option, _, value = arguments[0].partition("=")
    if option in ("--install-completion", "--show-completion"):
        from trainer.verbs.shells import asked_shell, install, script

        shell = asked_shell([*([value] if value else []), *arguments[1:]], option)
        install(shell) if option == "--install-completion" else say(script(shell).rstrip())
        return 0
    name, rest = named_verb(arguments)
    verb = find_verb(name)
    if any(word.partition("=")[0] in HELP for word in rest):
        from trainer.verbs.usage import usage

        if topics := _topics(rest):
            if not verb.takes_settings:
                from trainer.verbs.usage import word_explained

                say("\n\n".join(word_explained(verb, word) for word in topics))
                return 0
            return _explain(topics)
        say(usage(verb))
        return 0
    from trainer.verbs.parse import parse

    return verb.run(parse(verb, rest))


def _topics(words: Sequence[str]) -> list[str]:
    """Return the words after `--help`: keys and groups to be explained."""
    place = next((place for place, word in enumerate(words) if word.partition("=")[0] in (*HELP, "help")), None)
    if place is None:
        return []
    value = words[place].partition("=")[2]
    if value:
        return [value]
    from trainer.config.arguments import is_setting

    # An option of the verb is explained by the verb's own help.
    return [word for word in words[place + 1 :] if not word.startswith("-") or is_setting(word)]


def _explain(topics: Sequence[str]) -> int:
    from trainer.verbs.topics import topic

    say("\n\n".join(map(topic, topics)))
    return 0
