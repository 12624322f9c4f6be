import json

import pytest
from torch import nn

import seriatim as sq
from seriatim.core.build import build, names, resolve, spec
from seriatim.core.errors import SeriatimError


def test_names_are_the_files():
    assert {"elman", "lstm", "gru", "aaren", "gla", "mamba", "attention", "window", "stack"} <= set(names())
    assert "base" not in names()
    assert "language_model" in names("model")
    with pytest.raises(SeriatimError, match="mixer, model"):
        names("mixers!")


def test_a_spec_may_be_a_name_or_data():
    by_name = build("gla", dim=16, heads=2)
    by_data = build({"mixer": "gla", "heads": 2}, dim=16)
    assert (
        spec(by_name) == spec(by_data) == {"mixer": "gla", "dim": 16, "heads": 2, "gate_rank": 16, "temperature": 16.0}
    )


@pytest.mark.parametrize("kind", ["mixer", "model"])
def test_specs_survive_json(kind):
    layers = ["elman", {"mixer": "window", "size": 4, "heads": 2}]
    made = build("stack", dim=8, layers=layers) if kind == "mixer" else sq.LanguageModel(11, 8, layers)
    plain = json.loads(json.dumps(spec(made)))
    assert plain == spec(made)
    again = build(plain)
    assert type(again) is type(made)
    again.load_state_dict(made.state_dict())


def test_the_nearest_name_comes_first():
    with pytest.raises(SeriatimError, match="no mixer is named 'glaa'; there are gla,"):
        build("glaa", dim=16)


def test_a_wrong_option_shows_the_signature():
    with pytest.raises(
        SeriatimError, match=r"gla has no option 'head'; its signature is gla\(dim: int, heads: int = 4"
    ):
        build("gla", dim=16, head=2)
    with pytest.raises(SeriatimError, match="gla needs the option 'dim'"):
        build("gla")


@pytest.mark.parametrize("bad", [3, {"heads": 2}, {"mixer": "gla", "model": "language_model"}])
def test_a_bad_spec_is_named(bad):
    with pytest.raises(SeriatimError, match="a spec is"):
        build(bad, dim=16)


def test_an_own_class_is_named_by_its_path():
    assert resolve("torch.nn:Linear") is nn.Linear
    with pytest.raises(SeriatimError, match="cannot be imported"):
        resolve("torch.nn:Linnear")
    with pytest.raises(SeriatimError, match="cannot be imported"):
        resolve("no_such_module:Thing")


def test_a_layer_that_is_wrong_is_numbered():
    with pytest.raises(SeriatimError, match=r"layers\[1\]: gla has no option 'size'"):
        build("stack", dim=8, layers=["elman", {"mixer": "gla", "size": 3}])
    with pytest.raises(SeriatimError, match="layers is 'gla'"):
        build("stack", dim=8, layers="gla")
    with pytest.raises(SeriatimError, match=r"layers\[0\]: dim is 8 and heads is 3"):
        build("stack", dim=8, layers=[{"mixer": "lstm", "heads": 3}])


def test_a_layer_that_is_no_mixer_of_features_is_refused():
    for layer in ("seriatim.nn.norms:RMSNorm", {"model": "language_model", "vocab_size": 3}):
        with pytest.raises(SeriatimError, match=r"layers\[0\] is a \w+; it must be a mixer of features"):
            build("stack", dim=8, layers=[layer])


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("lstm", "heads", 2.0), ("window", "size", 2.5), ("mamba", "expand", 1.5), ("gla", "gate_rank", True)],
)
def test_a_size_is_a_whole_number(name, option, value):
    with pytest.raises(SeriatimError, match=f"{option} is {value}; it must be a whole number above 0"):
        build(name, dim=16, **{option: value})


class Forgetful(nn.Module):
    def __init__(self, size: int):
        super().__init__()


def test_an_argument_that_is_not_kept_is_named():
    with pytest.raises(SeriatimError, match="Forgetful does not keep its argument 'size'"):
        spec(Forgetful(3))
