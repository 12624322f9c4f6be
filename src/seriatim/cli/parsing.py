"""A parser of flags and YAML whose help is short and whose errors are one line."""

import argparse
import re
import shutil
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from seriatim.core.errors import SeriatimError, nearest

__all__ = ["Parser"]


class Help(argparse.HelpFormatter):
    """One line an option where it fits, with its default."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=min(120, shutil.get_terminal_size((110, 40)).columns))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").replace("%", "%%")
        quiet = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        silent = quiet or action.nargs == 0 or not action.option_strings
        return text if silent else f"{text} (default: {str(action.default).replace('%', '%%')})"


class Parser(ArgumentParser):
    """jsonargparse with SeriatimError, one line, in place of its usage dump and exit.

    Attributes:
        given: what was typed after the subcommand's name, for those whose defaults depend on it.
        signatures: what to show for an unknown option of a group, by the group's prefix such as "--model.".
    """

    def __init__(self, command: str = "", description: str = "", given: Sequence[str] = (), **options: Any):
        options = {"prog": f"seriatim {command}", "formatter_class": Help, "allow_abbrev": False, **options}
        super().__init__(description=description, **options)
        self.given = list(given)
        self.signatures: dict[str, str] = {}

    def flags(self) -> list[str]:
        """Every --option there is."""
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        return [name for action in shown for name in action.option_strings if name.startswith("--")]

    def format_help(self, *arguments: Any, **options: Any) -> str:
        """The help under a usage line that names only what must be given."""
        positional = [
            f"[{action.dest}]" if action.nargs == "?" else str(action.metavar)
            for action in self._actions
            if not action.option_strings
        ]
        for action in self._actions:
            if "--print_config" in action.option_strings:
                action.help = "print the configuration that these options make, as YAML, and exit"
        self.usage = " ".join([self.prog, *positional, "[options]"])
        return super().format_help(*arguments, **options)

    def parse(self) -> Any:
        """The options given, each group with names of its own. Raises SeriatimError, one line."""
        try:
            options = self.parse_args(self.given)
        except UnicodeDecodeError as error:
            raise SeriatimError(f"the configuration is not a text file: {error}") from error
        for group in {flag[2:].split(".")[0] for flag in self.flags() if "." in flag}:
            if not isinstance(options[group], Namespace):
                raise SeriatimError(
                    f"{group} is {options[group]!r}; it must have options under it, such as {self._example(group)}"
                )
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SeriatimError(f"{self._explain(' '.join(message.split()))} ({self.prog} --help)")

    def _explain(self, message: str) -> str:
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            return self._unknown(found[1])
        if found := re.match(r"Option '(.+?)' is not accepted", message):
            return self._unknown(f"--{found[1]}")
        if found := re.match(r"Parser key \"(.+?)\"(?: element \d+)?: (.*)", message):
            return f"{self._shown(found[1])}{_wrong_value(found[2])}"
        if found := re.match(r"the following arguments are required: (.*)", message):
            return f"{found[1].upper()} is not given"
        if found := re.match(r"argument (--\S+): expected one argument", message):
            return f"{message}; one that begins with a dash is written {found[1]}=-TEXT"
        return message

    def _shown(self, key: str) -> str:
        """What the help calls it: a flag, or of what has no flag its name in capitals."""
        action = next((action for action in self._actions if action.dest == key), None)
        return f"--{key}" if action is None else [str(action.metavar or key), *action.option_strings][-1]

    def _example(self, group: str) -> str:
        return next(flag for flag in self.flags() if flag.startswith(f"--{group}."))[2:]

    def _unknown(self, name: str) -> str:
        name = name.partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {name!r}"
        for prefix, signature in self.signatures.items():
            if name.startswith(prefix):
                return f"there is no option {name.removeprefix(prefix)!r}; the signature is {signature}"
        close = nearest(name, self.flags())[:3]
        return f"no option is named {name}; the nearest are {', '.join(close)}"


def _wrong_value(message: str) -> str:
    """What jsonargparse says of a value, without Python's own notation for types."""
    message = (
        re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.Literal", "one of ").replace("NoneType", "null")
    )
    union = r"Does not validate against any of the Union subtypes.*?Subtypes: [\[(](.*?)[\])] .*Given value: (.*)"
    if found := re.match(rf"Expected an? (.*?)\. Got value: (.*)|{union}", message):
        kind, value = found[1] or found[3].replace(", ", " or "), found[2] or found[4]
        return f" is {value!r}; it must be {kind}"
    return f": {message}"
