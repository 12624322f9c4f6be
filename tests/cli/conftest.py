from typing import NamedTuple

import pytest

from seriatim.cli import main


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def seriatim(capsys):
    """Runs the command inside this process."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def refused(seriatim):
    """Runs the command, which must say one line that holds `message` and return 2 (or another status)."""

    def run(message, *arguments, status=2):
        result = seriatim(*arguments)
        assert result.err.startswith("seriatim: error: "), result.err
        assert message in result.err
        assert result.err.count("\n") == 1
        assert result.status == status
        return result

    return run
