import pytest

from seriatim.cli import main
from seriatim.core.errors import SeriatimError


def test_no_arguments_and_help_print_the_commands(seriatim):
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        result = seriatim(*arguments)
        assert result.status == 0
        assert all(name in result.out for name in ("demo", "list", "train", "generate", "evaluate", "info"))
    assert seriatim("--version").out.startswith("seriatim ")


@pytest.mark.parametrize("command", ["list", "train", "train task", "compare", "generate", "evaluate", "info"])
def test_every_command_has_a_help(seriatim, command):
    result = seriatim(*command.split(), "--help")
    assert result.status == 0
    assert result.out.startswith(f"usage: seriatim {command} ")
    assert "TRAIN." not in result.out  # no option without a name for its value


def test_the_help_of_train_names_every_option_and_its_default(seriatim):
    text = " ".join(seriatim("train", "--help").out.split())
    for option in (
        "--model.dim N features of every layer (default: 256)",
        "--model.layers YAML",
        "--train.steps N",
        "--data",
    ):
        assert option in text
    assert "vocab_size" not in text


def test_unknown_names_are_answered_with_the_nearest(refused):
    refused("no command is named 'trian'; the commands are train,", "trian")
    refused("no option is named '--foo'; the commands are", "--foo")
    refused("no option is named --dta; the nearest are --data", "train", "--dta", "x")
    refused("no option is named --train.step; the nearest are --train.steps", "train", "--train.step=3")
    refused("there is no option 'dimension'; the signature is language_model(dim=256,", "train", "--model.dimension", 3)
    refused("unexpected argument 'b'", "list", "mixers", "b")
    refused("what is 'mixrs'; it must be one of mixers, models, tasks", "list", "mixrs")


def test_values_of_the_wrong_kind_are_refused(refused):
    refused("--train.steps is 'x'; it must be int", "train", "--train.steps", "x")
    refused("--train.carry is 'x'; it must be bool", "train", "--train.carry", "x")
    refused("--train.schedule is 'x'; it must be one of", "train", "--train.schedule", "x")
    refused("--model.dim is 'x'; it must be int", "train", "--model.dim", "x")
    refused("NUMBER is '64x'; it must be int", "claims", "64x")
    refused("steps is -3; it must be 0 or more", "train", "--out", "x", "--train.steps", -3)
    refused("expected one argument", "train", "--out")
    refused("--out is not given", "train")
    refused("--tokens is -1", "generate", "nowhere", "--tokens", -1)
    refused("top_p is 1.5; it must be above 0 and at most 1", "generate", "nowhere", "--top-p", 1.5)


def test_flags_win_over_the_yaml_file_and_both_over_the_defaults(seriatim, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "data: text.txt\nmodel: {dim: 48, layers: [mamba, {mixer: window, size: 3}]}\ntrain: {steps: 9, batch: 2}\n"
    )
    shown = seriatim(
        "train", "--config", path, "--train.batch", 5, "--model.layers", "[gru, gru]", "--print_config"
    ).out
    for line in ("data: text.txt", "dim: 48", "- gru", "steps: 9", "batch: 5", "window: 256"):
        assert line in shown
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert seriatim("train", "--config", again, "--print_config").out == shown


def test_a_bad_yaml_file_is_refused(refused, tmp_path):
    def yaml(content):
        (tmp_path / "bad.yaml").write_bytes(content)
        return "train", "--config", tmp_path / "bad.yaml"

    refused("File does not exist", "train", "--config", tmp_path / "none.yaml")
    refused("Path is not a file", "train", "--config", tmp_path)
    refused("Problems parsing config", *yaml(b"train: ["))
    refused("Unexpected config: hello", *yaml(b"hello"))
    refused("not a text file", *yaml(b"\xf2\x00\xff"))
    refused("no option is named --stps", *yaml(b"stps: 3"))
    refused("there is no option 'foo'; the signature is", *yaml(b"model: {foo: 3}"))
    refused("model is 4; it must have options under it, such as model.dim", *yaml(b"model: 4"))
    refused("--train.steps is 'many'; it must be int", *yaml(b"train: {steps: many}"))


def test_list_says_what_a_mixer_is(seriatim):
    mixers, models, tasks, every = (seriatim("list", *what).out for what in (["mixers"], ["models"], ["tasks"], []))
    assert "gla(dim, heads=4" in mixers
    assert "arXiv:2312.06635" in mixers
    assert "language_model(vocab_size, dim=256" in models
    assert "mqar(pairs=8" in tasks
    assert "arXiv:2312.04927" in tasks
    assert all(name in every for name in ("gla", "language_model", "mqar"))


def test_an_error_is_one_line_whatever_it_says(refused, monkeypatch):
    def fail():
        raise SeriatimError("first\n  second")

    monkeypatch.setattr("seriatim.cli.dispatch._overview", fail)
    refused("seriatim: error: first second")


def test_a_bug_is_a_traceback(monkeypatch):
    monkeypatch.setattr("seriatim.cli.dispatch._overview", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([])
