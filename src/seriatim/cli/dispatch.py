"""Finds the subcommand, runs it, and turns what can go wrong into one line and an exit status.

Status 0: done. 1, with a traceback: a bug. 2: a mistake in what was asked for. 3: the loss is not finite. 130: Ctrl-C.
141: whoever read the output went away.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TextIO

from seriatim.cli.commands import COMMANDS, Command
from seriatim.cli.errors import INTERRUPTED, MISTAKE, READER_GONE, CommandError
from seriatim.core.errors import SeriatimError, nearest

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `seriatim` with these arguments (the process's own by default) and returns the exit status."""
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on_a_character(stream)
    try:
        status = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except SeriatimError as error:
        return _say(error, error.status if isinstance(error, CommandError) else MISTAKE)
    except KeyboardInterrupt as error:
        return _say(str(error) or "interrupted", INTERRUPTED)
    except (BrokenPipeError, SystemExit):  # rich makes the second of the first
        _silence_broken_streams()
        return READER_GONE
    except OSError as error:  # a full disk, a name too long, a folder that went away
        return _say(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", MISTAKE)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "")
        return _say(f"not enough memory; give a smaller model, batch or window ({reason})", MISTAKE)
    return status


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from seriatim import __version__

        print(f"seriatim {__version__}")
        return 0
    command = _find(arguments)
    module = import_module(command.module)

    from seriatim.cli.parsing import Parser

    parser = Parser(command.name, module.__doc__ or command.help, arguments[len(command.name.split()) :])
    module.add_arguments(parser)
    try:
        options = parser.parse()
    except SystemExit as done:  # --help and --print_config have printed what they were asked for
        return int(done.code or 0)
    return module.run(options)


def _find(arguments: Sequence[str]) -> Command:
    commands = {command.name: command for command in COMMANDS}
    name, pair = arguments[0], " ".join(arguments[:2])
    if pair in commands:
        return commands[pair]
    if name not in commands:
        kind = "option" if name.startswith("-") else "command"
        raise SeriatimError(f"no {kind} is named {name!r}; the commands are {', '.join(nearest(name, commands))}")
    return commands[name]


def _overview() -> str:
    lines = [f"  {command.name:<12}{command.help}" for command in COMMANDS]
    return "\n".join(
        [
            "usage: seriatim COMMAND [options]",
            "",
            "Sequence models on one contract, trained in parallel and streamed in constant memory.",
            "",
            *lines,
            "",
            "seriatim COMMAND --help explains a command; seriatim --version prints the version.",
            "Exit status: 0 done, 2 a mistake in what was asked for, 3 the loss is not finite, 130 Ctrl-C.",
        ]
    )


def _say(message: object, status: int) -> int:
    """One line on stderr, whatever the message holds."""
    _silence_broken_streams()
    with suppress(OSError):
        line = " ".join(str(message).split())
        print(f"seriatim: {'' if status == INTERRUPTED else 'error: '}{line}", file=sys.stderr)
    _silence_broken_streams()
    return status


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class of its own on a GPU, and only a RuntimeError on a CPU."""
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("can't allocate memory", "out of memory")
    )


def _replace_closed_streams() -> None:
    """Python has None for a stream that was closed when it began (`>&-`)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)


def _silence_broken_streams() -> None:
    """Flushes; a stream that takes nothing more is put to sleep, or Python complains when it flushes at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _never_fail_on_a_character(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
