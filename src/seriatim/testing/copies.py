"""Copies of a mixer are that mixer: deepcopy, pickle, state_dict, and the spec that builds it again."""

import io
import json
import pickle
from copy import deepcopy

import torch

from seriatim.core.build import build, spec
from seriatim.core.errors import SeriatimError
from seriatim.core.mixer import Mixer
from seriatim.testing.report import expect, expect_close
from seriatim.testing.subject import Subject, check

__all__ = ["copies", "options_refused", "pickles", "spec_round_trip", "state_dict_round_trip"]


@check()
def copies(subject: Subject) -> None:
    """deepcopy, also after a call that made a graph, gives an equal mixer that shares no memory."""
    y = subject.mixer(subject.live_input(2, 19))[0]
    copy = deepcopy(subject.mixer)
    _expect_equal(subject, copy, "a deepcopy")
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    expect_close(subject.mixer(subject.input(2, 19))[0], y, "outputs of the original after its deepcopy changed", 0.0)


@check()
def pickles(subject: Subject) -> None:
    """pickle, and torch.save, give an equal mixer."""
    _expect_equal(subject, pickle.loads(pickle.dumps(subject.mixer)), "an unpickled copy")
    file = io.BytesIO()
    torch.save(subject.mixer, file)
    file.seek(0)
    _expect_equal(subject, torch.load(file, weights_only=False), "a copy from torch.save")


@check()
def state_dict_round_trip(subject: Subject) -> None:
    """A mixer of the same configuration that loads the state_dict is an equal mixer."""
    other = _built_again(subject)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    file = io.BytesIO()
    torch.save(subject.mixer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    _expect_equal(subject, other, "a mixer that loaded the state_dict")


@check()
def spec_round_trip(subject: Subject) -> None:
    """spec is plain data that survives JSON, and build makes a mixer of the same configuration from it."""
    described = spec(subject.mixer)
    other = _built_again(subject)
    expect(spec(other) == described, f"spec(build(spec(mixer))) is {spec(other)}, not {described}")
    ours, theirs = ({name: tuple(z.shape) for name, z in m.state_dict().items()} for m in (subject.mixer, other))
    expect(ours == theirs, f"the mixer built from its spec has weights {theirs}, not {ours}")


@check()
def options_refused(subject: Subject) -> None:
    """A wrong option is refused with a SeriatimError that names it: an unknown one, -1 for a size, an unknown word."""
    described = spec(subject.mixer)
    name = described.pop("mixer", None) or described.pop("model")
    kind = "model" if "model" in spec(subject.mixer) else "mixer"
    wrong: list[tuple[str, object]] = [("no_such_option", 1)]
    wrong += [(option, -1) for option, value in described.items() if type(value) is int]
    wrong += [(option, "no_such_word") for option, value in described.items() if type(value) is str]
    for option, value in wrong:
        try:
            build({kind: name, **described, option: value})
        except SeriatimError as error:
            expect(option in str(error), f"{option} = {value} is refused with a message that does not name it: {error}")
        else:
            expect(False, f"{option} = {value} is accepted")


def _built_again(subject: Subject) -> Mixer:
    described = spec(subject.mixer)
    try:
        text = json.dumps(described)
    except TypeError as error:
        expect(False, f"spec(mixer) is {described}, which JSON cannot hold: {error}")
    return build(json.loads(text)).to(subject.device).double().eval()


def _expect_equal(subject: Subject, other: Mixer, what: str) -> None:
    x = subject.input(2, 19)
    (y, state), (again, end) = subject.mixer(x), other(x)
    expect_close(again, y, f"outputs of {what}", 1e-12)
    expect_close(subject.after(end, 2), subject.after(state, 2), f"outputs that follow the state made by {what}", 1e-12)
