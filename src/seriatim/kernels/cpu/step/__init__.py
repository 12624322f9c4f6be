"""A step of a model as one call: the operators of the step, recorded once, as a program for one compiled kernel.

- ``trace.py`` records what a step asks of PyTorch.
- ``lower.py`` and ``writer.py`` make instructions of it, with ``formulas.py`` (elementwise operators), ``products.py``
  and ``rows.py`` (reductions, norms, tables).
- ``expressions.py`` and ``strips.py`` make one instruction of many elementwise functions.
- ``layout.py`` says where values lie, ``program.py`` calls the interpreter, ``../source/step.py``.
- ``guards.py`` says whether a program still fits its module, ``engine.py`` which steps are done by programs.
"""
