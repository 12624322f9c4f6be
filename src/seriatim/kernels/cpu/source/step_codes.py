"""The instructions of step programs, as those who write programs and the interpreter both know them. Imports nothing.

An instruction is a run of 64-bit words: its code, how many words it takes, its ticket, then fields of its own. The
ticket is the index of its counters where threads share the work, and -1 where each thread does all of it. A place is
two words, a base and an offset in bytes: base 0 is the thread's own memory, any other an entry of the table of
addresses.
"""

__all__ = [
    "BOOL",
    "BYTE",
    "BYTES",
    "CODES",
    "COUNTERS",
    "DIRECT",
    "DOTS",
    "ELEMENTWISE",
    "END",
    "EXPRESSION",
    "FLOAT",
    "GATHER",
    "HALF",
    "INT",
    "LOADED",
    "NIBBLES",
    "ONCE",
    "OUTSIDE",
    "PRODUCT",
    "QUANTIZED",
    "REDUCTION",
    "REDUCTIONS",
    "ROWS",
    "SLOTS",
    "STRIP",
    "WAIT",
    "WHOLE",
    "WHOLE_NIBBLES",
    "WIDTHS",
]

END, WAIT, EXPRESSION, PRODUCT, REDUCTION, GATHER, QUANTIZED = range(7)
COUNTERS = 8  # words of a line of counters: how many parts are done, then what has been claimed of each part
STRIP = 1024  # numbers an elementwise function is applied to at a time: a few strips fit the first level cache
OUTSIDE = 1  # the word of the counters' first line that says that an index was out of range

FLOAT, INT, BOOL, HALF, BYTE = range(5)  # float32, int64, bool, bfloat16, int8
WIDTHS = {FLOAT: 4, INT: 8, BOOL: 1, HALF: 2, BYTE: 1}  # bytes

LOADED, DIRECT, ONCE = range(3)  # brought into a register; used where it lies; one number, brought once
SLOTS = 64  # operands, constants and results of an expression
DOTS, ROWS = range(2)  # kinds of products: of rows with rows, of rows with a matrix of rows
# Kinds of weights: int8, also for whole numbers of 8 bits; pairs of 4 bits, also for such numbers.
BYTES, WHOLE, NIBBLES, WHOLE_NIBBLES = range(4)

ELEMENTWISE = (
    # of one float32; truth values are 1 and 0
    *("copy", "neg", "abs", "square", "sqrt", "rsqrt", "reciprocal", "relu", "sign", "floor", "ceil", "not"),
    *("exp", "sigmoid", "tanh", "softplus", "log_sigmoid", "silu", "log", "erf", "gelu", "gelu_tanh"),
    *("log1p", "expm1", "sin", "cos"),
    # of two
    *("add", "sub", "mul", "div", "maximum", "minimum", "pow", "remainder"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "xor"),
    # of three: where a then b else c, a + b c
    *("where", "fma"),
    # of int64
    *("int_copy", "int_neg", "int_add", "int_sub", "int_mul", "int_maximum", "int_minimum", "int_remainder"),
    *("int_lt", "int_le", "int_gt", "int_ge", "int_eq", "int_ne", "int_where", "int_to_float", "float_to_int"),
)
CODES = {name: code for code, name in enumerate(ELEMENTWISE)}
REDUCTIONS = {"sum": 0, "amax": 1, "amin": 2, "prod": 3}
