"""The recurrences, one file each: the equation, a literal reference, a portable parallel path."""

from seriatim.ops.attention import attention
from seriatim.ops.backend import backend
from seriatim.ops.cell_scan import cell_scan
from seriatim.ops.softmax_scan import softmax_scan

__all__ = ["attention", "backend", "cell_scan", "softmax_scan"]
