"""The recurrences, one file each: the equation, a literal reference, a portable parallel path.

Importing it also installs the engine that does the steps of mixers where kernels are wanted.
"""

from seriatim.core.stepping import install
from seriatim.kernels.cpu.step.engine import StepEngine
from seriatim.ops.attention import attention
from seriatim.ops.backend import backend, kernels_wanted
from seriatim.ops.cauchy import cauchy
from seriatim.ops.cell_scan import cell_scan
from seriatim.ops.dag_scan import dag_scan, line_graph
from seriatim.ops.delta_scan import delta_scan
from seriatim.ops.diagonal_scan import diagonal_scan
from seriatim.ops.dplr_scan import dplr_scan
from seriatim.ops.grid_scan import grid_scan
from seriatim.ops.invariant_scan import invariant_scan
from seriatim.ops.lif_scan import lif_scan
from seriatim.ops.long_conv import long_conv
from seriatim.ops.matrix_scan import matrix_scan
from seriatim.ops.max_scan import max_scan
from seriatim.ops.selective_scan import selective_scan
from seriatim.ops.short_conv import short_conv
from seriatim.ops.softmax_scan import softmax_scan

__all__ = [
    "attention",
    "backend",
    "cauchy",
    "cell_scan",
    "dag_scan",
    "delta_scan",
    "diagonal_scan",
    "dplr_scan",
    "grid_scan",
    "invariant_scan",
    "lif_scan",
    "line_graph",
    "long_conv",
    "matrix_scan",
    "max_scan",
    "selective_scan",
    "short_conv",
    "softmax_scan",
]

install(StepEngine(kernels_wanted))
