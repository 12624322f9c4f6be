"""Trains in child processes and kills them with SIGKILL.

    python kill_server.py FOLDER KILLS SEED

FOLDER/whole is trained without a break. FOLDER/cut is trained by children that are killed after random times, KILLS
of them, each going on from what the last one left, and at last by one that is left alone. Children are forked, so that
torch is imported once; the parent itself never trains.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny_language import evaluation_batches, new_model, new_run, next_token, settings, training_batches

from seriatim.train.evaluate import evaluate
from seriatim.train.loop import fit
from seriatim.train.settings import TrainSettings

SETTINGS: TrainSettings = settings(steps=80, checkpoint_every=4, evaluate_every=10, log_every=1)


def train(path: Path) -> None:
    model = new_model()
    run = new_run(path, model, SETTINGS, resume=True)
    held_out = evaluation_batches()
    fit(model, next_token, training_batches(), SETTINGS, run, lambda model: evaluate(model, held_out), display="silent")


def child(path: Path, seconds: float | None = None) -> tuple[int, float]:
    """Trains in a child, and kills it after that many seconds. Returns its status and how long it lived."""
    start = time.perf_counter()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            train(path)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return status, time.perf_counter() - start


def main(folder: str, kills: str, seed: str) -> None:
    torch.set_num_threads(1)
    status, whole = child(Path(folder) / "whole")
    assert status == 0, status
    delays = random.Random(int(seed))
    killed = [child(Path(folder) / "cut", delays.uniform(0, 0.25) * whole)[0] for _ in range(int(kills))]
    print("killed", sum(status == signal.SIGKILL for status in killed))
    status, _ = child(Path(folder) / "cut")
    assert status == 0, status


if __name__ == "__main__":
    main(*sys.argv[1:])
