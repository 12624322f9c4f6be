"""Elementwise functions on strips of memory, a loop each, chosen by their code.

The loops are written for LLVM directly: as Python for numba they would take most of the compiler's time.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source import functions, step_functions
from seriatim.kernels.cpu.source.step_codes import ELEMENTWISE
from seriatim.kernels.cpu.source.step_functions import exact

__all__ = ["apply"]

_FLOAT, _INDEX = ir.FloatType(), ir.IntType(64)
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_COMPILED = {
    **{name: getattr(functions, name) for name in ("exp", "sigmoid", "tanh", "softplus", "log_sigmoid")},
    **{name: getattr(step_functions, name) for name in ("silu", "log", "erf", "gelu", "gelu_tanh")},
}
_HARDWARE = {"abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "sin": "sin", "cos": "cos"}
_LIBRARY = {"log1p": "log1pf", "expm1": "expm1f", "pow": "powf"}


def _number(value: float) -> ir.Constant:
    return ir.Constant(_FLOAT, value)


def _truth(builder, flag):
    return builder.select(flag, _number(1), _number(0))


def _true(builder, x):
    return builder.fcmp_unordered("!=", x, _number(0))


def _extreme(sign: str):
    """Maximum or minimum; NaN wins."""

    def formula(b, x, y):
        return b.select(b.or_(b.fcmp_ordered(sign, x, y), b.fcmp_unordered("uno", x, x)), x, y)

    return formula


def _compared(sign: str):
    """A comparison of float32; with NaN all are false but !=."""

    def formula(b, x, y):
        return _truth(b, (b.fcmp_unordered if sign == "!=" else b.fcmp_ordered)(sign, x, y))

    return formula


def _compared_integers(sign: str):
    def formula(b, x, y):
        return _truth(b, b.icmp_signed(sign, x, y))

    return formula


def _integer_extreme(sign: str):
    def formula(b, x, y):
        return b.select(b.icmp_signed(sign, x, y), x, y)

    return formula


def _integer_remainder(b, x, y):
    """With the sign of y. A divisor of 0 never gets here."""
    rest = b.srem(x, y)
    zero = ir.Constant(_INDEX, 0)
    apart = b.and_(b.icmp_signed("!=", rest, zero), b.icmp_signed("<", b.xor(rest, y), zero))
    return b.select(apart, b.add(rest, y), rest)


def _remainder(b, x, y):
    """With the sign of y."""
    rest = b.frem(x, y)
    unlike = b.xor(b.fcmp_ordered("<", rest, _number(0)), b.fcmp_ordered("<", y, _number(0)))
    return b.select(b.and_(b.fcmp_ordered("!=", rest, _number(0)), unlike), b.fadd(rest, y), rest)


def _sign(b, x):
    lower = b.select(b.fcmp_ordered("<", x, _number(0)), _number(-1), _number(0))
    return b.select(b.fcmp_ordered(">", x, _number(0)), _number(1), lower)


_FORMULAS = {
    "copy": lambda b, x: x,
    "neg": lambda b, x: b.fneg(x),
    "square": lambda b, x: b.fmul(x, x),
    "rsqrt": lambda b, x: b.fdiv(_number(1), _call(b, "llvm.sqrt.f32", x)),
    "reciprocal": lambda b, x: b.fdiv(_number(1), x),
    "relu": lambda b, x: b.select(b.fcmp_ordered("<", x, _number(0)), _number(0), x),
    "sign": _sign,
    "not": lambda b, x: _truth(b, b.fcmp_ordered("==", x, _number(0))),
    "add": lambda b, x, y: b.fadd(x, y),
    "sub": lambda b, x, y: b.fsub(x, y),
    "mul": lambda b, x, y: b.fmul(x, y),
    "div": lambda b, x, y: b.fdiv(x, y),
    "maximum": _extreme(">"),
    "minimum": _extreme("<"),
    "remainder": _remainder,
    **{name: _compared(sign) for name, sign in _COMPARISONS.items()},
    "and": lambda b, x, y: _truth(b, b.and_(_true(b, x), _true(b, y))),
    "or": lambda b, x, y: _truth(b, b.or_(_true(b, x), _true(b, y))),
    "xor": lambda b, x, y: _truth(b, b.xor(_true(b, x), _true(b, y))),
    "where": lambda b, x, y, z: b.select(_true(b, x), y, z),
    "fma": lambda b, x, y, z: _call(b, "llvm.fma.f32", y, z, x),
    "int_copy": lambda b, x: x,
    "int_neg": lambda b, x: b.neg(x),
    "int_add": lambda b, x, y: b.add(x, y),
    "int_sub": lambda b, x, y: b.sub(x, y),
    "int_mul": lambda b, x, y: b.mul(x, y),
    "int_maximum": _integer_extreme(">"),
    "int_minimum": _integer_extreme("<"),
    "int_remainder": _integer_remainder,
    **{f"int_{name}": _compared_integers(sign) for name, sign in _COMPARISONS.items()},
    "int_where": lambda b, x, y, z: b.select(_true(b, x), y, z),
    "int_to_float": lambda b, x: b.sitofp(x, _FLOAT),
    "float_to_int": lambda b, x: b.fptosi(x, _INDEX),
}


def _call(builder, name: str, *arguments):
    kind = ir.FunctionType(_FLOAT, [_FLOAT] * len(arguments))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _kinds(name: str) -> list[ir.Type]:
    """Of the result and the arguments."""
    arguments = 3 if "where" in name or name == "fma" else 2 if name in _LIBRARY and name == "pow" else 1
    if name in _FORMULAS:
        arguments = _FORMULAS[name].__code__.co_argcount - 1
    if name == "int_to_float":
        return [_FLOAT, _INDEX]
    if name == "float_to_int":
        return [_INDEX, _FLOAT]
    if name == "int_where":
        return [_INDEX, _FLOAT, _INDEX, _INDEX]
    kind = _INDEX if name.startswith("int_") else _FLOAT
    compares = name.removeprefix("int_") in _COMPARISONS
    return [_FLOAT if compares else kind, *[kind] * arguments]


def _value(context, builder, name: str, numbers):
    """One number of the result."""
    if name in _COMPILED:
        compiled, signature = _COMPILED[name], types.float32(types.float32)
        return context.compile_internal(builder, lambda x: compiled(x), signature, numbers)
    if name in _HARDWARE:
        return _call(builder, f"llvm.{_HARDWARE[name]}.f32", *numbers)
    if name in _LIBRARY:
        return _call(builder, _LIBRARY[name], *numbers)
    return _FORMULAS[name](builder, *numbers)


@intrinsic
def _apply(typing, code, n, out, x, y, z):

    def generate(context, builder, signature, arguments):
        code, n, *places = arguments
        end = builder.append_basic_block("end")
        choice = builder.switch(code, end)
        for index, name in enumerate(ELEMENTWISE):
            block = builder.append_basic_block(name)
            choice.add_case(ir.Constant(code.type, index), block)
            builder.position_at_end(block)
            pointers = [
                builder.inttoptr(place, kind.as_pointer()) for kind, place in zip(_kinds(name), places, strict=False)
            ]
            with cgutils.for_range(builder, n) as loop:
                numbers = [builder.load(builder.gep(pointer, [loop.index])) for pointer in pointers[1:]]
                found = _value(context, builder, name, numbers)
                builder.store(found, builder.gep(pointers[0], [loop.index]))
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@exact
def apply(code, n, out, x, y, z):
    """out = f(x, y, z) on n numbers, where f is the function of that code; out and the operands are addresses."""
    _apply(code, n, out, x, y, z)
