"""The recurrences, one file each: the equation, a literal reference, a portable parallel path."""

from seriatim.ops.backend import backend

__all__ = ["backend"]
