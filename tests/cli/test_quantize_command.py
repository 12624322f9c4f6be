import json

import pytest
from command_line import SMALL


@pytest.fixture(scope="module")
def mamba(tmp_path_factory, text):
    """A run of a small Mamba and Mamba-2."""
    from seriatim.cli import main

    folder = tmp_path_factory.mktemp("runs") / "mamba"
    options = [*SMALL, "--model.layers", "[mamba, mamba2]", "--train.steps", "20", "--model.dim", "32"]
    assert main(["train", "--data", str(text), "--out", str(folder), *options]) == 0
    return folder


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a16"])
def test_a_quantised_run_is_a_run(seriatim, refused, mamba, tmp_path, scheme):
    out = tmp_path / "q"
    result = seriatim("quantize", mamba, "--scheme", scheme, "--out", out, "--tokens", 2000)
    assert result.status == 0, result.err
    assert "times smaller" in result.out
    assert f"seriatim generate {out}" in result.err
    written = seriatim("generate", out, "--prompt", "line 7", "--tokens", 20)
    assert written.status == 0
    assert written.out.startswith("line 7")
    figures = [json.loads(seriatim("evaluate", run, "--json").out)["bits_per_byte"] for run in (mamba, out)]
    assert abs(figures[1] / figures[0] - 1) < 0.05
    about = json.loads(seriatim("info", out, "--json").out)
    assert about["model"]["scheme"] == scheme
    assert about["quantized"]["from"] == str(mamba)
    assert about["checkpoints"] == ["step-00000020"]
    assert about["bytes"] < json.loads(seriatim("info", mamba, "--json").out)["bytes"] / 2
    shown = seriatim("info", out).out
    assert scheme in shown
    assert "20 of 20" in shown
    refused("is not empty", "quantize", mamba, "--scheme", scheme, "--out", out)
    refused("it must be of a language_model", "quantize", out, "--scheme", scheme, "--out", tmp_path / "again")
    refused(f"the run in {out} is quantised and cannot be trained on", "train", "--out", out, "--resume")


def test_json_says_the_same(seriatim, mamba, tmp_path):
    result = seriatim("quantize", mamba, "--out", tmp_path / "q", "--tokens", 500, "--json")
    found = json.loads(result.out)
    assert found["original"]["bytes"] > 3 * found["quantized"]["bytes"]
    assert found["quantized"]["perplexity"] > 1


def test_a_state_goes_on_in_the_quantised_run_only(seriatim, refused, mamba, tmp_path):
    out, state = tmp_path / "q", tmp_path / "state"
    assert seriatim("quantize", mamba, "--out", out, "--tokens", 500).status == 0
    assert seriatim("generate", out, "--prompt", "line", "--tokens", 5, "--save-state", state).status == 0
    assert seriatim("generate", out, "--state", state, "--tokens", 5).status == 0
    refused("belongs to another model", "generate", mamba, "--state", state)


def test_a_folder_that_is_not_empty_is_refused_before_any_work(refused, mamba, tmp_path, monkeypatch):
    monkeypatch.setattr("seriatim.compress.quantize.quantize", None)
    (tmp_path / "notes.txt").write_text("mine")
    refused("is not empty", "quantize", mamba, "--out", tmp_path)


def test_what_cannot_be_quantised_is_refused_in_one_line(refused, mamba, trained, tmp_path):
    out = tmp_path / "q"
    refused("scheme is 'w2a2'; it must be one of", "quantize", mamba, "--scheme", "w2a2", "--out", out)
    refused("--out is not given", "quantize", mamba)
    refused("--tokens is 0", "quantize", mamba, "--out", out, "--tokens", 0)
    refused("at least one must be mamba or mamba2", "quantize", trained, "--out", out)
    refused("does not exist", "quantize", tmp_path / "none", "--out", out)
    assert not out.exists()
