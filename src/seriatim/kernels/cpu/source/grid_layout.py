"""The memory that the grid scan's kernels work in, in float32s: for what makes room for it and for what uses it.

A cell is a memory of K keys by WIDTH values. Plain Python, so that both can read it.
"""

__all__ = ["backward_room", "forward_room", "segment_count"]


def forward_room(columns: int, cell: int) -> int:
    """What enters a row from above, and what enters the node at hand from the left."""
    return (columns + 1) * cell


def segment_count(rows: int, segment: int) -> int:
    """How many segments of so many rows there are."""
    return (rows + segment - 1) // segment


def backward_room(rows: int, columns: int, segment: int, cell: int) -> int:
    """What enters every segment from above, all that enters or leaves a segment's nodes, and the gradients below."""
    inside = segment * (columns + 1) + (segment + 1) * columns
    return (segment_count(rows, segment) * columns + inside + columns + 1) * cell
