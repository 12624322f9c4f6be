"""Kernels for the CPU, written in Python.

- ``source/`` is what the compiler reads: Python compiled by numba, on the vector pieces of ``source/simd.py``. Only the
  compiler's own process imports it, and numba.
- ``compiler.py`` is that process: it turns a file of ``source/`` into machine code.
- ``library.py`` loads the machine code, from the cache on disk or from the compiler.
- ``launch.py`` calls a kernel on tensors with PyTorch's own threads.
- one file an op holds what PyTorch sees: custom operators that prepare tensors and launch.
"""
