"""check_mixer: correct mixers of every kind pass, skips need reasons that hold, a failure says what and how far."""

import re

import pytest
import torch
from faulty_making import BranchesOnValues, CannotBeCopied, ComputesAnotherEquation
from faulty_reading import ForgetsResetsInMidChunk
from toy_mixers import Around, Cache, Fade, Pointwise, Speaker

from seriatim.core.errors import SeriatimError
from seriatim.testing import CHECKS, ConformanceError, check_mixer

REASON = "its equation is another one"


class Broken(Pointwise):
    def mix(self, x, state, reset, lengths):
        raise RuntimeError("no")


def toy(name: str):
    torch.manual_seed(0)
    return {
        "fade": lambda: Fade(4),
        "cache": lambda: Cache(4),
        "around": lambda: Around(4),
        "pointwise": lambda: Pointwise(4),
        "speaker": lambda: Speaker(11, 4),
    }[name]()


@pytest.mark.parametrize(
    ("name", "inapplicable"),
    [
        ("fade", {"carries_nothing"}),
        ("cache", {"carries_nothing"}),
        ("around", {"step_outputs", "chunk_outputs", "causal_gradients", "rewind_forgets", "state_loads"}),
        ("pointwise", {"carries_nothing", "state_loads", "state_forks", "chunk_states"}),
        ("speaker", {"carries_nothing", "causal_gradients", "gradcheck_input", "rows_have_no_gradient_across"}),
    ],
)
def test_a_correct_mixer_passes(name, inapplicable, capsys):
    report = check_mixer(toy(name))
    assert inapplicable <= report.inapplicable.keys()
    assert {*report.passed, *report.inapplicable} == CHECKS.keys()
    assert report.skipped == {}
    assert capsys.readouterr() == ("", "")


def test_the_given_mixer_is_left_as_it_is():
    mixer = toy("fade").train()
    mixer(torch.randn(2, 5, 4))[0].sum().backward()
    before = [(parameter.detach().clone(), parameter.grad.clone()) for parameter in mixer.parameters()]
    random_state = torch.get_rng_state()
    check_mixer(mixer, only=set(CHECKS) - {"compiles", "compiles_with_state", "exports", "exports_with_state"})
    assert mixer.training
    assert torch.equal(torch.get_rng_state(), random_state)
    for parameter, (values, gradient) in zip(mixer.parameters(), before, strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, values)
        assert torch.equal(parameter.grad, gradient)


def test_a_failure_says_which_property_which_arguments_and_how_far():
    with pytest.raises(ConformanceError) as caught:
        check_mixer(ForgetsResetsInMidChunk(4), only=["reset_in_mid_chunk", "layout"])
    assert caught.value.failures.keys() == {"reset_in_mid_chunk"}
    message = str(caught.value)
    assert message.startswith("ForgetsResetsInMidChunk does not conform: 1 of 2 checks failed")
    assert "outputs of row 0 with resets at [5], T = 41, from a carried state" in message
    assert re.search(
        r"off by [\d.e-]+ \(relative [\d.e-]+\) in \d+ of \d+ values, first at \[5, 0\], \S+ instead of", message
    )


def test_an_error_of_the_mixer_is_shown_with_its_place():
    with pytest.raises(ConformanceError, match=r"compiles: raised \w+: .*graphs.py:\d+ in ") as caught:
        check_mixer(BranchesOnValues(4), only=["compiles", "layout"])
    assert caught.value.__cause__ is not None


def test_all_failures_are_collected():
    with pytest.raises(ConformanceError) as caught:
        check_mixer(ForgetsResetsInMidChunk(4), only=["reset_in_mid_chunk", "reset_adjacent", "reset_states"])
    assert len(caught.value.failures) == 3


def test_checks_that_saw_the_same_are_named_together():
    with pytest.raises(ConformanceError, match=r"3 of 3 .*\n  layout, strides, pickles: raised RuntimeError: no"):
        check_mixer(Broken(4), only=["layout", "strides", "pickles"])


def test_a_mixer_that_cannot_be_copied_is_refused_at_once():
    with pytest.raises(ConformanceError, match=r"copies|deepcopy") as caught:
        check_mixer(CannotBeCopied(4))
    assert caught.value.failures.keys() == {"copies"}


def test_a_mixer_needs_a_reference():
    with pytest.raises(ConformanceError, match=r"equals_reference: has no reference.*faulty_making"):
        check_mixer(ComputesAnotherEquation(4), only=["equals_reference"])
    assert check_mixer(
        ComputesAnotherEquation(4), only=["equals_reference"], skip={"equals_reference": REASON}
    ).skipped == {"equals_reference": REASON}


def test_a_skip_that_would_pass_fails():
    with pytest.raises(ConformanceError, match=r"layout: is skipped \(.*\), but passes; remove the skip"):
        check_mixer(toy("fade"), only=["layout"], skip={"layout": REASON})


def test_a_skip_that_does_not_apply_fails():
    with pytest.raises(
        ConformanceError, match=r"step_outputs: is skipped .*, but does not apply: the mixer is not causal"
    ):
        check_mixer(toy("around"), only=["step_outputs"], skip={"step_outputs": REASON})


@pytest.mark.parametrize("reason", ["", "  ", None])
def test_a_skip_needs_a_reason(reason):
    with pytest.raises(SeriatimError, match=r"skip\['layout'\].*written reason"):
        check_mixer(toy("fade"), skip={"layout": reason})


@pytest.mark.parametrize("argument", ["skip", "only"])
def test_an_unknown_check_is_refused(argument):
    with pytest.raises(
        SeriatimError, match=f"{argument} names 'reset_state', which is no check; there are reset_states"
    ):
        check_mixer(toy("fade"), **{argument: {"reset_state": REASON}})


def test_what_is_no_mixer_is_refused():
    with pytest.raises(SeriatimError, match="mixer is Linear; it must be"):
        check_mixer(torch.nn.Linear(2, 2))


def test_the_report_and_the_log():
    lines: list[str] = []
    report = check_mixer(toy("around"), only=["layout", "step_outputs"], log=lines.append)
    assert report.passed == ["layout"]
    assert report.inapplicable == {"step_outputs": "the mixer is not causal"}
    assert [line.split(" (")[0] for line in lines] == ["layout: passed", "step_outputs: does not apply"]
    assert str(report).startswith("Around conforms: 1 checks passed, 0 skipped, 1 do not apply")


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_is_documented_in_one_line(name):
    assert CHECKS[name].summary.endswith(".")
    assert CHECKS[name].__doc__ == CHECKS[name].summary
