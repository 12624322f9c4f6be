"""The training loop."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seriatim.core import state as states
from seriatim.train import checkpoint, generators
from seriatim.train.display import Display, choose_display
from seriatim.train.hardware import autocast, check_compiler, choose_device
from seriatim.train.interrupt import Interrupt
from seriatim.train.log import JsonLines
from seriatim.train.optimiser import adamw
from seriatim.train.run_folder import RunFolder
from seriatim.train.schedules import learning_rate_share
from seriatim.train.settings import TrainSettings
from seriatim.train.training import Batches, Objective, Progress, Training, TrainingError

__all__ = ["Result", "TrainingError", "fit"]

Evaluation = Callable[[nn.Module], Mapping[str, float]]


class Result(NamedTuple):
    """How a run ended.

    reason: "steps", "minutes" or "patience". checkpoint: the last one, which holds the model as it is now. progress:
    the figures of the run, the last evaluation among them.
    """

    reason: str
    checkpoint: Path
    progress: Progress


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    settings: TrainSettings,
    run: RunFolder,
    evaluation: Evaluation | None = None,
    display: str = "auto",
) -> Result:
    """Trains a model, in place.

    Args:
        model: obeys the contract (`seriatim.core.mixer`).
        objective: (model, batch, state) to (loss, state), the loss a mean over the batch.
        batches: endless; where it says `carries`, the state goes on from each batch to the next, and gradients stop.
        settings: see TrainSettings.
        run: where config, log and checkpoints go. With run.resume it goes on from the newest sound checkpoint, and ends
            with the same weights, bit for bit, as if it had never stopped (same machine, device and number of threads).
        evaluation: model to figures by name; the first is the one to be lowered, by which patience and best go.
        display: "auto", "bar", "lines" or "silent"; to stderr.

    Raises:
        SeriatimError: nothing can be resumed from, the folder cannot be written, the device is not there, or a compiled
            model is asked for on a CPU without a C++ compiler.
        TrainingError: the loss or the gradient is not finite. The weights are left as before that step.
        KeyboardInterrupt: Ctrl-C. A checkpoint was written, and the exception's text says how to go on.
    """
    generators.seed(settings.seed)
    device = choose_device(settings.device)
    if settings.compile:
        check_compiler(device)
    model.to(device)
    training = Training(model, adamw(model, settings), batches)
    with choose_display(display) as shown:
        if run.resume:
            _resume(run, training, shown)
        run.prepare()
        if settings.compile:
            model.compile()
        with Interrupt() as interrupt, JsonLines(run.log_path, training.progress.step) as log:
            return _Loop(training, objective, settings, run, evaluation, device, shown, log).run(interrupt)


class _Loop:
    """The steps of a run, and what happens between them."""

    def __init__(
        self,
        training: Training,
        objective: Objective,
        settings: TrainSettings,
        run: RunFolder,
        evaluation: Evaluation | None,
        device: torch.device,
        display: Display,
        log: JsonLines,
    ):
        self.training, self.objective, self.settings, self.folder = training, objective, settings, run
        self.evaluation, self.device, self.display, self.log = evaluation, device, display, log

    def run(self, interrupt: Interrupt) -> Result:
        progress, settings = self.training.progress, self.settings
        self.training.model.train()
        ended = self._ended()
        while ended is None:
            figures = self._update()
            ended = self._ended()
            evaluate = self.evaluation is not None and (ended or _due(progress.step, settings.evaluate_every))
            if evaluate:
                self._evaluate()
                ended = ended or self._ended()
            if ended or evaluate or _due(progress.step, settings.log_every):
                self._write_log(figures, progress.validation if evaluate else {})
            improved = evaluate and settings.patience and progress.best_step == progress.step
            if ended or improved or interrupt.requested or _due(progress.step, settings.checkpoint_every):
                self._save()
            if interrupt.requested and not ended:
                raise KeyboardInterrupt(
                    f"stopped after step {progress.step}, which is saved in {self.folder.path}; resume to go on"
                )
        return Result(ended, self.folder.step_folder(progress.step), progress)

    def _update(self) -> dict[str, float]:
        """One update of the weights, from `accumulate` batches."""
        training, progress = self.training, self.training.progress
        start = perf_counter()
        rate = self._learning_rate()
        for group in training.optimiser.param_groups:
            group["lr"] = rate
        training.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for _ in range(self.settings.accumulate):
            loss = self._backward(next(training.batches))
            total += loss / self.settings.accumulate
        norm = self._clip()
        training.optimiser.step()
        progress.step += 1
        progress.loss_sum += total
        progress.loss_count += 1
        progress.seconds += perf_counter() - start
        return {"learning_rate": rate, "gradient_norm": norm}

    def _backward(self, batch: Any) -> float:
        training = self.training
        batch = type(batch)(*(None if part is None else part.to(self.device) for part in batch))
        with autocast(self.settings.precision, self.device):
            loss, state = self.objective(training.model, batch, training.state if training.batches.carries else None)
        value = loss.item()
        if not math.isfinite(value):
            raise self._broken(f"the loss is {value}")
        (loss / self.settings.accumulate).backward()
        # A copy in one order of memory, so that a state read from a checkpoint is summed in the same order.
        training.state = states.map_state(_contiguous, state) if training.batches.carries else None
        training.progress.tokens += batch[0].shape[0] * batch[0].shape[1]
        return value

    def _clip(self) -> float:
        """The gradients' norm, which is cut to settings.clip."""
        parameters = [p for group in self.training.optimiser.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip or math.inf).item()
        if not math.isfinite(norm):
            raise self._broken(f"the gradient's norm is {norm}")
        return norm

    def _learning_rate(self) -> float:
        settings, progress = self.settings, self.training.progress
        done = (progress.step + 1) / settings.steps if settings.steps else progress.seconds / (60 * settings.minutes)
        share = learning_rate_share(settings.schedule, done, settings.warmup, settings.final_rate)
        return settings.learning_rate * share

    def _ended(self) -> str | None:
        """Why the run is over, or None."""
        settings, progress = self.settings, self.training.progress
        if settings.steps and progress.step >= settings.steps:
            return "steps"
        if settings.minutes and progress.seconds >= 60 * settings.minutes:
            return "minutes"
        return "patience" if settings.patience and progress.worse >= settings.patience else None

    def _evaluate(self) -> None:
        assert self.evaluation is not None
        progress = self.training.progress
        progress.validation = dict(self.evaluation(self.training.model))  # in float32, as it will be used
        figure = next(iter(progress.validation.values()))
        if math.isfinite(figure) and (progress.best is None or figure < progress.best):
            progress.best, progress.best_step, progress.worse = figure, progress.step, 0
        else:
            progress.worse += 1

    def _write_log(self, figures: dict[str, float], validation: Mapping[str, float]) -> None:
        progress = self.training.progress
        seconds = progress.seconds - progress.logged_seconds
        record = {
            "step": progress.step,
            "loss": progress.loss_sum / progress.loss_count,
            **figures,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            "tokens_per_second": round((progress.tokens - progress.logged_tokens) / seconds, 1),
            **{f"validation_{name}": value for name, value in validation.items()},
        }
        progress.loss_sum, progress.loss_count = 0.0, 0
        progress.logged_tokens, progress.logged_seconds = progress.tokens, progress.seconds
        self.log.write(record)
        self.display.update(self._share(), record)

    def _share(self) -> float:
        """How much of the run is done, 0 to 1."""
        settings, progress = self.settings, self.training.progress
        by_steps = progress.step / settings.steps if settings.steps else 0.0
        by_minutes = progress.seconds / (60 * settings.minutes) if settings.minutes else 0.0
        return min(1.0, max(by_steps, by_minutes))

    def _save(self) -> None:
        progress = self.training.progress
        try:
            checkpoint.save(self.folder.step_folder(progress.step), self.training, self.folder.config)
        except OSError as error:
            raise self._broken(f"the checkpoint cannot be written ({error})", progress.step) from error
        best = progress.best_step if self.settings.patience else None
        self.folder.prune(self.settings.keep, best)

    def _broken(self, what: str, step: int | None = None) -> TrainingError:
        """What to raise; the step is the one under way unless it is given."""
        step = self.training.progress.step + 1 if step is None else step
        kept = self.folder.steps()
        last = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint had been written yet"
        return TrainingError(f"{what} at step {step}; training stopped; {last}")


def _resume(run: RunFolder, training: Training, display: Display) -> None:
    folder = checkpoint.newest(run.path, display.say)
    if folder is None:
        display.say(f"no checkpoint in {run.path} yet; starting from the beginning")
        return
    checkpoint.restore(folder, training)
    run.set_aside(folder)
    display.say(f"going on after step {training.progress.step}, from {folder}")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _contiguous(leaf: Tensor) -> Tensor:
    return leaf.detach().clone(memory_format=torch.contiguous_format)
