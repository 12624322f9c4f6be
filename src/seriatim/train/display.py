"""What a person sees while a run trains: a bar with loss, tokens per second and time left, or plain lines in a pipe."""

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "Display", "Lines", "Silent", "choose_display"]


class Display(Protocol):
    """Shows a run. It is a context manager."""

    def __enter__(self) -> "Display": ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, share: float, record: dict[str, float]) -> None:
        """After a line of the log: how much of the run is done, 0 to 1, and that line."""

    def say(self, line: str) -> None:
        """A line that is worth reading."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def update(self, share: float, record: dict[str, float]) -> None:
        pass

    def say(self, line: str) -> None:
        pass


class Lines(Silent):
    """A plain line for each line of the log."""

    def __init__(self, console: Console):
        self._console = console

    def update(self, share: float, record: dict[str, float]) -> None:
        self.say(f"step {record['step']}  {_figures(record)}  {_time_left(share, record['seconds'])} left")

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bar(Silent):
    """A bar that stays in place; evaluations leave a line above it."""

    def __init__(self, console: Console):
        columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self._progress = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=console)
        self._task = self._progress.add_task("", total=1.0, step=0, figures="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, share: float, record: dict[str, float]) -> None:
        self._progress.update(self._task, completed=share, step=record["step"], figures=_figures(record))
        if any(name.startswith("validation_") for name in record):
            self.say(f"step {record['step']}  {_figures(record)}")

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def choose_display(name: str = "auto") -> Display:
    """ "bar", "lines" or "silent"; "auto" is the bar on a terminal and lines elsewhere. All write to stderr."""
    console = Console(stderr=True)
    if name == "auto":
        name = "bar" if console.is_terminal else "lines"
    return {"bar": Bar, "lines": Lines}[name](console) if name != "silent" else Silent()


def _figures(record: dict[str, float]) -> str:
    shown = [f"loss {record['loss']:.4f}", f"{record['tokens_per_second']:,.0f} tokens/s"]
    shown += [
        f"{name.replace('_', ' ')} {value:.4f}" for name, value in record.items() if name.startswith("validation_")
    ]
    return "  ".join(shown)


def _time_left(share: float, seconds: float) -> str:
    left = round(seconds / share - seconds) if share > 0 else 0
    return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
