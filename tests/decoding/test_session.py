import pytest
import torch
from toys import CacheModel, FadingModel

from seriatim.core.errors import SeriatimError
from seriatim.decoding.generate import generate
from seriatim.decoding.sampler import Sampler
from seriatim.decoding.session import fingerprint, load_session, save_session

SAMPLER = Sampler(repetition_penalty=1.1)


def new(cls=FadingModel, seed=1, **options):
    torch.manual_seed(seed)
    return cls(**options)


def ids(generation):
    return [tokens.ids.tolist() for tokens in generation]


@pytest.mark.parametrize("cls", [FadingModel, CacheModel])
def test_a_saved_session_goes_on_as_if_never_stopped(cls, tmp_path):
    model = new(cls)
    start = {"tokens": 20, "sampler": SAMPLER, "generator": torch.Generator().manual_seed(7)}
    never = ids(generate(model, [[1, 2, 3], [4]], **start))

    first = generate(model, [[1, 2, 3], [4]], **{**start, "tokens": 8, "generator": torch.Generator().manual_seed(7)})
    written = ids(first)
    save_session(first.session, tmp_path / "state", model)
    session = load_session(tmp_path / "state", new(cls))
    rest = generate(new(cls), tokens=12, session=session, sampler=SAMPLER, generator=torch.Generator())
    assert written + ids(rest) == never


def test_the_fingerprint_tells_specs_and_weights_apart():
    same = fingerprint(new())
    assert same == fingerprint(new())
    others = [new(seed=2), new(dim=7), new(vocab_size=12), new().double(), new(CacheModel)]
    assert len({same, *map(fingerprint, others)}) == 1 + len(others)
    changed = new()
    with torch.no_grad():
        changed.out.bias[3] += 1e-6
    assert fingerprint(changed) != same


@pytest.mark.parametrize("other", [new(seed=2), new(dim=7), new(CacheModel)])
def test_the_state_of_another_model_is_refused(other, tmp_path):
    model = new()
    save_session(generate(model, [[1]], tokens=2).session, tmp_path / "state", model)
    with pytest.raises(SeriatimError, match="belongs to another model") as refused:
        load_session(tmp_path / "state", other)
    assert "\n" not in str(refused.value)


def test_files_that_are_no_session_are_refused(tmp_path):
    with pytest.raises(SeriatimError, match="does not exist"):
        load_session(tmp_path / "nothing", new())
    (tmp_path / "text").write_text("hello, this is not a state at all")
    with pytest.raises(SeriatimError, match="cannot be read"):
        load_session(tmp_path / "text", new())
    model = new()
    save_session(generate(model, [[1]], tokens=2).session, tmp_path / "state", model)
    whole = (tmp_path / "state").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-7])
    with pytest.raises(SeriatimError, match="cannot be read"):
        load_session(tmp_path / "cut", model)
