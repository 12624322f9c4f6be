"""Steps done by programs equal the steps themselves, and are left alone wherever somebody could tell."""

import gc
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from step_mixers import engine, has_program, programs, random_input, same, small_model, steps

from cases import CASES
from seriatim import ops
from seriatim.core.build import build
from seriatim.core.state import leaves, map_state
from seriatim.kernels.cpu import guard
from seriatim.kernels.cpu.step import engine as engine_file
from seriatim.kernels.cpu.step import formulas
from seriatim.kernels.cpu.step import program as program_file
from seriatim.models.language_model import LanguageModel


@pytest.fixture(autouse=True)
def _kernels():
    """Whatever SERIATIM_BACKEND says."""
    with ops.backend("cpu"):
        yield


def made(case):
    return build(case.name, **case.options).eval()


def can_have_a_program(case):
    mixer = made(case)
    return mixer.causal and mixer.constant_state


def is_plain(case):
    """Whether the step runs as it is written: Hyena turns its filters round, frames are complex or convolved."""
    return case.name == "hyena" or ":" in case.name


CONSTANT = [case for case in CASES if can_have_a_program(case)]


@pytest.fixture
def shared_work(monkeypatch):
    """Two threads share whatever they can."""
    monkeypatch.setattr(program_file, "SHARED_FROM", 1)
    monkeypatch.setattr(program_file, "THREADS_FROM", 1)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CONSTANT, ids=repr)
@pytest.mark.parametrize("batch", [1, 3])
def test_fifty_steps_equal_the_mixers_own(case, batch):
    module = made(case)
    found = steps(module, batch, 50)
    assert has_program(module) is not is_plain(case)
    with ops.backend("torch"):
        wanted = steps(module, batch, 50)
    same(found, wanted)


@pytest.mark.usefixtures("shared_work")
@pytest.mark.parametrize(
    "layer", ["elman", "lstm", "gru", "aaren", "gla", "mamba", {"mixer": "window", "size": 5}], ids=str
)
def test_threads_share_the_work(layer):
    model = LanguageModel(300, 48, [layer, layer], feed_forward="gelu", norm="layer").eval()
    found = steps(model, 2, 20)
    (program,) = programs(model)
    assert program.several
    torch.set_num_threads(1)
    same(found, steps(model, 2, 20), 0)
    with ops.backend("torch"):
        same(found, steps(model, 2, 20))


@pytest.mark.parametrize("mode", ["after", "before"])
def test_nothing_outside_the_buffers_is_touched(mode):
    layers = [
        "elman",
        "lstm",
        "gru",
        {"mixer": "aaren", "heads": 3},
        "mamba",
        {"mixer": "window", "heads": 3, "size": 5},
    ]
    model = LanguageModel(19, 18, layers, feed_forward="gelu", norm="layer").eval()
    for batch in (1, 2, 5):
        with guard.guarded(mode):
            found = steps(model, batch, 3)
        assert has_program(model)
        with ops.backend("torch"):
            same(found, steps(model, batch, 3))


def test_outputs_and_states_are_fresh_and_nothing_is_changed():
    model = small_model()
    state, x = model.init_state(2), random_input(model, 2)
    before = map_state(torch.clone, state)
    with torch.no_grad():
        y, new = model.step(x, state)
        kept = [leaf.clone() for _, leaf in leaves(new)]
        other, newer = model.step(x, new)
    assert has_program(model)
    same([(x, state)], [(random_input(model, 2), before)], 0)
    assert all(torch.equal(a, b) for a, (_, b) in zip(kept, leaves(new), strict=True))
    tensors = [x, y, other, *(leaf for z in (state, new, newer) for _, leaf in leaves(z)), *model.parameters()]
    storages = {z.untyped_storage().data_ptr() for z in {id(z): z for z in tensors}.values()}
    assert len(storages) == len({id(z) for z in tensors})


def test_states_of_any_layout_are_taken():
    model = build("gla", dim=16, heads=2).eval()
    state = torch.randn(8, 4, 2, 3).permute(3, 2, 1, 0)
    x = torch.randn(16, 6)[:, ::2].T
    with torch.no_grad():
        found = model.step(x, state)
        with ops.backend("torch"):
            same([found], [model.step(x, state)])
    assert has_program(model)


def test_two_python_threads_at_once():
    model = small_model()
    wanted = {batch: steps(model, batch, 40) for batch in (1, 2)}
    with ThreadPoolExecutor(4) as pool:
        for batch, found in zip(
            (1, 2, 1, 2), pool.map(lambda batch: steps(model, batch, 40), (1, 2, 1, 2)), strict=True
        ):
            same(found, wanted[batch], 0)


def test_two_python_threads_may_make_the_first_step():
    model = small_model()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda batch: steps(model, batch, 3), (1, 1))
    same(first, second, 0)
    assert len(programs(model)) == 1


def _in_child(model, wanted, answers):
    try:
        same(steps(model, 1, 5), wanted, 0)
        answers.put("same")
    except BaseException as error:
        answers.put(repr(error))
        raise


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.usefixtures("shared_work")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork():
    model = small_model()
    wanted = steps(model, 1, 5)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_child, args=(model, wanted, answers))
    child.start()
    assert answers.get(timeout=60) == "same"
    child.join(timeout=60)


def test_a_program_that_differs_is_not_used(monkeypatch):
    monkeypatch.setitem(formulas.FORMULAS, "tanh", lambda f, x: f.real("sigmoid", x))
    module = build("elman", dim=8).eval()
    with pytest.warns(UserWarning, match="the compiled step of Elman differs"):
        found = steps(module, 1, 1)
    found += steps(module, 1, 1)
    assert programs(module) == [None]
    with ops.backend("torch"):
        same(found, steps(module, 1, 1) * 2)


@torch.no_grad()
def test_half_precision_is_no_difference():
    """A program rounds less often than PyTorch does, which shows after a few layers."""
    torch.manual_seed(0)
    model = LanguageModel(16, dim=32, layers=["gla"] * 8).bfloat16().eval()
    token, state = torch.tensor([1]), model.init_state(1)
    for _ in range(3):
        answer, state = model.step(token, state)
    assert answer.dtype == torch.bfloat16
    assert has_program(model)


def test_only_the_latest_programs_are_kept_and_few_are_made():
    module = build("elman", dim=4).eval()
    for batch in range(1, engine_file.MOST_PROGRAMS + 3):
        steps(module, batch, 1)
    assert len(programs(module)) == engine_file.MOST_PROGRAMS
    assert None not in programs(module)
    steps(module, engine_file.MOST_ROWS + 1, 1)
    assert programs(module)[-1] is None
    engine()._known[module].recordings = engine_file.MOST_RECORDINGS
    steps(module, 1, 1)
    assert programs(module)[-1] is None


def test_programs_use_no_more_memory_with_every_step():
    model = small_model()
    counts = []
    for _ in range(3):
        found = steps(model, 1, 20)
        gc.collect()
        counts.append(sum(type(z) is torch.Tensor for z in gc.get_objects()))
        del found
    assert all(b <= a for a, b in pairwise(counts[1:]))
