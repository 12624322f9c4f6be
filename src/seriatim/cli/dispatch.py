"""Finds the subcommand, runs it, and turns what can go wrong into one line and an exit status.

Status 0: done. 1, with a traceback: a bug. 2: a mistake in what was asked for. 3: the loss is not finite. 130: Ctrl-C.
141: whoever read the output went away.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from seriatim.cli.commands import COMMANDS, Command
from seriatim.cli.errors import INTERRUPTED, MISTAKE, READER_GONE, CommandError
from seriatim.core.errors import SeriatimError, nearest

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `seriatim` with these arguments (the process's own by default) and returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        _never_fail_on_a_character(stream)
    try:
        status = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except SeriatimError as error:
        return _say(error, error.status if isinstance(error, CommandError) else MISTAKE)
    except KeyboardInterrupt as error:
        return _say(str(error) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return READER_GONE
    return status


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from seriatim import __version__

        print(f"seriatim {__version__}")
        return 0
    command = _find(arguments[0])
    module = import_module(command.module)

    from seriatim.cli.parsing import Parser

    parser = Parser(command.name, module.__doc__ or command.help, arguments[1:])
    module.add_arguments(parser)
    try:
        options = parser.parse()
    except SystemExit as done:  # --help and --print_config have printed what they were asked for
        return int(done.code or 0)
    return module.run(options)


def _find(name: str) -> Command:
    commands = {command.name: command for command in COMMANDS}
    if name not in commands:
        kind = "option" if name.startswith("-") else "command"
        raise SeriatimError(f"no {kind} is named {name!r}; the commands are {', '.join(nearest(name, commands))}")
    return commands[name]


def _overview() -> str:
    lines = [f"  {command.name:<10}{command.help}" for command in COMMANDS]
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
    sys.stdout.flush()
    print(f"seriatim: {'' if status == INTERRUPTED else 'error: '}{' '.join(str(message).split())}", file=sys.stderr)
    return status


def _never_fail_on_a_character(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
