"""Runs that are killed, interrupted and resumed, as processes of their own."""

import random
import shlex
import signal
import subprocess
import time

import pytest
from command_line import COMMAND, ENVIRONMENT, SMALL

from seriatim.cli import main
from seriatim.train.log import read_log

STEPS = 120
OPTIONS = [*SMALL, "--train.steps", str(STEPS), "--train.checkpoint_every", "3", "--train.log_every", "1"]
OPTIONS += ["--train.carry", "true"]  # more to restore than without
OPTIONS += ["--train.evaluate_every", "25", "--model.dropout", "0.1"]


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory, text):
    """The weights at the end, as bytes."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["train", "--data", str(text), "--out", str(folder), *OPTIONS]) == 0
    return weights(folder)


def weights(folder):
    return (folder / f"checkpoints/step-{STEPS:08d}/model.safetensors").read_bytes()


def read_steps(running, count):
    """Reads what the run says until it has said `count` steps; false where it ended before."""
    while count and (line := running.stderr.readline()):
        count -= line.startswith("step ")
    return not count


def test_killed_at_ten_random_moments_and_resumed_ends_with_the_same_weights(process, never_stopped, text, tmp_path):
    chance, out = random.Random(2), tmp_path / "run"
    moments = [None, None, *(chance.randint(0, 12) for _ in range(8))]  # None: while it starts
    for moment in moments:
        running = process("train", "--data", text, "--out", out, *OPTIONS, "--resume", stdout=subprocess.DEVNULL)
        if moment is None:
            time.sleep(chance.uniform(0, 2))
        else:
            assert read_steps(running, moment), "it ended before it was killed"
            time.sleep(chance.uniform(0, 0.02))
        running.kill()
        running.communicate()
        assert running.returncode == -signal.SIGKILL
    running = process("train", "--data", text, "--out", out, *OPTIONS, "--resume")
    said = running.communicate()[1]
    assert running.returncode == 0, said
    assert "going on after step" in said
    assert weights(out) == never_stopped
    assert [record["step"] for record in read_log(out / "log.jsonl")] == list(range(1, STEPS + 1))


def test_ctrl_c_saves_and_says_how_to_resume(process, never_stopped, text, tmp_path):
    running = process("train", "--data", text, "--out", tmp_path / "a run", *OPTIONS)
    assert read_steps(running, 7)
    running.send_signal(signal.SIGINT)
    last = running.communicate()[1].splitlines()[-1]
    assert running.returncode == 130
    assert last.startswith("seriatim: stopped after step")
    command = shlex.split(last.partition(": seriatim ")[2])
    assert command[0] == "train"
    resumed = subprocess.run([*COMMAND, *command], env=ENVIRONMENT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "a run") == never_stopped


def test_ctrl_c_while_writing_saves_the_state(process, trained, tmp_path):
    running = process("generate", trained, "--tokens", 1_000_000, "--save-state", tmp_path / "state")
    assert running.stdout.read(5)
    running.send_signal(signal.SIGINT)
    last = running.communicate()[1].splitlines()[-1]
    assert running.returncode == 130
    assert last.startswith("seriatim: stopped; state saved")
    assert (tmp_path / "state").is_file()


def test_help_does_not_wait_for_torch():
    for command in ([], ["demo"], ["list"], ["train"], ["generate"], ["evaluate"], ["info"]):
        python = [COMMAND[0], "-X", "importtime", *COMMAND[1:], *command, "--help"]
        result = subprocess.run(python, env=ENVIRONMENT, capture_output=True, text=True)
        assert result.returncode == 0
        imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
        assert "seriatim.cli" in imported
        assert not imported & {"torch", "numpy", "numba", "rich"}
