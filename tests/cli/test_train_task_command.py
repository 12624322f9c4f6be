import json
import shutil

import pytest
from command_line import TINY_TASK

from seriatim.cli import main
from seriatim.train.log import read_log


@pytest.fixture(scope="module")
def parity(tmp_path_factory):
    """A run of 6 steps with checkpoints at 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("runs") / "parity"
    steps = ["--train.steps", "6", "--train.checkpoint_every", "2", "--train.evaluate_every", "3"]
    assert main(["train", "task", "--task.name", "parity", "--out", str(folder), *TINY_TASK, *steps]) == 0
    return folder


def test_a_run_keeps_its_report_and_its_picture(parity):
    config = json.loads((parity / "config.json").read_text())
    assert config["task"] == {"task": "parity"}
    assert config["lengths"] == {"shortest": 2, "longest": 8, "tested": [4, 8, 16, 32], "sequences": 10}
    report = json.loads((parity / "report.json").read_text())
    assert [row["length"] for row in report["lengths"]] == [4, 8, 16, 32]
    assert report["steps"] == 6
    (last,) = [record for record in read_log(parity / "log.jsonl") if record["step"] == 6]
    assert last["validation_error"] == pytest.approx(1 - report["lengths"][1]["accuracy"])
    assert (parity / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_every_length_and_level(seriatim, tmp_path):
    options = ["--task.name", "mqar", "--task.keys", 8, "--lengths.tested", "[4, 16]", *TINY_TASK, "--train.steps", 1]
    result = seriatim("train", "task", *options, "--out", tmp_path / "run")
    assert result.status == 0
    title, _, heads, *rows = result.out.splitlines()
    assert title.startswith("mqar (pairs 8, keys 8, power 0.01, noise): aaren; ")
    assert heads.split()[-3:] == ["1", "2", "4"]
    assert [row.split()[0] for row in rows] == ["4", "16"]
    assert "(trained)" in rows[0]


def test_a_run_goes_on_with_its_own_task(seriatim, refused, parity, tmp_path):
    run = shutil.copytree(parity, tmp_path / "run")
    whole = (run / "checkpoints/step-00000006/model.safetensors").read_bytes()
    report = json.loads((run / "report.json").read_text())
    shutil.rmtree(run / "checkpoints/step-00000006")
    (run / "report.json").unlink()
    result = seriatim("train", "task", "--out", run, "--resume")
    assert result.status == 0
    assert "going on after step 4" in result.err
    assert (run / "checkpoints/step-00000006/model.safetensors").read_bytes() == whole
    assert json.loads((run / "report.json").read_text())["lengths"] == report["lengths"]
    refused("has another config: task.task is", "train", "task", "--out", run, "--resume", "--task.name", "dyck")
    refused("where there is no run to resume", "train", "task", "--out", tmp_path / "none", "--resume")


def test_other_commands_know_it(seriatim, refused, parity):
    shown = seriatim("info", parity).out
    assert "task parity" in shown
    assert "longest 8" in shown
    assert json.loads(seriatim("info", parity, "--json").out)["task"] == {"task": "parity"}
    refused("was trained on the task 'parity'; it has read no text", "generate", parity)
    refused("was trained on the task 'parity'; it has read no text", "evaluate", parity)


def test_a_series_is_classified(seriatim, refused, tmp_path):
    pytest.importorskip("sklearn")
    options = ["--task.name", "smnist", "--model.layers", "[s4d]", *TINY_TASK[:2], "--train.steps", 2]
    result = seriatim("train", "task", *options, "--lengths.sequences", 20, "--out", tmp_path / "run")
    assert result.status == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["model"]["model"] == "classifier"
    assert config["lengths"] == {"shortest": 64, "longest": 64, "tested": [64], "sequences": 20}
    assert "digit" in result.out
    assert seriatim("train", "task", "--out", tmp_path / "run", "--resume").status == 0
    refused("all sequences of this task have 64 elements", "train", "task", "--task.name", "smnist",
            "--lengths.longest", 32, "--out", tmp_path / "other")  # fmt: skip
    shown = seriatim("train", "task", "--task.name", "smnist", "--help").out
    assert "--model.pool" in shown
    assert "--model.ngram_heads" not in shown


def test_the_help_shows_the_tasks_own_options(seriatim):
    assert "--task.modulus" not in seriatim("train", "task", "--help").out
    shown = " ".join(seriatim("train", "task", "--task.name", "modular_counting", "--help").out.split())
    assert "--task.modulus N m, 2 or more (default: 3)" in shown
    assert "--train.window" not in shown


def test_a_yaml_file_names_the_task(seriatim, tmp_path):
    (tmp_path / "run.yaml").write_text("task: {name: dyck, kinds: 3}\nlengths: {longest: 8, sequences: 4}\n")
    run = tmp_path / "run"
    options = ["--model.layers", "[aaren]", "--model.dim", 8, "--train.steps", 1, "--out", run]
    assert seriatim("train", "task", "--config", tmp_path / "run.yaml", *options).status == 0
    assert json.loads((run / "config.json").read_text())["task"] == {"task": "dyck", "kinds": 3, "depth": 8}


def test_mistakes_are_refused_and_nothing_is_written(refused, tmp_path):
    out = tmp_path / "new/run"

    def train(*options, name="parity"):
        return "train", "task", "--task.name", name, "--out", out, *TINY_TASK, "--train.steps", 1, *options

    refused("--task.name is not given; it must be one of arrow_pointing, copying, dyck,", "train", "task", "--out", out)
    refused("--out is not given", "train", "task", "--task.name", "parity")
    refused("no task is named 'parties'; there are parity,", *train(name="parties"))
    refused("there is no option 'bits'; the signature is parity()", *train("--task.bits", 3))
    refused("there is no option 'modulo'; the signature is modular_counting(modulus=3)",
            *train("--task.modulo", 3, name="modular_counting"))  # fmt: skip
    refused("--task.modulus is 'x'; it must be int", *train("--task.modulus", "x", name="modular_counting"))
    refused("modulus is 1; it must be 2 or more", *train("--task.modulus", 1, name="modular_counting"))
    refused("shortest is 9 and longest is 8", *train("--lengths.shortest", 9))
    refused("from 5, the least that the task needs", *train("--lengths.longest", 3, name="listops"))
    refused("length is 1; ", *train("--lengths.tested", "[1]", name="listops"))
    sets = train("--lengths.tested", "[800]", "--lengths.longest", 32, name="set_disjointness")
    refused("length is 800, too long for 256 symbols", *sets)
    refused("layers[0]: no mixer is named 'glb'", *train("--model.layers", "[glb]"))
    refused("no option is named --train.window", *train("--train.window", 3))
    refused("sequences is 0; it must be a whole number above 0", *train("--lengths.sequences", 0))
    assert not out.parent.exists()
