"""The model of films: it tells the next frame, and reads its own."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.errors import SeriatimError
from seriatim.vision.film import FilmModel, reference

CONV_S5, CONV_LSTM = "seriatim.vision.conv_s5:ConvS5", "seriatim.vision.conv_lstm:ConvLSTM"
LAYERS = {
    "conv_s5": [CONV_S5, {"mixer": CONV_S5, "activation": "resnet", "state_size": 6}],
    "conv_lstm": [CONV_LSTM, CONV_LSTM],
}


@pytest.fixture(params=LAYERS)
def model(request):
    torch.manual_seed(0)
    return FilmModel(dim=4, layers=LAYERS[request.param], depths=[4, 8, 4], groups=2).double().eval()


def film(time=6, channels=1, height=8, width=12):
    return torch.rand(2, time, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_agrees_with_the_reference(model):
    x = film(time=3)
    with torch.no_grad():
        assert_close([model(x)[0]], [reference(model, x)], 1e-11, "frames")


def test_pieces_and_steps_are_the_whole(model):
    x, state, pieces, steps = film(time=9), None, [], []
    with torch.no_grad():
        whole, end = model(x)
        for piece in x.split([1, 5, 0, 3], 1):
            y, state = model(piece, state)
            pieces.append(y)
        assert_close([torch.cat(pieces, 1)], [whole], 1e-11, "pieces")
        again = model.init_state(2, 8, 12)
        for frame in x.unbind(1):
            y, again = model.step(frame, again)
            steps.append(y)
        assert_close([torch.stack(steps, 1)], [whole], 1e-11, "steps")
        after = [model(x, carried)[0] for carried in (end, state, again)]
    assert_close(after[1:], [after[0]] * 2, 1e-11, "what the states say")


def test_a_rollout_is_a_literal_loop(model):
    context = film(time=4)
    with torch.no_grad():
        found, seen = model.rollout(context, 5), context
        for _ in range(5):
            seen = torch.cat([seen, model(seen)[0][:, -1:]], 1)
    assert_close([found], [seen[:, 4:]], 1e-10, "rollout")


def test_no_frame_tells_of_a_later_one(model):
    x = film(time=5).requires_grad_()
    (seen,) = torch.autograd.grad(model(x)[0][0, 2].sum(), x)
    assert (seen[0].abs().amax((1, 2, 3)) > 0).tolist() == [True, True, True, False, False]
    assert not seen[1].any()


def test_frames_are_shades_of_any_channels():
    torch.manual_seed(0)
    model = FilmModel(channels=3, dim=8, depths=[4])  # one depth: the mixers see the whole frame
    y, _ = model(3 * film(channels=3).float() - 1)
    assert y.shape == (2, 6, 3, 8, 12)
    assert (y.min() >= 0) & (y.max() <= 1)


def test_learns_where_a_point_flies():
    """A white column moves to the right by one pixel a frame, and goes on where it is not seen."""
    torch.manual_seed(0)
    model = FilmModel(dim=8, depths=[8], layers=[CONV_S5])
    at = (torch.arange(8) + torch.arange(8)[:, None]) % 8
    films = torch.nn.functional.one_hot(at, 8).float()[:, :, None, None, :].expand(8, 8, 1, 4, 8)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = (model(films[:, :-1])[0] - films[:, 1:]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found = model.rollout(films[:, :4], 4)
    assert torch.equal(found.round(), films[:, 4:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FilmModel(layers=[]), r"layers is \[\]; it must be a list of at least one"),
        (lambda: FilmModel(layers="conv_s5"), "layers is 'conv_s5'; it must be a list"),
        (lambda: FilmModel(layers=["gla"]), "gla has no option 'channels'"),
        (lambda: FilmModel(dim=4, layers=[{"mixer": CONV_S5, "channels": 8}]), r"layers\[0\] is .*of dim channels"),
        (lambda: FilmModel(depths=8), "depths is 8; it must be a list of at least one number"),
        (lambda: FilmModel(depths=["8"]), r"depths\[0\] is '8'; it must be a whole number"),
        (lambda: FilmModel(depths=[8, 0]), r"depths\[1\] is 0; it must be a whole number"),
        (lambda: FilmModel()(torch.zeros(1, 2, 1, 0, 8)), "frames have 0 x 8 pixels; .* multiples of 4"),
        (lambda: FilmModel(depths=[8, 6]), "channels is 6 and groups is 4"),
        (lambda: FilmModel()(torch.zeros(1, 2, 1, 8, 10)), "frames have 8 x 10 pixels; .* multiples of 4"),
        (lambda: FilmModel()(torch.zeros(1, 2, 3, 8, 8)), r"x has shape \(1, 2, 3, 8, 8\)"),
        (lambda: FilmModel().rollout(torch.zeros(1, 0, 1, 8, 8), 2), "the context's time is 0"),
        (lambda: FilmModel().rollout(torch.zeros(1, 1, 1, 8, 8), 0), "frames is 0"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(SeriatimError, match=message):
        call()
