"""The recurrences, one file each: the equation, a literal reference, the portable parallel path, the choice of backend."""

from seriatim.ops.backend import backend

__all__ = ["backend"]
