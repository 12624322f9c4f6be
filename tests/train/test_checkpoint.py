import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tiny_language import final_weights, new_model, new_run, next_token, settings, training_batches
from torch import Tensor, nn

from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.train import checkpoint
from seriatim.train.generators import seed
from seriatim.train.loop import fit
from seriatim.train.optimiser import adamw
from seriatim.train.training import Progress, Training
from seriatim.train.weights import load_weights, weights
from small_disk import files_of_at_most


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of twelve steps, with checkpoints after 5, 10 and 12."""
    path = tmp_path_factory.mktemp("runs") / "r1"
    chosen, model = settings(), new_model()
    fit(model, next_token, training_batches(), chosen, new_run(path, model, chosen), display="silent")
    return path


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may damage."""
    for file in trained.rglob("*"):
        if file.is_file():
            copy = tmp_path / "r1" / file.relative_to(trained)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    return tmp_path / "r1"


def newest(run):
    return run / "checkpoints" / "step-00000012"


def flip(path: Path, place: float = 0.5):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def new_training(dim=8):
    model = new_model(dim=dim)
    return Training(model, adamw(model, settings()), training_batches())


DAMAGES = {
    "truncated": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-9]
    ),
    "bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "bit of the optimiser": lambda folder: flip(folder / "training.safetensors"),
    "bit of the state": lambda folder: flip(folder / "state.safetensors", 0.99),
    "file lost": lambda folder: (folder / "state.safetensors").unlink(),
    "meta lost": lambda folder: (folder / "meta.json").unlink(),
    "meta truncated": lambda folder: (folder / "meta.json").write_bytes((folder / "meta.json").read_bytes()[:100]),
    "meta empty": lambda folder: (folder / "meta.json").write_bytes(b""),
    "meta of another kind": lambda folder: (folder / "meta.json").write_text("[1]"),
    "meta edited": lambda folder: (folder / "meta.json").write_text(
        (folder / "meta.json").read_text().replace('"step": 12', '"step": 11')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run, damage, capsys):
    DAMAGES[damage](newest(run))
    said = []
    assert checkpoint.newest(run, said.append) == run / "checkpoints" / "step-00000010"
    assert len(said) == 1
    assert "step-00000012" in said[0]
    assert "using step-00000010" in said[0]
    model = checkpoint.load(run)
    assert "step-00000012" in capsys.readouterr().err
    assert weights(model).keys() == weights(new_model()).keys()
    with pytest.raises(checkpoint.CheckpointError, match="step-00000012"):
        checkpoint.load(newest(run))


def test_all_damaged_is_an_error_that_names_them(run):
    for folder in (run / "checkpoints").iterdir():
        flip(folder / "model.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint in .*step-00000012.*step-00000010"):
        checkpoint.load(run)
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        resumed(run)


def resumed(run, **options):
    chosen, model = settings(**options), new_model()
    fit(model, next_token, training_batches(), chosen, new_run(run, model, chosen, resume=True), display="silent")
    return model


def test_training_goes_on_from_the_one_before_and_ends_the_same(run, trained):
    for step in ("step-00000012", "step-00000010"):
        flip(run / "checkpoints" / step / "model.safetensors")
    resumed(run)
    for name, value in final_weights(trained).items():
        assert torch.equal(value, final_weights(run)[name])
    assert sorted(folder.name for folder in (run / "checkpoints").iterdir()) == [
        "damaged-step-00000010",
        "damaged-step-00000012",
        "step-00000005",
        "step-00000010",
        "step-00000012",
    ]


def test_load_gives_the_trained_model_ready_to_use(run):
    for path in (run, str(run), newest(run)):
        model = checkpoint.load(path)
        assert type(model).__name__ == "TinyLanguage"
        assert not model.training
        assert next(model.parameters()).device.type == "cpu"
        assert model.head.weight is model.embedding.weight
    before, after = final_weights(run / "checkpoints" / "step-00000010"), final_weights(run)
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_whoever_may_read_one_file_may_read_all(trained):
    assert len({file.stat().st_mode for file in newest(trained).iterdir()}) == 1


def test_load_refuses_what_is_no_run(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "absent", "is not a folder"), (tmp_path / "empty", "holds no checkpoint")):
        with pytest.raises(SeriatimError, match=message):
            checkpoint.load(path)
    with pytest.raises(SeriatimError, match="which is 'newst'"):
        checkpoint.load(run, "newst")
    with pytest.raises(SeriatimError, match="kept no best checkpoint"):
        checkpoint.load(run, "best")


def test_another_format_is_refused(run):
    meta = json.loads((newest(run) / "meta.json").read_text())
    meta["format"] = 2
    meta["sha256"]["meta.json"] = checkpoint._meta_digest(meta)
    (newest(run) / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(checkpoint.CheckpointError, match="has format 2"):
        checkpoint.load(newest(run))


def test_everything_comes_back(run):
    training = new_training()
    checkpoint.restore(newest(run), training)
    again = newest(run).parent / "step-00000099"
    checkpoint.save(again, training, {})
    for name in ("model", "training", "state"):
        assert (again / f"{name}.safetensors").read_bytes() == (newest(run) / f"{name}.safetensors").read_bytes()
    old, new = (json.loads((folder / "meta.json").read_text()) for folder in (newest(run), again))
    assert {**new, "config": 0, "sha256": 0} == {**old, "config": 0, "sha256": 0}
    assert training.progress.step == 12
    assert training.batches.batches_read == 12


def test_another_model_is_refused(run):
    with pytest.raises(
        SeriatimError, match=r"step-00000012 is of another model: cell\.bias_hh is \[24\] there and \[12\] here"
    ):
        checkpoint.restore(newest(run), new_training(dim=4))


def test_a_failed_write_leaves_the_old_checkpoints(run):
    before = sorted(file.relative_to(run) for file in run.rglob("*"))
    training = new_training()
    checkpoint.restore(newest(run), training)
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        checkpoint.save(newest(run), training, {})
    assert sorted(file.relative_to(run) for file in run.rglob("*")) == before
    assert checkpoint.newest(run) == newest(run)


class Nested(NamedTuple):
    """A state of every kind of leaf."""

    real: Tensor
    places: Tensor
    inner: tuple


class Carrier(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(3))

    def init_state(self, batch):
        return Nested(torch.zeros(batch, 2), torch.zeros(batch, dtype=torch.int64), (torch.zeros(batch, 0, 2), ()))


def test_any_state_and_any_weights_come_back(tmp_path):
    seed(0)
    model = Carrier()
    state = Nested(torch.randn(3, 2), torch.tensor([4, 5, 6]), (torch.randn(3, 7, 2), ()))
    training = Training(model, adamw(model, settings()), training_batches(), state, Progress(step=1))
    checkpoint.save(tmp_path / "step-00000001", training, {})
    other = Carrier()
    other.count += 1
    again = Training(other, adamw(other, settings()), training_batches())
    checkpoint.restore(tmp_path / "step-00000001", again)
    assert isinstance(again.state, Nested)
    assert torch.equal(again.state.real, state.real)
    assert torch.equal(again.state.places, state.places)
    assert torch.equal(again.state.inner[0], state.inner[0])
    assert other.count == 3
    assert other.weight.dtype == torch.bfloat16


def test_weights_that_do_not_fit_are_refused():
    model = nn.Linear(2, 3)
    with pytest.raises(SeriatimError, match="x is of another model: bias is absent there"):
        load_weights(model, {"weight": torch.zeros(3, 2)}, "x")
    with pytest.raises(SeriatimError, match=r"x is of another model: other is \[1\] there and absent here"):
        load_weights(model, {**weights(model), "other": torch.zeros(1)}, "x")


def test_a_language_model_is_loaded_from_its_spec(tmp_path):
    model = build("language_model", vocab_size=257, dim=8, layers=["gru", {"mixer": "window", "size": 4, "heads": 2}])
    training = Training(model, adamw(model, settings()), training_batches())
    checkpoint.save(tmp_path / "step-00000001", training, {})
    again = checkpoint.load(tmp_path / "step-00000001")
    tokens = torch.arange(20)[None]
    assert torch.equal(again(tokens)[0], model.eval()(tokens)[0])
