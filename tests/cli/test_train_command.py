import json
import math
import shutil
from pathlib import Path

import pytest
from command_line import SMALL

from seriatim.train.log import read_log


def test_a_run_folder_has_what_it_should(trained, text):
    config = json.loads((trained / "config.json").read_text())
    assert config["data"] == str(text)
    assert config["model"]["layers"] == ["aaren"]
    assert config["train"]["steps"] == 6
    assert [record["step"] for record in read_log(trained / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == [f"step-0000000{n}" for n in (2, 4, 6)]


def test_a_yaml_file_and_flags_make_the_run(seriatim, text, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"data: {text}\nmodel: {{layers: [{{mixer: aaren, heads: 2}}], dim: 8}}\ntrain: {{steps: 9, window: 16}}\n"
    )
    result = seriatim("train", "--config", tmp_path / "run.yaml", "--train.steps", 1, "--out", tmp_path / "run")
    assert result.status == 0
    assert result.out == ""
    assert "1 steps, validation bits per byte" in result.err
    assert json.loads((tmp_path / "run/config.json").read_text())["model"]["layers"] == [{"mixer": "aaren", "heads": 2}]


def test_a_tokenizer_file_is_kept_with_the_run(seriatim, text, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "square": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "words.json"))
    run = tmp_path / "run"
    train = ["train", "--data", text, "--out", run, *SMALL, "--train.window", 4, "--train.steps", 2]
    assert seriatim(*train, "--tokenizer", tmp_path / "words.json").status == 0
    (tmp_path / "words.json").unlink()
    assert seriatim("train", "--out", run, "--resume").status == 0
    for place in (run, run / "checkpoints/step-00000002"):
        assert seriatim("generate", place, "--prompt", "the square", "--tokens", 3).status == 0
    assert "words.json" in seriatim("info", run).out


def test_what_cannot_be_trained_is_refused_and_nothing_is_written(refused, text, trained, tmp_path):
    out = tmp_path / "new/run"
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "folder").mkdir()

    def train(*options, data=text, out=out):
        return "train", "--data", data, "--out", out, *SMALL, "--train.steps", 1, *options

    layers = "--model.layers"
    refused("layers[0]: no mixer is named 'mamb'; there are mamba,", *train(layers, "[mamb]"))
    refused(
        "gla has no option 'head'; its signature is gla(dim: int, heads: int = 4",
        *train(layers, "[{mixer: gla, head: 2}]"),
    )
    refused("dim is 10 and heads is 4; dim must be a multiple of heads", *train(layers, "[gla]", "--model.dim", 10))
    refused("layers is 'gla'; it must be a list", *train(layers, "gla"))
    refused("a spec is 3", *train(layers, "[3]"))
    refused("gate_rank is -3; it must be a whole number above 0", *train(layers, "[{mixer: gla, gate_rank: -3}]"))
    refused("layers[0]: gate_rank is 2.5; it must be a whole", *train(layers, "[{mixer: gla, gate_rank: 2.5}]"))
    refused("dim is 0; it must be a whole number above 0", *train("--model.dim", 0))
    refused("which does not exist", *train(data=tmp_path / "none.txt"))
    refused("is empty", *train(data=tmp_path / "empty.txt"))
    refused("is not text", *train(data=tmp_path / "binary"))
    refused("has no text in it", *train(data=tmp_path / "folder"))
    refused("fewer than one window", *train(data=tmp_path / "short.txt"))
    refused("fewer than one window", *train("--train.window", 100_000))
    refused("tokenizer is 'none.json'", *train("--tokenizer", "none.json"))
    refused("tokenizer is {'a': 3}", *train("--tokenizer", "{a: 3}"))
    refused("tokenizer is '3'", *train("--tokenizer", 3))
    refused("device is 'abacus'", *train("--train.device", "abacus"))
    refused("which cannot be a folder", *train(out=text / "run"))
    assert not out.parent.exists()
    before = sorted(trained.rglob("*"))
    refused("which is not empty", *train(out=trained))
    refused("which is not empty", *train(out=text.parent))
    refused("which is not a run's folder", *train("--resume", out=text.parent))
    refused("has another config: model.dim is 8 there and 24 here", *train("--resume", "--model.dim", 24, out=trained))
    assert sorted(trained.rglob("*")) == before


def test_resume_takes_the_runs_own_settings(seriatim, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    result = seriatim("train", "--out", run, "--resume")
    assert result.status == 0
    assert "going on after step 6" in result.err
    assert (
        seriatim("train", "--out", run, "--resume", "--train.keep", 2).status == 0
    )  # what changes no figure may change


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(seriatim, refused, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    _cut(run / "checkpoints/step-00000006/model.safetensors")
    for command in (["info", run], ["generate", run, "--tokens", 3], ["evaluate", run, "--tokens", 20]):
        assert seriatim(*command).status == 0
    warned = seriatim("generate", run, "--tokens", 3)
    assert "step-00000006 is damaged: model.safetensors is not what was written; using step-00000004" in warned.err
    _cut(run / "checkpoints/step-00000004/meta.json")
    resumed = seriatim("train", "--out", run, "--resume")
    assert resumed.status == 0
    assert "step-00000006 is damaged" in resumed.err
    assert "going on after step 2" in resumed.err
    assert _weights(run) == _weights(trained)

    for folder in (run / "checkpoints").iterdir():
        _cut(folder / "training.safetensors")
    refused("no checkpoint in", "train", "--out", run, "--resume")
    refused("can be used", "generate", run)


def test_a_loss_that_is_not_finite_stops_with_status_3(refused, seriatim, text, tmp_path):
    run = tmp_path / "run"
    options = ["--train.steps", 50, "--train.checkpoint_every", 1, "--train.learning_rate", 1e38, "--train.clip", 0]
    result = seriatim("train", "--data", text, "--out", run, *SMALL, *options, "--train.warmup", 0)
    assert result.status == 3
    line = result.err.splitlines()[-1]
    assert line.startswith("seriatim: error: the ")
    assert "at step" in line
    kept = sorted((run / "checkpoints").iterdir())
    assert f"the last good checkpoint is {kept[-1]}" in line


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: math.ceil(path.stat().st_size / 2)])


def _weights(run: Path) -> bytes:
    return (sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("carry", ["true", "false"])
def test_a_state_that_grows_is_not_carried(seriatim, text, tmp_path, carry):
    small = ["--data", text, *SMALL, "--model.layers", "[attention]", "--train.steps", 1, "--train.carry", carry]
    result = seriatim("train", "--out", tmp_path / "run", *small)
    assert result.status == (2 if carry == "true" else 0)
    assert ("train.carry is true; it must be false" in result.err) == (carry == "true")
