import json
import shutil
import statistics

import pytest
from command_line import TINY_TASK

from seriatim.cli import main
from seriatim.cli.compare.report import error_bars
from seriatim.cli.compare.widths import sized
from seriatim.cli.task_training import parameters_of
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError

OPTIONS = ["--mixers", "[aaren, {mixer: window, size: 4, heads: 1}]", "--seeds", "2", *TINY_TASK[2:]]
OPTIONS += ["--train.steps", "2", "--train.minutes", "0.001"]
TASK = build({"task": "mqar", "pairs": 2, "keys": 4})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "compared"
    assert main(["compare", "--task.name", "parity", "--out", str(folder), *OPTIONS]) == 0
    return folder


def test_the_report_holds_means_and_deviations(compared):
    report = json.loads((compared / "report.json").read_text())
    assert [(row["held"], row["mixer"]) for row in report["rows"]] == [
        (held, mixer) for held in ("parameters", "time") for mixer in ("aaren", "window (size 4, heads 1)")
    ]
    for row in report["rows"]:
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        assert [length["length"] for length in row["lengths"]] == [4, 8, 16, 32]
        for index, length in enumerate(row["lengths"]):
            found = [run["lengths"][index]["accuracy"] for run in row["runs"]]
            assert length["accuracy"]["mean"] == pytest.approx(statistics.fmean(found))
            assert length["accuracy"]["deviation"] == pytest.approx(statistics.stdev(found))
        assert row["steps"]["mean"] == 2 or row["held"] == "time"
        assert row["dim"] == 8 or row["held"] == "parameters"
    one, other = (row["parameters"] for row in report["rows"][:2])
    assert abs(one - other) < 0.05 * one
    assert (compared / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_all_mixers_are_asked_the_same(compared):
    rows = json.loads((compared / "report.json").read_text())["rows"]
    baselines = {length["baseline"]["mean"] for row in rows for length in row["lengths"] if length["length"] == 32}
    assert len(baselines) == 1
    assert all(length["baseline"]["deviation"] == 0 for row in rows for length in row["lengths"])


def test_what_is_done_is_not_done_again(seriatim, refused, compared, tmp_path):
    folder = shutil.copytree(compared, tmp_path / "compared")
    report = (folder / "report.json").read_text()
    shutil.rmtree(folder / "equal-parameters/aaren/seed-1")
    result = seriatim("compare", "--out", folder, "--resume")
    assert result.status == 0
    assert result.err.count("seed ") == 1
    again = json.loads((folder / "report.json").read_text())
    for row, before in zip(again["rows"], json.loads(report)["rows"], strict=True):
        assert row["lengths"] == before["lengths"]
    assert "Equal parameters and steps" in result.out
    assert "Equal width and time" in result.out
    assert "best constant answer" in result.out
    refused("has another config: compare.seeds is 2 there and 3 here", "compare", "--out", folder, "--resume",
            "--seeds", 3)  # fmt: skip
    refused("is not empty", "compare", "--task.name", "parity", "--out", folder)


def test_one_condition_alone(seriatim, tmp_path):
    for held in ("parameters", "time"):
        options = ["--mixers", "[aaren]", "--hold", held, *OPTIONS[2:], "--seeds", 1]
        result = seriatim("compare", "--task.name", "dyck", *options, "--out", tmp_path / held)
        assert result.status == 0
        assert [row["held"] for row in json.loads((tmp_path / held / "report.json").read_text())["rows"]] == [held]


def test_a_run_that_fails_is_reported_and_the_others_go_on(seriatim, tmp_path, monkeypatch):
    from seriatim.objectives import next_token

    calls = iter(range(1000))
    whole = next_token.cross_entropy
    monkeypatch.setattr(next_token, "cross_entropy", lambda *x: whole(*x) * (float("nan") if next(calls) == 1 else 1))
    options = [*OPTIONS, "--hold", "parameters", "--seeds", 1]
    result = seriatim("compare", "--task.name", "parity", *options, "--out", tmp_path / "run")
    assert result.status == 3
    rows = json.loads((tmp_path / "run/report.json").read_text())["rows"]
    assert "the loss is nan at step 2" in rows[0]["failed"][0]
    assert rows[1]["lengths"][0]["accuracy"]["mean"] > 0
    assert "aaren, equal parameters: the loss is nan" in result.out


@pytest.mark.parametrize("mixer", ["gla", "lstm", "mamba", "attention", {"mixer": "window", "size": 4, "heads": 2}])
def test_widths_make_equal_sizes(mixer):
    model = sized(mixer, 2, TASK, {"expansion": 2.0}, 60_000)
    assert abs(model.parameters - 60_000) < 0.025 * 60_000
    assert model.parameters == parameters_of(TASK, model.options)
    without = sized(mixer, 2, TASK, {"feed_forward": "none"}, 60_000)
    assert abs(without.parameters - 60_000) < 0.2 * 60_000


def test_widths_of_classifiers():
    digits = build({"task": "smnist"})
    model = sized("s4d", 2, digits, {"expansion": 2.0}, 60_000)
    assert abs(model.parameters - 60_000) < 0.025 * 60_000


def test_a_mixer_that_has_no_width_is_refused():
    with pytest.raises(SeriatimError, match="no mixer is named 'glb'"):
        sized("glb", 2, TASK, {}, 60_000)


def test_mistakes_are_refused_and_nothing_is_written(refused, tmp_path):
    out = tmp_path / "new/run"

    def compare(*options):
        return "compare", "--task.name", "parity", "--out", out, *OPTIONS, *options

    refused("--out is not given", "compare", "--task.name", "parity")
    refused("--task.name is not given; it must be one of arrow_pointing, copying", "compare", "--out", out)
    refused("hold is 'size'; it must be one of", *compare("--hold", "size"))
    refused("seeds is 0; it must be a whole number above 0", *compare("--seeds", 0))
    refused("mixers is 'gla'; it must be a list such as [gla", *compare("--mixers", "gla"))
    refused("mixers is []; it must be a list", *compare("--mixers", "[]"))
    refused("mixers has gla twice", *compare("--mixers", "[gla, gla]"))
    refused("mixers has {'size': 3}; it must have the key 'mixer'", *compare("--mixers", "[{size: 3}]"))
    refused("no mixer is named 'glb'; there are gla,", *compare("--mixers", "[glb]"))
    refused("gla has no option 'head'", *compare("--mixers", "[{mixer: gla, head: 2}]"))
    refused("steps is 0; it must be above 0 where parameters are held", *compare("--train.steps", 0))
    refused("minutes is 0; it must be above 0 where time is held", *compare("--train.minutes", 0))
    refused("parameters is -1", *compare("--parameters", -1))
    assert not out.parent.exists()


def test_error_bars_stay_between_nothing_and_all():
    spreads = [{"mean": 0.5, "deviation": 0.2}, {"mean": 0.9, "deviation": 0.2}, {"mean": 0.1, "deviation": 0.2}]
    down, up = error_bars(spreads)
    assert down == pytest.approx([0.2, 0.2, 0.1])
    assert up == pytest.approx([0.2, 0.1, 0.2])
