"""What a person sees while a benchmark runs: a line for each row done, and on a terminal a bar. All on stderr."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from seriatim.cli.bench.measure import Row
from seriatim.cli.bench.work import Work

__all__ = ["Display"]


class Display:
    """A context manager around the rows."""

    def __init__(self, rows: int):
        self._console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task("", total=rows)

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, work: Work) -> None:
        """This row is being measured."""
        self._progress.update(self._task, description=str(work))

    def done(self, row: Row) -> None:
        """It was."""
        self._progress.advance(self._task)
        result = f"{row.status}: {row.reason}"
        if row.timing is not None:
            milliseconds = [1e3 * side.median for side in (row.timing.ours, row.timing.peer)]
            result = f"{milliseconds[0]:.3g} ms, theirs {milliseconds[1]:.3g} ms, {row.timing.ratio.median:.2f}x"
        for line in (f"{row.work}: {result}", *row.warnings):
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
