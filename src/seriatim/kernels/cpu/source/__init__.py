"""What the compiler reads: kernels, in the part of Python that numba compiles. Imported in its own process only."""
