import json
import os

import pytest
from command_line import SMALL

from seriatim.core.errors import SeriatimError


@pytest.fixture(scope="module")
def growing(tmp_path_factory, text):
    """A run of a model whose state grows."""
    from seriatim.cli import main

    folder = tmp_path_factory.mktemp("runs") / "growing"
    options = [*SMALL, "--model.layers", "[attention]", "--train.steps", "2"]
    assert main(["train", "--data", str(text), "--out", str(folder), *options]) == 0
    return folder


def test_text_is_written_to_stdout_and_the_speed_to_stderr(seriatim, trained):
    result = seriatim("generate", trained, "--prompt", "line 7: é", "--tokens", 30)
    assert result.status == 0
    assert result.out.startswith("line 7: é")
    assert result.out.endswith("\n")
    assert "read 10 tokens in" in result.err
    assert "tokens/s" in result.err
    assert result.out == seriatim("generate", trained, "--prompt", "line 7: é", "--tokens", 30).out
    assert result.out != seriatim("generate", trained, "--prompt", "line 7: é", "--tokens", 30, "--seed", 1).out


def test_sampling_options_reach_the_sampler(seriatim, trained):
    def write(*options):
        return seriatim("generate", trained, "--prompt", "line", "--tokens", 25, *options).out

    greedy = write("--temperature", 0)
    assert greedy == write("--temperature", 0, "--seed", 5)
    assert greedy == write("--top-k", 1)
    assert greedy == write("--min-p", 1)
    assert greedy == write("--top-p", 1e-9)
    assert greedy != write("--temperature", 0, "--repetition-penalty", 5)
    assert greedy != write()


def test_the_prompt_may_come_from_a_file_from_stdin_or_be_empty(seriatim, trained, process, tmp_path):
    (tmp_path / "prompt").write_text("line 7: ")
    spoken = seriatim("generate", trained, "--prompt", "line 7: ", "--tokens", 9).out
    assert "line 7: " + seriatim("generate", trained, "--prompt-file", tmp_path / "prompt", "--tokens", 9).out == spoken
    with (tmp_path / "prompt").open() as stdin:
        piped = process("generate", trained, "--prompt-file", "-", "--tokens", 9, stdin=stdin)
        assert "line 7: " + piped.communicate()[0] == spoken
    assert seriatim("generate", trained, "--tokens", 9).status == 0
    assert seriatim("generate", trained, "--prompt", "", "--tokens", 0).out == "\n"


def test_a_saved_state_in_another_process_goes_on_as_if_never_stopped(seriatim, trained, process, tmp_path):
    options = ["--temperature", 1.2, "--repetition-penalty", 1.1]
    never = seriatim("generate", trained, "--prompt", "line 7: ", "--tokens", 40, "--seed", 3, *options).out

    def write(*where):
        running = process("generate", trained, *options, *where)
        out, err = running.communicate()
        assert running.returncode == 0, err
        return out[:-1], err

    state = tmp_path / "state"
    first = seriatim(
        "generate", trained, "--prompt", "line 7: ", "--tokens", 0, "--seed", 3, "--save-state", state
    ).out[:-1]
    second, said = write("--state", state, "--tokens", 15, "--save-state", state)
    third, _ = write("--state", state, "--tokens", 25)
    assert f"seriatim generate {trained} --state {state}" in said
    assert "no prompt to read" in said
    # A character whose bytes are on both sides of a stop is shown as U+FFFD, so only single bytes are compared.
    assert _ascii(first + second + third) == _ascii(never[:-1])
    assert len(second) >= 1


def test_a_state_takes_a_new_prompt_and_a_new_seed(seriatim, trained, tmp_path):
    state = tmp_path / "state"
    seriatim("generate", trained, "--prompt", "line 7", "--tokens", 0, "--save-state", state)
    whole = seriatim("generate", trained, "--prompt", "line 7: the", "--tokens", 20).out
    assert "line 7" + seriatim("generate", trained, "--state", state, "--prompt", ": the", "--tokens", 20).out == whole
    other = seriatim("generate", trained, "--state", state, "--prompt", ": the", "--tokens", 20, "--seed", 9).out
    assert "line 7" + other == seriatim("generate", trained, "--prompt", "line 7: the", "--tokens", 20, "--seed", 9).out


def test_what_cannot_be_generated_is_refused(refused, trained, text, tmp_path):
    state = tmp_path / "state"
    state.write_text("not a state")
    refused("does not exist", "generate", tmp_path / "none")
    refused("is a file", "generate", text)
    refused("is not a run's folder", "generate", text.parent)
    refused("device is 'abacus'", "generate", trained, "--device", "abacus")
    refused("--seed is -1", "generate", trained, "--seed", -1)
    refused("RUN is not given", "generate")
    refused("--top-k is '2.5'; it must be int", "generate", trained, "--top-k", 2.5)
    refused("--prompt and --prompt-file are both given", "generate", trained, "--prompt", "a", "--prompt-file", "b")
    refused("which cannot be read: No such file", "generate", trained, "--prompt-file", tmp_path / "none")
    refused("which cannot be read: Is a directory", "generate", trained, "--prompt-file", tmp_path)
    refused("state file", "generate", trained, "--state", tmp_path / "none")
    refused("cannot be read", "generate", trained, "--state", state)
    refused("none does not exist", "generate", trained, "--save-state", tmp_path / "none/state")
    refused("which is a folder", "generate", trained, "--save-state", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    refused("must describe a run", "generate", tmp_path)
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    refused("holds no checkpoint", "generate", tmp_path)


def test_the_state_of_another_model_is_refused(seriatim, refused, trained, text, tmp_path):
    other, state = tmp_path / "other", tmp_path / "state"
    assert seriatim("train", "--data", text, "--out", other, *SMALL, "--train.steps", 1, "--train.seed", 1).status == 0
    assert seriatim("generate", other, "--tokens", 3, "--save-state", state).status == 0
    refused("belongs to another model", "generate", trained, "--state", state)


def test_a_prompt_longer_than_fits_memory_is_refused_before_it_is_read(
    seriatim, refused, growing, trained, tmp_path, monkeypatch
):
    (tmp_path / "prompt").write_text("abcd" * 1000)
    read = ["--prompt-file", tmp_path / "prompt", "--tokens", 1]
    monkeypatch.setattr("seriatim.cli.memory.available_memory", lambda device: 200_000)
    result = refused(
        "the prompt has 4,000 tokens and 1 are to be written; this model's state grows", "generate", growing, *read
    )
    assert "200.0 KB are available" in result.err
    assert result.out == ""
    assert seriatim("generate", trained, *read).status == 0  # constant memory
    monkeypatch.setattr("seriatim.cli.memory.available_memory", lambda device: 10_000_000)
    assert seriatim("generate", growing, *read).status == 0


def test_evaluate_prints_bits_per_byte(seriatim, refused, trained, text, tmp_path):
    found = {}
    for split in ("train", "validation", "test"):
        found[split] = json.loads(seriatim("evaluate", trained, "--split", split, "--json").out)
        assert found[split]["split"] == split
        assert 0 < found[split]["bits_per_byte"] < 9
    assert sum(figures["bytes"] for figures in found.values()) == text.stat().st_size
    table = seriatim("evaluate", trained).out
    assert f"{found['validation']['bits_per_byte']:.4f}" in table
    other = json.loads(seriatim("evaluate", trained, "--data", __file__, "--json").out)
    assert other["bits_per_byte"] != found["validation"]["bits_per_byte"]
    assert other["data"] == __file__
    refused("--split is 'tset'; it must be one of", "evaluate", trained, "--split", "tset")
    refused("which does not exist", "evaluate", trained, "--data", tmp_path / "none")
    refused("does not exist", "evaluate", tmp_path / "none")


def test_info_says_what_is_in_a_run(seriatim, refused, trained, growing, tmp_path):
    table = seriatim("info", trained).out
    for line in (
        "language_model",
        "constant, however long",
        "6 of 6",
        "step-00000002, step-00000004, step-00000006",
        "loss",
    ):
        assert line in table
    found = json.loads(seriatim("info", trained, "--json").out)
    assert found["state"]["bytes_per_token"] == 0
    assert found["last_log_line"]["step"] == 6
    assert "more for every token" in seriatim("info", growing).out
    assert json.loads(seriatim("info", growing, "--json").out)["state"]["bytes_per_token"] > 0
    refused("does not exist", "info", tmp_path / "none")


def test_a_reader_that_goes_away_ends_it_quietly(process, trained):
    running = process("generate", trained, "--tokens", 100_000)
    os.read(running.stdout.fileno(), 10)
    running.stdout.close()
    assert running.wait() == 141
    assert "Traceback" not in running.stderr.read()
    running.stderr.close()


def test_errors_are_value_errors(trained):
    from seriatim.cli.runs import open_run

    with pytest.raises(SeriatimError):
        open_run(str(trained / "checkpoints"))
    assert open_run(str(trained / "checkpoints/step-00000002")).config["train"]["steps"] == 6


def _ascii(text):
    return "".join(character for character in text if character.isascii())
