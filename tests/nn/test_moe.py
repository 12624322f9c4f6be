import pytest
import torch

from agreement import assert_close, normal
from seriatim import build
from seriatim.core import taps
from seriatim.core.errors import SeriatimError
from seriatim.core.stepping import recording
from seriatim.nn.moe import MixtureOfExperts, reference
from seriatim.nn.routing import imbalance, top_scores


def made(**options):
    torch.manual_seed(0)
    return MixtureOfExperts(6, 5, **options).double()


@pytest.mark.parametrize("options", [{}, {"experts": 3, "active": 3}, {"experts": 4, "active": 1, "normalize": True}])
@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_both_ways_are_the_equations(options, tokens):
    layer, x = made(**options), normal(1, tokens, 6)
    wanted, found = reference(layer, x), layer(x)
    with recording():
        whole = layer(x)
    assert_close([found, whole], [wanted, wanted], 1e-12, "value")
    inputs = [x, *layer.parameters()]
    gradients = [torch.autograd.grad(y.square().sum() + 0 * sum(p.sum() for p in inputs), inputs)
                 for y in (wanted, found, whole)]  # fmt: skip
    assert_close(gradients[1], gradients[0], 1e-11, "gradient")
    assert_close(gradients[2], gradients[0], 1e-11, "gradient")


def test_the_best_scores_and_the_first_of_equal_ones():
    scores = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])
    wanted = torch.tensor([[0.0, 0.4, 0.3, 0.0], [0.25, 0.25, 0.0, 0.0]])
    assert torch.equal(top_scores(scores, 2), wanted)


def test_imbalance_is_1_where_all_are_used_alike_and_more_where_one_is():
    even = torch.eye(4).repeat(2, 1)
    assert imbalance(even, even > 0, 1).item() == pytest.approx(1)
    one = torch.zeros(8, 4)
    one[:, 0] = 1
    assert imbalance(one, one > 0, 1).item() == pytest.approx(4)
    assert imbalance(torch.zeros(0, 4), torch.zeros(0, 4) > 0, 1).item() == 0


def test_the_loss_is_offered_to_the_objective():
    model = build("language_model", vocab_size=11, dim=8, layers=["gla"], feed_forward="moe")
    with taps.collect(model) as found:
        model(torch.arange(10).view(2, 5))
    assert 0.01 * 0.9 < found.loss().item() < 0.08
    (weights,) = found.values["stack.blocks.0.feed_forward.weights"]
    assert ((weights > 0).sum(-1) == 2).all()


def test_training_balances_the_experts():
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, 8, experts=4, active=1, balance=1.0)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[0, 0] = 3.0  # so that nearly all tokens go one way
    x = torch.randn(512, 8).index_fill(1, torch.tensor(0), 1.0)
    optimiser = torch.optim.Adam(layer.router.parameters(), lr=0.05)
    shares = []
    for _ in range(60):
        with taps.collect(layer) as found:
            layer(x)
        shares.append((found.values["weights"][0] > 0).float().mean(0).max().item())
        optimiser.zero_grad()
        found.loss().backward()
        optimiser.step()
    assert shares[0] == 1
    assert shares[-1] < 0.5


def test_equals_jambas_layer():
    transformers = pytest.importorskip("transformers")
    from transformers.models.jamba import modeling_jamba

    config = transformers.JambaConfig(hidden_size=6, intermediate_size=5, num_experts=4, num_experts_per_tok=2)
    theirs = modeling_jamba.JambaSparseMoeBlock(config).double()
    ours, x = made(experts=4), normal(2, 2, 9, 6)
    weights = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            assert name in ("router.weight", "experts.gate_up_proj", "experts.down_proj")
            torch.nn.init.normal_(weight, std=0.5)
        ours.router.weight.copy_(weights["router.weight"])
        ours.inner.copy_(weights["experts.gate_up_proj"])
        ours.out.copy_(weights["experts.down_proj"])
        found = theirs(x)
        assert_close([ours(x)], [found[0] if isinstance(found, tuple) else found], 1e-6, "value")


@pytest.mark.parametrize(
    ("feed_forward", "message"),
    [
        ("swish", "feed_forward is 'swish'; it must be one of"),
        ({"feed_forward": "moe", "experts": 2, "active": 3}, "active is 3; it must be at most experts = 2"),
        ({"feed_forward": "moe", "expert": 2}, "feed_forward 'moe' has no option 'expert'; its options are experts"),
        ({"feed_forward": "gelu", "experts": 2}, "feed_forward 'gelu' has no option 'experts'; it has none"),
        (["moe"], "it must be one for all layers or a list of 2"),
    ],
)
def test_wrong_options_are_named(feed_forward, message):
    with pytest.raises(SeriatimError, match=message):
        build("stack", dim=8, layers=["elman", "elman"], feed_forward=feed_forward)
