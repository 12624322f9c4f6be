"""The main job, made small: what it prints, what it leaves, what it refuses."""

import json

import pytest

from seriatim.cli import main
from seriatim.cli.demo import main_job
from seriatim.cli.demo.compressors import compressed_bits
from seriatim.cli.demo.report import comparison


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_job, "MEASURED", 4_096)
        patch.setattr(main_job, "CURVE_STEPS", 1)
        patch.setattr(main_job, "LENGTHS", (64, 128, 512))
        status = main(["demo", "--out", str(out), "--minutes", "0.02", "--tokens", "12", "--prompt", "def "])
    assert status == 0
    return out


def test_every_figure_is_left(demo):
    results = json.loads((demo / "demo.json").read_text())
    ours, peer = results["models"]
    assert [row["tokens"] for row in ours["memory"]] == [64, 128, 512]
    assert len({row["state_bytes"] for row in ours["memory"]}) == 1
    grown = [row["state_bytes"] / row["tokens"] for row in peer["memory"]]
    assert max(grown) < 1.1 * min(grown)  # in proportion to what was read
    assert abs(ours["parameters"] / peer["parameters"] - 1) < 0.02
    for model in (ours, peer):
        assert model["curve"][-1][1] == model["bits_per_byte"]
        assert 0 < model["bits_per_byte"] < 9
        assert model["curve"][-1][0] == pytest.approx(model["train_seconds"], abs=0.01)
        assert min(model["write_tokens_per_second"], model["train_tokens_per_second"]) > 0
    assert set(results["compressors"]) == {"gzip", "bz2", "xz"}
    assert results["sample"]["prompt"] == "def "


def test_the_run_can_be_used(demo, capsys):
    assert main(["info", str(demo)]) == 0
    assert main(["generate", str(demo), "--prompt", "class ", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.count("class ") == 1
    assert (demo / "log.jsonl").read_text().count("validation_bits_per_byte") >= 1


def test_the_page_stands_alone_and_holds_the_figures(demo):
    page, results = (demo / "report.html").read_text(), json.loads((demo / "demo.json").read_text())
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    assert "$" not in page.partition("<pre>")[0]
    for model in results["models"]:
        assert f"{model['bits_per_byte']:.3f}" in page
        assert f"{model['parameters']:,}" in page
    for picture in ("learning.png", "memory.png"):
        assert (demo / picture).read_bytes().startswith(b"\x89PNG")


def test_a_folder_in_use_is_refused(demo, tmp_path, capsys):
    before = sorted(demo.rglob("*"))
    assert main(["demo", "--out", str(demo)]) == 2
    assert "not empty" in capsys.readouterr().err
    (tmp_path / "precious").write_text("mine")
    assert main(["demo", "--out", str(tmp_path), "--overwrite"]) == 2
    assert "does not hold a demo" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"
    assert sorted(demo.rglob("*")) == before


@pytest.mark.parametrize(("flag", "value"), [("--minutes", "0"), ("--tokens", "-3")])
def test_wrong_options_are_named(tmp_path, capsys, flag, value):
    assert main(["demo", "--out", str(tmp_path / "x"), flag, value]) == 2
    assert flag.strip("-") in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_compressors_are_measured_over_the_whole_text():
    text = b"one after another " * 500
    bits = compressed_bits(text)
    assert all(0 < value < 1 for value in bits.values())
    assert compressed_bits(text * 2)["xz"] < bits["xz"]


def model(name, bits):
    return {"name": name, "bits_per_byte": bits, "train_seconds": 90.0}


@pytest.mark.parametrize(
    ("bits", "words"), [(2.0, "20% fewer"), (3.0, "20% more"), (1.4, "ahead of gzip"), (2.0, "not yet ahead of any")]
)
def test_the_sentence_follows_the_figures(bits, words):
    results = {"models": [model("x", bits), model("Transformer", 2.5)], "compressors": {"gzip": 1.5, "xz": 1.3}}
    assert words in comparison(results)
