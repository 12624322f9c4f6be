"""Calls from several threads, after a fork, with as many threads as PyTorch has, and debug fences that hold."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from seriatim.kernels.cpu import launch
from seriatim.kernels.cpu.guard import guarded
from seriatim.kernels.cpu.launch import Kernel, rows


def products(a, b):
    """The products of many pairs, a work item each."""
    c = torch.zeros(a.size(0), a.size(1), b.size(2))
    Kernel("probe", "product")(a.size(0), a, b, c, 0, 0)
    return c


def pairs(seed, count=37):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 9, 21, generator=generator), torch.randn(count, 21, 17, generator=generator)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_two_threads_do_what_one_does():
    a, b = pairs(0)
    both = products(a, b)
    torch.set_num_threads(1)
    assert torch.equal(both, products(a, b))


@pytest.mark.usefixtures("two_threads")
def test_the_threads_are_those_of_pytorch():
    assert launch._openmp() is not None
    a, b = pairs(0)
    torch.randn(512, 512) @ torch.randn(512, 512)
    before = threads_of_this_process()
    for _ in range(20):
        products(a, b)
        torch.randn(512, 512) @ torch.randn(512, 512)
    assert threads_of_this_process() <= before + 1  # PyTorch may not have started its own before


def threads_of_this_process():
    return len(os.listdir("/proc/self/task"))


@pytest.mark.usefixtures("two_threads")
def test_without_openmp_python_threads_do_it(monkeypatch):
    a, b = pairs(1)
    wanted = products(a, b)
    monkeypatch.setattr(launch, "_openmp", lambda: None)
    assert torch.equal(products(a, b), wanted)


@pytest.mark.usefixtures("two_threads")
def test_calls_from_several_python_threads_at_once():
    wanted = [products(*pairs(seed)) for seed in range(8)]
    together = threading.Barrier(4)

    def work(seed):
        together.wait(timeout=60)
        return [products(*pairs(seed)) for _ in range(20)][-1]

    with ThreadPoolExecutor(4) as pool:
        for round_of in (range(4), range(4, 8)):
            for seed, found in zip(round_of, pool.map(work, round_of), strict=True):
                assert torch.equal(found, wanted[seed])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_forked_process_computes_the_same():
    # In a process of its own: this one has other threads, beside which a fork is never safe.
    code = """
        import os, sys, torch
        from seriatim.kernels.cpu.launch import Kernel
        torch.set_num_threads(2)
        a, b, c, d = torch.randn(37, 9, 21), torch.randn(37, 21, 17), torch.zeros(37, 9, 17), torch.zeros(37, 9, 17)
        Kernel("probe", "product")(37, a, b, c, 0, 0)
        child = os.fork()
        if child == 0:
            Kernel("probe", "product")(37, a, b, d, 0, 0)
            os._exit(0 if torch.equal(c, d) else 1)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["after", "before"])
def test_the_fences_catch_a_single_number_out_of_bounds(mode):
    code = f"""
        import torch
        from seriatim.kernels.cpu.guard import guarded
        from seriatim.kernels.cpu.launch import Kernel
        x, y = torch.zeros(8), torch.zeros(8)
        with guarded("{mode}"):
            Kernel("probe", "elementary")(1, 0, x, y)
            print("inside", flush=True)
            Kernel("probe", "astray")(1, x, {"8" if mode == "after" else "-1"})
            print("outside")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "inside\n"
    assert done.returncode < 0


def test_no_items_are_no_work():
    x = torch.ones(3)
    Kernel("probe", "elementary")(0, 0, x, x)
    assert torch.equal(x, torch.ones(3))


def test_rows_copies_only_what_it_must():
    x = torch.randn(4, 6)
    assert rows(x) is x
    assert rows(x[:, :3]).data_ptr() == x.data_ptr()
    assert rows(x.mT).stride(-1) == 1
    assert rows(x[:1, :1].expand(4, 6)).stride(-1) == 1
    assert rows(None) is None


def test_numbers_below_the_normal_range_count_as_zero_inside_and_as_themselves_outside():
    tiny = torch.full((1, 1, 1), 1e-40)
    found = torch.ones(1, 1, 1)
    Kernel("probe", "product")(1, tiny, torch.ones(1, 1, 1), found, 0, 0)
    assert found.item() == 0
    assert (tiny * 1.0).item() > 0


def test_the_fences_give_back_only_what_belongs_to_an_array():
    both = torch.zeros(3, 8)
    left, right = both.chunk(2, -1)
    with guarded():
        Kernel("probe", "transposed")(1, torch.ones(4, 3), left)
        Kernel("pointwise", "silu_gate_backward")(
            1, 3, torch.ones(3, 4), torch.full((3, 4), 2.0), torch.zeros(3, 4), left, right
        )  # grad_x is silu(0) = 0, grad_gate 2 sigmoid(0) = 1
    assert torch.equal(both, torch.tensor([0.0, 1.0]).repeat_interleave(4).expand(3, 8))
