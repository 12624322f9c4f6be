"""What a hurried person does to the command: odd prompts, paths that are no files, streams that are gone."""

import os
import subprocess

import pytest
from command_line import COMMAND, ENVIRONMENT, SMALL


@pytest.mark.parametrize("prompt", ["# a comment", "~", "null", "&a", "[1", '"quoted"', " spaced "])
def test_a_prompt_is_taken_as_it_is(seriatim, trained, prompt):
    result = seriatim("generate", trained, "--prompt", prompt, "--tokens", 0)
    assert result.out == f"{prompt}\n"
    assert f"read {len(prompt)} tokens" in result.err


def test_a_prompt_that_begins_with_a_dash_is_explained(refused):
    refused("is written --prompt=-TEXT", "generate", "run", "--prompt", "-x")


def test_the_smallest_temperature_is_greedy(seriatim, trained):
    ends = [seriatim("generate", trained, "--tokens", 9, "--temperature", t) for t in (0, 1e-320, 1e-31)]
    assert [end.status for end in ends] == [0, 0, 0]
    assert ends[0].out == ends[1].out == ends[2].out


def test_what_is_no_file_is_never_replaced(refused, trained, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused("a device or a pipe", "generate", trained, "--save-state", pipe)
    refused("a device or a pipe", "train", "--data", pipe, "--out", tmp_path / "run", *SMALL)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_to_a_state_stays_a_link(seriatim, trained, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "state")
    for _ in range(2):
        assert seriatim("generate", trained, "--tokens", 1, "--save-state", tmp_path / "link").status == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "state").is_file()


def test_a_mistyped_run_is_not_begun_by_resume(refused, tmp_path):
    refused("where there is no run to resume", "train", "--resume", "--out", tmp_path / "runn")
    assert not list(tmp_path.iterdir())


def test_paths_and_sizes_the_machine_cannot_take_are_one_line(refused, text, tmp_path):
    train = ["train", "--data", text, *SMALL, "--train.steps", 1, "--out"]
    refused("File name too long", *train, tmp_path / ("n" * 300))
    refused("the model cannot be built", *train, tmp_path / "run", "--model.expansion", 1e30)
    refused("device is 'meta'", *train, tmp_path / "run", "--train.device", "meta")
    refused("not enough memory", *train, tmp_path / "run", "--train.batch", 10**15)


def test_settings_and_logs_edited_by_hand_are_one_line(seriatim, refused, trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"model": 3, "data": "x", "tokenizer": 3, "train": {}}')
    for command in ("generate", "evaluate", "info"):
        refused("must describe a run", command, run)
    (run / "config.json").write_text((trained / "config.json").read_text())
    (run / "log.jsonl").write_text('3\n[]\n{}\n{"step": "x"}\n')
    assert "none yet" in seriatim("info", run).out


def test_streams_that_are_full_or_closed_are_no_traceback(trained):
    def shell(arguments, streams):
        command = f'exec "$@" {streams}'
        whole = ["bash", "-c", command, "bash", *COMMAND, *map(str, arguments)]
        return subprocess.run(whole, env=ENVIRONMENT, capture_output=True, text=True)

    for arguments in (["--help"], ["generate", trained, "--tokens", 3]):
        full = shell(arguments, ">/dev/full")
        assert full.returncode == 2
        assert full.stderr.splitlines()[-1] == "seriatim: error: No space left on device"
        assert "Traceback" not in full.stderr
        closed = shell(arguments, ">&- <&-")
        assert closed.returncode == 0
        assert "Traceback" not in closed.stderr
    for streams in ("2>&-", "2>/dev/full"):
        assert shell(["info", "nowhere"], streams).returncode == 2


def test_file_names_need_no_utf_8(text, tmp_path):
    folder = tmp_path / "ü"
    folder.mkdir()
    (folder / "ë.txt").write_bytes(text.read_bytes())
    plain = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    train = [*COMMAND, "train", "--data", str(folder), "--out", str(tmp_path / "run"), *SMALL, "--train.steps", "1"]
    result = subprocess.run(train, env=plain, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
