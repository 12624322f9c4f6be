"""The recurrences, one file each: the equation, a literal reference, a portable parallel path."""

from seriatim.ops.backend import backend
from seriatim.ops.softmax_scan import softmax_scan

__all__ = ["backend", "softmax_scan"]
