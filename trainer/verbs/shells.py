"""Completion for a shell: the function that asks `trident`, and the file in which the shell finds it. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from trainer.config.keys import did_you_mean
from trainer.errors import ConfigError
from trainer.files import write_atomically
from trainer.log import say

SHELLS = ("bash", "zsh", "fish")
BEGIN, END = "# >>> trident completion >>>", "# <<< trident completion <<<"


def script(shell: str) -> str:
    """Return the text that makes a shell complete `trident`."""
    return (files("trainer.verbs") / f"completion.{shell}").read_text(encoding="utf-8")


def asked_shell(words: Sequence[str], option: str) -> str:
    """Return the shell that is named after an option, or else the one that is running.

    Raises:
        ConfigError: the words name none, or no known shell is found.
    """
    if len(words) > 1:
        raise ConfigError(f"{option} must be followed by one shell, but is by {' '.join(words)}")
    if words:
        if words[0] not in SHELLS:
            known = ", ".join(SHELLS)
            raise ConfigError(f"{option} must name one of {known}, but is '{words[0]}'{did_you_mean(words[0], SHELLS)}")
        return words[0]
    running = running_shell(os.environ)
    if running is None:
        raise ConfigError(
            f"{option} must name a shell, since none of {', '.join(SHELLS)} is running here; "
            f"write for example {option} bash"
        )
    return running


def running_shell(environ: Mapping[str, str]) -> str | None:
    """Return the shell that this process was started from, or else the user's own."""
    import psutil

    try:
        names = [process.name() for process in psutil.Process().parents()]
    except psutil.Error:
        names = []
    names = [name.removeprefix("-") for name in (*names, os.path.basename(environ.get("SHELL", "")))]
    return next((name for name in names if name in SHELLS), None)


def install(shell: str) -> None:
    """Write the files that the shell needs and say what was done; nothing is written twice.

    Raises:
        ConfigError: there is no home folder, or the shell's start file cannot be read as one.
        StorageError: a file cannot be written.
    """
    file = _script_file(shell)
    start = _start_file(shell)
    # Both files are looked at before either is written.
    text = _with_block(start, _block(shell, file)) if start is not None else None
    _write(file, script(shell).encode(), "the completion")
    if start is not None and text is not None:
        _write(start, text, f"a marked block that reads {file}")
    say(f"completion works in every {shell} that is started from now on")


def _home(variable: str, below: str) -> Path:
    """Return a folder of the user: that of a variable, or one below the home folder."""
    named = os.environ.get(variable, "")
    if named.startswith("/"):
        return Path(named)
    home = os.environ.get("HOME", "")
    if not home.startswith("/"):
        raise ConfigError(f"HOME must be the user's home folder, but is '{home}'; set HOME")
    return Path(home, below)


def _script_file(shell: str) -> Path:
    if shell == "fish":
        return _home("XDG_CONFIG_HOME", ".config") / "fish" / "completions" / "trident.fish"
    data = _home("XDG_DATA_HOME", ".local/share")
    if shell == "zsh":
        return data / "zsh" / "site-functions" / "_trident"
    return data / "bash-completion" / "completions" / "trident"


def _start_file(shell: str) -> Path | None:
    """Return the file that the shell reads at its start, or None for fish, which needs none."""
    if shell == "fish":
        return None
    return _home("ZDOTDIR", "") / ".zshrc" if shell == "zsh" else _home("", "") / ".bashrc"


def _block(shell: str, file: Path) -> str:
    name = "'" + str(file).replace("'", "'\\''") + "'"
    lines = [f"[[ -r {name} ]] && source {name}"]
    if shell == "zsh":
        lines = [
            f"if [[ -r {name} ]]; then",
            "    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }",
            f"    source {name}",
            "fi",
        ]
    return "\n".join([BEGIN, *lines, END]) + "\n"


def _with_block(start: Path, block: str) -> bytes:
    """Return the text of a start file with the block in it, in place of an older one.

    Raises:
        ConfigError: the file cannot be read, or holds half a block.
    """
    try:
        text = start.read_bytes() if os.path.lexists(start) else b""
    except OSError as error:
        raise ConfigError(
            f"{start} must be a file that can be read, but: {error.strerror}; nothing was written",
            hints=["`trident --show-completion` prints what to put there"],
        ) from error
    begin, end, new = BEGIN.encode(), END.encode() + b"\n", block.encode()
    if text.count(begin) == 0 and text.count(END.encode()) == 0:
        separator = b"" if not text or text.endswith(b"\n") else b"\n"
        return text + separator + new
    text = text if text.endswith(b"\n") else text + b"\n"
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if text.count(begin) != 1 or text.count(end) != 1 or not found:
        raise ConfigError(
            f"{start} must hold one block from '{BEGIN}' to '{END}', or none, but holds another number of these lines; "
            "remove them",
        )
    return head + new + tail


def _write(path: Path, content: bytes, what: str) -> None:
    # People keep their start files behind links, so the file behind the link is written.
    target = path.resolve()
    try:
        before, mode = target.read_bytes(), target.stat().st_mode & 0o7777
    except OSError:
        before, mode = None, None
    if before == content:
        say(f"{path} has {what} already")
        return
    write_atomically(target, content, key="HOME")
    if mode is not None:
        target.chmod(mode)
    say(f"{'wrote' if before is None else 'changed'} {path}: {what}")
