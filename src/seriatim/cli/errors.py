"""An error with an exit status of its own."""

from seriatim.core.errors import SeriatimError

__all__ = ["DIVERGED", "INTERRUPTED", "MISTAKE", "READER_GONE", "CommandError"]

MISTAKE = 2  # what was asked for cannot be done as asked
DIVERGED = 3  # the loss is not finite
INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 + SIGINT
READER_GONE = 141  # 128 + SIGPIPE


class CommandError(SeriatimError):
    """One line for the person, and a status for the script, where that is not MISTAKE."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
