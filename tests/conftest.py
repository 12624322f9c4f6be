"""For all tests: one thread, fixed seeds, and the shapes in the ops' signatures checked at every call.

Standing here, it also lets every test import what stands beside it (cases.py).
"""

import inspect
import pkgutil
from functools import cache
from importlib import import_module

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped

import seriatim.ops
from seriatim.ops.backend import choose


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.manual_seed(0)


@cache
def shape_checked(implementation, public):
    """`implementation`, raising where its arguments or results do not have the types and shapes that `public` declares."""

    def call(*args, **kwargs):
        return implementation(*args, **kwargs)

    call.__signature__ = inspect.signature(public)
    call.__qualname__ = f"{implementation.__module__}.{implementation.__qualname__}"
    return jaxtyped(typechecker=beartype)(call)


def _check_shapes_of(module, public):
    """Checks between an op and its backends, so that a wrong argument is still refused by the op itself.

    Not while a compiler traces, which must see what it sees elsewhere, nor without gradients: long streams stay fast.
    """

    def choose_checked(implementations, like):
        implementation = choose(implementations, like)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return implementation
        return shape_checked(implementation, public)

    module.choose = choose_checked


torch.set_num_threads(1)
for found in pkgutil.iter_modules(seriatim.ops.__path__):
    if found.name in seriatim.ops.__all__ and found.name != "backend":
        op = import_module(f"seriatim.ops.{found.name}")
        _check_shapes_of(op, getattr(op, found.name))
