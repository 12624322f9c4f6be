"""ConvS5 and ConvLSTM, mixers of frames."""

import pytest
import torch
from torch import nn

from agreement import assert_close, gradients, normal
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.vision import conv_lstm, conv_s5
from seriatim.vision.conv_lstm import ConvLSTM
from seriatim.vision.conv_s5 import ConvS5
from seriatim.vision.frames import FlatFrames

MAKERS = {
    "conv_s5": lambda: ConvS5(4, 6, blocks=3, input_kernel=5, output_kernel=1, groups=2),
    "conv_s5 with a residual block": lambda: ConvS5(2, 4, activation="resnet", rate=2.0),
    "conv_lstm": lambda: ConvLSTM(2, 5),
}


@pytest.fixture(params=MAKERS)
def mixer(request):
    torch.manual_seed(0)
    return MAKERS[request.param]().double()


def film(mixer, time=6, height=3, width=4, seed=1):
    return normal(seed, 2, time, mixer.channels, height, width)


def test_agrees_with_the_reference(mixer):
    x = film(mixer)
    found, wanted = mixer(x)[0], (conv_lstm if isinstance(mixer, ConvLSTM) else conv_s5).reference(mixer, x)
    inputs = [x, *mixer.parameters()]
    assert_close([found], [wanted], 1e-10, "value")
    assert_close(gradients(found, inputs), gradients(wanted, inputs), 1e-9, "gradient")


def test_frames_one_at_a_time_and_films_that_begin_in_the_middle(mixer):
    x, reset = film(mixer).detach(), torch.zeros(2, 6, dtype=torch.bool)
    reset[1, 4] = True
    whole, end = mixer(x, reset=reset, lengths=torch.tensor([3, 6]))
    state, found = mixer.init_state(2, 3, 4), []
    for t in range(6):
        y, state = mixer.step(x[:, t], state)
        found.append(y)
    assert_close([whole[0, :3], whole[1, :4]], [torch.stack(found, 1)[0, :3], torch.stack(found, 1)[1, :4]], 1e-12, "y")
    assert_close([whole[1:, 4:]], [mixer(x[1:, 4:])[0]], 1e-12, "value after the reset")
    kept = mixer.rewind(mixer.init_state(2, 3, 4), x, torch.tensor([3, 6]))
    wanted = mixer(x[:1], mixer(x[:1, :3])[1])[0]
    for state in (end, kept):
        assert_close([mixer(x[:1], _rows(state))[0]], [wanted], 1e-12, "value after the padding")


def _rows(state):
    return type(state)(*(z[:1] for z in state)) if isinstance(state, tuple) else state[:1]


def test_a_pixel_knows_its_neighbourhood_and_the_past_of_it(mixer):
    x = film(mixer, time=2, height=9, width=9)
    y = mixer(x)[0] if isinstance(mixer, ConvLSTM) else mixer.init_state(2, 9, 9)
    if not isinstance(mixer, ConvLSTM):  # the norm of a frame mixes all of it; the state does not
        y = mixer(x)[1].sum(-1).movedim(-1, 1).unsqueeze(1)
    (seen,) = torch.autograd.grad(y[0, -1, 0, 4, 4], x)
    reach = (mixer.kernel if isinstance(mixer, ConvLSTM) else mixer.input_kernel) // 2
    near = torch.zeros(9, 9, dtype=torch.bool)
    near[4 - reach : 5 + reach, 4 - reach : 5 + reach] = True
    now, before = seen[0, 1].abs().sum(0) > 0, seen[0, 0].abs().sum(0) > 0
    assert torch.equal(now, near)
    assert not seen[1].any()
    if isinstance(mixer, ConvLSTM):
        assert before.sum() > now.sum()  # what h saw grows frame by frame
    else:
        assert torch.equal(before, near)  # a state kernel of one pixel: it does not


def test_frames_of_one_pixel_are_s5():
    """With kernels of one pixel, the state of ConvS5 is S5's."""
    torch.manual_seed(0)
    conv = ConvS5(6, 8, blocks=2, input_kernel=1, output_kernel=1).double()
    plain = build("s5", dim=6, state_size=8, blocks=2).double()
    weights = {name: conv.get_parameter(name) for name in ("log_step", "real", "imaginary")}
    plain.load_state_dict({**plain.state_dict(), **weights, "B": conv.B[:, :, 0, 0], "C": conv.C[:, :, 0, 0]})
    x = normal(2, 3, 20, 6)
    found, wanted = conv(x[..., None, None])[1], plain(x)[1]
    assert_close([found.squeeze((1, 2))], [wanted], 1e-12, "state")


def test_frames_of_one_pixel_are_an_lstm():
    torch.manual_seed(0)
    conv, cell = ConvLSTM(5, 3).double(), nn.LSTMCell(5, 5).double()
    order = [0, 1, 3, 2]  # torch has g before o

    def turned(weight):
        return weight.unflatten(0, (4, 5))[order].flatten(0, 1)

    with torch.no_grad():
        cell.weight_ih.copy_(turned(conv.input[:, :, 1, 1]))
        cell.weight_hh.copy_(turned(conv.recurrent[:, :, 1, 1]))
        cell.bias_ih.copy_(turned(conv.bias.normal_()))
        cell.bias_hh.zero_()
    x = normal(0, 2, 7, 5)
    state, wanted = None, []
    for t in range(7):
        state = cell(x[:, t], state)
        wanted.append(state[0])
    assert_close([conv(x[..., None, None])[0].squeeze((3, 4))], [torch.stack(wanted, 1)], 1e-12, "value")


def test_begins_as_the_official_code():
    torch.manual_seed(0)
    mixer = ConvS5(64, 32, blocks=2)
    assert abs(mixer.B.square().sum(-1).mean() * 64 * 9 / 2 - 1) < 0.05
    assert abs(mixer.C.square().sum(-1).mean() * 32 * 9 / 2 - 1) < 0.05
    assert abs(ConvLSTM(32).input.square().mean() * 2 * 32 * 9 / 2 - 1) < 0.05
    assert mixer.log_step.exp().min() >= 1e-3
    assert (mixer.real + 0.5).abs().max() < 1e-6


def test_clipped_eigenvalues_stay_finite():
    for clip in (False, True):
        mixer = ConvS5(2, 2, clip_eigenvalues=clip)
        with torch.no_grad():
            mixer.real.fill_(9.0)
            mixer.log_step.fill_(-1.0)
        assert mixer(torch.randn(1, 300, 2, 2, 2))[1].isfinite().all() == clip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvS5(4, 5), "state_size / blocks must be even"),
        (lambda: ConvS5(4, input_kernel=2), "input_kernel is 2; it must be odd"),
        (lambda: ConvS5(4, groups=3), "channels is 4 and groups is 3"),
        (lambda: ConvS5(4, activation="relu"), "activation is 'relu'; it must be one of"),
        (lambda: ConvS5(4, step_min=0.0), "step_min is 0.0"),
        (lambda: ConvLSTM(4, 4), "kernel is 4; it must be odd"),
        (lambda: ConvLSTM(0), "channels is 0; it must be a whole number above 0"),
        (lambda: ConvLSTM(4)(torch.zeros(1, 2, 3, 5, 5)), r"x has shape \(1, 2, 3, 5, 5\) .* \(batch, time, 4, height"),
        (
            lambda: ConvS5(4)(torch.zeros(1, 2, 4, 5, 5), ConvS5(4).init_state(1, 5, 6)),
            r"state has shape \[1, 5, 6, 2, 2\], not \[1, 5, 5, 2, 2\]",
        ),
        (lambda: ConvLSTM(4)(torch.zeros(1, 2, 4, 5, 5), reset=torch.zeros(1, 3, dtype=torch.bool)), "reset has shape"),
        (lambda: ConvLSTM(4)(torch.zeros(1, 2, 4, 5, 5), lengths=torch.tensor([3])), "lengths runs from 3 to 3"),
        (lambda: FlatFrames({"mixer": "gru", "dim": 4}, 2, 2), "inner is a GRU; it must read frames"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(SeriatimError, match=message):
        call()
