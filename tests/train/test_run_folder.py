import json
from dataclasses import replace

import pytest

from seriatim.core.errors import SeriatimError
from seriatim.train.durable import new_folder, write_file
from seriatim.train.run_folder import RunFolder
from seriatim.train.settings import TrainSettings

SETTINGS = TrainSettings(steps=10)


def config(settings=SETTINGS, **options):
    return {"model": {"model": "language_model", "layers": ("gla",)}, "train": settings.plain(), **options}


def test_it_is_checked_first_and_written_later(tmp_path):
    run = RunFolder(tmp_path / "runs" / "r1", config(), attachments={"tokenizer.json": "{}"})
    assert not (tmp_path / "runs").exists()
    run.prepare()
    assert json.loads((run.path / "config.json").read_text())["train"]["steps"] == 10
    assert (run.path / "tokenizer.json").read_text() == "{}"
    assert run.steps() == []


def test_a_folder_in_use_is_refused_without_resume(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SeriatimError, match="which is not empty"):
        RunFolder(tmp_path, config())
    with pytest.raises(SeriatimError, match="which is not a run's folder"):
        RunFolder(tmp_path, config(), resume=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_what_a_run_killed_at_its_birth_leaves_can_be_resumed(tmp_path):
    run = RunFolder(tmp_path, config(), attachments={"tokenizer.json": "{}"})
    run.prepare()
    (tmp_path / "config.json").rename(tmp_path / ".partial-config.json")
    (tmp_path / ".partial-log.jsonl").write_text("half")
    (run.checkpoints / ".partial-step-00000001").mkdir()
    (run.checkpoints / ".partial-step-00000001" / "model.safetensors").write_text("half")
    again = RunFolder(tmp_path, config(), resume=True, attachments={"tokenizer.json": "{}"})
    again.prepare()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoints", "config.json", "tokenizer.json"]
    assert list(run.checkpoints.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_cannot_be_is_refused(tmp_path, resume, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SeriatimError, match="is a file"):
            RunFolder(path, config(), resume)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as a user who may write everywhere
    with pytest.raises(SeriatimError, match="no permission to write"):
        RunFolder(tmp_path / "run", config(), resume)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (config(replace(SETTINGS, learning_rate=1.0)), "train.learning_rate is 0.002 there and 1.0 here"),
        (config(data="a.txt"), 'data is absent there and "a.txt" here'),
        ({"train": SETTINGS.plain()}, r'model.model is "language_model" there and absent here'),
        (config() | {"model": {"model": "language_model", "layers": ["mamba"]}}, r'model.layers is \["gla"\] there'),
    ],
)
def test_another_config_is_refused_and_the_key_named(tmp_path, other, message):
    RunFolder(tmp_path, config()).prepare()
    with pytest.raises(SeriatimError, match=message):
        RunFolder(tmp_path, other, resume=True)


def test_settings_that_change_nothing_may_change(tmp_path):
    RunFolder(tmp_path, config()).prepare()
    changed = config(replace(SETTINGS, minutes=5.0, keep=1, checkpoint_every=3))
    RunFolder(tmp_path, changed, resume=True).prepare()
    assert json.loads((tmp_path / "config.json").read_text())["train"]["minutes"] == 5


def test_a_damaged_config_is_refused(tmp_path):
    RunFolder(tmp_path, config()).prepare()
    (tmp_path / "config.json").write_text('{"model"')
    with pytest.raises(SeriatimError, match=r"config\.json cannot be read"):
        RunFolder(tmp_path, config(), resume=True)


def test_checkpoints_are_pruned_and_set_aside(tmp_path):
    run = RunFolder(tmp_path, config())
    run.prepare()
    for step in (5, 10, 15, 100, 100_000_000):
        run.step_folder(step).mkdir()
    run.prune(3, best=5)
    assert [folder.name for folder in run.steps()] == [
        "step-00000005",
        "step-00000015",
        "step-00000100",
        "step-100000000",
    ]
    run.set_aside(run.step_folder(15))
    assert run.steps() == [run.step_folder(5), run.step_folder(15)]
    assert (run.checkpoints / "damaged-step-00000100").is_dir()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    place = tmp_path / "made"

    def fail():
        with new_folder(place) as partial:
            (partial / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    for content in ("one", "two"):
        with new_folder(place) as partial:
            assert not place.exists() or (place / "a").read_text() == "one"
            (partial / "a").write_text(content)
        assert (place / "a").read_text() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]


def test_a_file_is_replaced_whole(tmp_path):
    write_file(tmp_path / "a.json", "one")
    write_file(tmp_path / "a.json", "two")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a.json", "two")]
