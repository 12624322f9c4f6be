"""PyTorch's elementwise operators as the interpreter's elementwise functions, by the operator's name in its schema.

A formula is given the functions to use, then the operator's arguments: tensors as `Value`, all else as it is.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from seriatim.kernels.cpu.source.step_codes import CODES, FLOAT, INT
from seriatim.kernels.cpu.step.expressions import Expression
from seriatim.kernels.cpu.step.trace import Unsupported

__all__ = ["FORMULAS", "Functions", "Value"]


class Value(NamedTuple):
    """A value of the expression."""

    place: int  # among the expression's values
    kind: int  # FLOAT or INT; truth values are FLOAT, 1 or 0


class Functions:
    """Adds functions to an expression; numbers become constants, integers float32 where need be."""

    def __init__(self, expression: Expression, kind: int, is_bool: bool):
        self.expression, self.kind, self.is_bool = expression, kind, is_bool

    def __call__(self, name: str, *arguments: Any) -> Value:
        """A function in the result's kind."""
        if self.kind == INT:
            return self._apply(f"int_{name}", INT, [self.as_kind(z, INT) for z in arguments])
        return self.real(name, *arguments)

    def real(self, name: str, *arguments: Any) -> Value:
        """A function of float32."""
        return self._apply(name, FLOAT, [self.as_kind(z, FLOAT) for z in arguments])

    def compare(self, name: str, x: Any, y: Any) -> Value:
        """1 or 0; integers are compared as such."""
        if all(z.kind == INT if isinstance(z, Value) else isinstance(z, int) for z in (x, y)):
            return self._apply(f"int_{name}", FLOAT, [self.as_kind(z, INT) for z in (x, y)])
        return self.real(name, x, y)

    def choose(self, condition: Any, x: Any, y: Any) -> Value:
        """x where the condition is true, else y, in the result's kind."""
        arguments = [self.as_kind(condition, FLOAT), self.as_kind(x, self.kind), self.as_kind(y, self.kind)]
        return self._apply("int_where" if self.kind == INT else "where", self.kind, arguments)

    def as_kind(self, value: Any, kind: int) -> Value:
        """A value or number as float32 or int64."""
        if not isinstance(value, Value):
            if kind == INT and value != int(value):
                raise Unsupported(f"{value} among integers")
            return Value(self.expression.constant(value, kind), kind)
        if value.kind == kind:
            return value
        return self._apply("int_to_float" if kind == FLOAT else "float_to_int", kind, [value])

    def _apply(self, name: str, kind: int, arguments: list[Value]) -> Value:
        if name not in CODES:
            raise Unsupported(f"{name} of integers")
        return Value(self.expression.function(name, kind, *(z.place for z in arguments)), kind)


Formula = Callable[..., Value]


def _unary(name: str) -> Formula:
    return lambda f, x: f(name, x) if name in ("neg",) else f.real(name, x)


def _binary(name: str) -> Formula:
    return lambda f, x, y: f(name, x, y)


def _comparison(name: str) -> Formula:
    return lambda f, x, y: f.compare(name, x, y)


def _logic(name: str) -> Formula:
    def formula(f: Functions, x: Any, y: Any) -> Value:
        if not f.is_bool:
            raise Unsupported(f"bitwise {name} of integers")
        return f.real(name, x, y)

    return formula


def _add(f: Functions, x: Any, y: Any, alpha: float = 1) -> Value:
    return f("add", x, y if alpha == 1 else f("mul", y, alpha))


def _subtract(f: Functions, x: Any, y: Any, alpha: float = 1) -> Value:
    return f("sub", x, y if alpha == 1 else f("mul", y, alpha))


def _divide(f: Functions, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode == "floor" and f.kind == FLOAT:
        return f.real("floor", f.real("div", x, y))
    if rounding_mode is not None:
        raise Unsupported(f"division rounded by {rounding_mode}")
    return f.real("div", x, y)


def _remainder(f: Functions, x: Any, y: Any) -> Value:
    if f.kind == INT and (isinstance(y, Value) or y < 1):
        raise Unsupported("a remainder of integers by other than a positive number")
    return f("remainder", x, y)


def _power(f: Functions, x: Any, exponent: Any) -> Value:
    simple = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal", 1: "copy"}
    if isinstance(exponent, Value) or f.kind == INT:
        return f.real("pow", x, exponent) if f.kind == FLOAT else f("pow", x, exponent)
    if exponent in simple:
        return f.real(simple[exponent], x)
    if exponent == 3:
        return f.real("mul", f.real("square", x), x)
    return f.real("pow", x, float(exponent))


def _softplus(f: Functions, x: Any, beta: float = 1, threshold: float = 20) -> Value:
    if beta == 1 and threshold >= 17:  # above it the results are the same float32
        return f.real("softplus", x)
    scaled = f.real("mul", x, beta)
    soft = f.real("div", f.real("softplus", scaled), beta)
    return f.choose(f.compare("gt", scaled, float(threshold)), x, soft)


def _gelu(f: Functions, x: Any, approximate: str = "none") -> Value:
    return f.real("gelu" if approximate == "none" else "gelu_tanh", x)


def _clamp(f: Functions, x: Any, min: Any = None, max: Any = None) -> Value:
    x = x if min is None else f("maximum", x, min)
    return x if max is None else f("minimum", x, max)


def _at_least(f: Functions, x: Any, min: Any) -> Value:
    return f("maximum", x, min)


def _at_most(f: Functions, x: Any, max: Any) -> Value:
    return f("minimum", x, max)


def _masked_fill(f: Functions, x: Any, mask: Any, value: Any) -> Value:
    return f.choose(mask, value, x)


def _add_product(f: Functions, x: Any, first: Any, second: Any, value: float = 1) -> Value:
    if value != 1:
        first = f.real("mul", first, value)
    return f.real("fma", x, first, second)


def _add_quotient(f: Functions, x: Any, first: Any, second: Any, value: float = 1) -> Value:
    return f.real("add", x, f.real("div", first if value == 1 else f.real("mul", first, value), second))


def _lerp(f: Functions, start: Any, end: Any, weight: Any) -> Value:
    """From the nearer end, as PyTorch does, so that both ends are met exactly."""
    difference = f.real("sub", end, start)
    near = f.real("fma", start, weight, difference)
    far = f.real("sub", end, f.real("mul", difference, f.real("sub", 1.0, weight)))
    return f.choose(f.compare("lt", f.real("abs", weight), 0.5), near, far)


def _convert(f: Functions, x: Value, **options: Any) -> Value:
    if f.is_bool and x.kind == INT:
        return f.compare("ne", x, 0)
    return f.real("ne", x, 0.0) if f.is_bool else f.as_kind(x, f.kind)


def _assign(f: Functions, x: Value, source: Any, *options: Any) -> Value:
    return f.as_kind(source, f.kind)


def _leaky(f: Functions, x: Any, negative_slope: float = 0.01) -> Value:
    return f.choose(f.compare("gt", x, 0.0), x, f.real("mul", x, negative_slope))


def _elu(f: Functions, x: Any, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    below = f.real("mul", f.real("expm1", f.real("mul", x, input_scale)), alpha * scale)
    return f.choose(f.compare("gt", x, 0.0), f.real("mul", x, scale), below)


def _is_infinite(f: Functions, x: Any) -> Value:
    return f.compare("eq", f.real("abs", x), math.inf)


_REAL = ["abs", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "sigmoid", "tanh", "relu", "silu", "erf"]
_REAL += ["sin", "cos", "floor", "ceil", "sign", "neg"]

FORMULAS: dict[str, Formula] = {
    **{name: _unary(name) for name in _REAL},
    **{name: _binary(name) for name in ("mul", "maximum", "minimum")},
    **{name: _comparison(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{f"{kind}_{name}": _logic(name) for kind in ("bitwise", "logical") for name in ("and", "or", "xor")},
    "add": _add,
    "addcdiv": _add_quotient,
    "addcmul": _add_product,
    "bitwise_not": lambda f, x: f.real("not", x),
    "clamp": _clamp,
    "clamp_max": _at_most,
    "clamp_min": _at_least,
    "clone": _convert,
    "copy": _assign,
    "div": _divide,
    "elu": _elu,
    "fill": lambda f, x, value: f.as_kind(value, f.kind),
    "gelu": _gelu,
    "isinf": _is_infinite,
    "isnan": lambda f, x: f.real("ne", x, x),
    "leaky_relu": _leaky,
    "lerp": _lerp,
    "log_sigmoid_forward": lambda f, x: f.real("log_sigmoid", x),
    "logical_not": lambda f, x: f.real("not", x),
    "masked_fill": _masked_fill,
    "pow": _power,
    "remainder": _remainder,
    "rsub": lambda f, x, y, alpha=1: _subtract(f, y, x, alpha),
    "softplus": _softplus,
    "sub": _subtract,
    "where": lambda f, condition, x, y: f.choose(condition, x, y),
    "zero": lambda f, x: f.as_kind(0, f.kind),
    "_to_copy": _convert,
}
