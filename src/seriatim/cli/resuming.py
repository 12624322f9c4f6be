"""What ends a run before its time, as the command line says it."""

from collections.abc import Iterator
from contextlib import contextmanager

from seriatim.cli.errors import DIVERGED, CommandError

__all__ = ["resumable"]


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Inside this block Ctrl-C names the command that goes on, and a loss that is not finite has its own status."""
    from seriatim.train.loop import TrainingError

    try:
        yield
    except TrainingError as error:
        raise CommandError(str(error), DIVERGED) from error
    except KeyboardInterrupt as interrupted:
        raise KeyboardInterrupt(f"{interrupted}: {command}" if str(interrupted) else "interrupted") from None
