"""The recurrences, one file each: the equation, a literal reference, a portable parallel path."""

from seriatim.ops.attention import attention
from seriatim.ops.backend import backend
from seriatim.ops.cell_scan import cell_scan
from seriatim.ops.diagonal_scan import diagonal_scan
from seriatim.ops.matrix_scan import matrix_scan
from seriatim.ops.selective_scan import selective_scan
from seriatim.ops.short_conv import short_conv
from seriatim.ops.softmax_scan import softmax_scan

__all__ = [
    "attention",
    "backend",
    "cell_scan",
    "diagonal_scan",
    "matrix_scan",
    "selective_scan",
    "short_conv",
    "softmax_scan",
]
