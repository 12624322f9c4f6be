"""The shapes that the ops' signatures declare, checked at every call that the tests make."""

import inspect
import pkgutil
from functools import cache
from importlib import import_module

import torch
from beartype import beartype
from jaxtyping import jaxtyped

import seriatim.ops
from seriatim.ops.backend import choose


def check_all_ops():
    """Switches the checks on, for the rest of the process."""
    for found in pkgutil.iter_modules(seriatim.ops.__path__):
        if found.name in seriatim.ops.__all__ and found.name != "backend":
            module = import_module(f"seriatim.ops.{found.name}")
            _check_backends(module, getattr(module, found.name))


@cache
def shape_checked(implementation, public):
    """`implementation`, raising where its arguments or results do not have the shapes that `public` declares."""

    def call(*args, **kwargs):
        return implementation(*args, **kwargs)

    call.__signature__ = inspect.signature(public)
    call.__qualname__ = f"{implementation.__module__}.{implementation.__qualname__}"
    return jaxtyped(typechecker=beartype)(call)


def _check_backends(module, public):
    """Checks between an op and its backends, so that a wrong argument is still refused by the op itself.

    Not while a compiler traces, which must see what it sees elsewhere, nor without gradients: long streams stay fast.
    """

    def choose_checked(implementations, like):
        implementation = choose(implementations, like)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return implementation
        return shape_checked(implementation, public)

    module.choose = choose_checked
