import subprocess
from pathlib import Path

import pytest
from command_line import COMMAND, ENVIRONMENT, SMALL, Result

from seriatim.cli import main


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


@pytest.fixture(scope="session")
def process():
    """Starts the command as a process of its own."""

    def start(*arguments, **options):
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.Popen(command, env=ENVIRONMENT, text=True, encoding="utf-8", **options)

    return start


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A small text file."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"line {i}: the square is {i * i}, the cube is {i**3}\n" for i in range(150)))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, text) -> Path:
    """A run of 6 steps with checkpoints at 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    steps = ["--train.steps", "6", "--train.checkpoint_every", "2", "--train.log_every", "1"]
    assert main(["train", "--data", str(text), "--out", str(folder), *SMALL, *steps]) == 0
    return folder
