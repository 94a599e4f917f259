"""Measures gradients: Jacobians and their products, spectra, gradient flow, gates.

Pure functions of any cell, its parameters and a sequence; all can be jitted, with the cell, the
loss and the options closed over. Lengths and norms that may overflow are returned as natural logs.
Logs and statistics are float32 at least.
Every function states its cost in T steps, B sequences and H units.
"""

from jaxrnn.analysis.ablation import ablate_gates
from jaxrnn.analysis.backward_pass import BackwardPass, backward_pass
from jaxrnn.analysis.cell_state import CellStateTerms, cell_state_jacobian_terms
from jaxrnn.analysis.directions import cotangent_norms, tangent_norms
from jaxrnn.analysis.gates import GateStatistics, gate_statistics, gate_values
from jaxrnn.analysis.gradient_flow import GradientFlow, gradient_flow
from jaxrnn.analysis.jacobians import state_jacobians
from jaxrnn.analysis.lyapunov import LyapunovExponents, lyapunov_exponents
from jaxrnn.analysis.newton_convergence import NewtonConvergence, newton_convergence
from jaxrnn.analysis.products import JacobianProducts, jacobian_products
from jaxrnn.analysis.spectrum import Spectrum, recurrent_spectrum

__all__ = [
    "BackwardPass",
    "CellStateTerms",
    "GateStatistics",
    "GradientFlow",
    "JacobianProducts",
    "LyapunovExponents",
    "NewtonConvergence",
    "Spectrum",
    "ablate_gates",
    "backward_pass",
    "cell_state_jacobian_terms",
    "cotangent_norms",
    "gate_statistics",
    "gate_values",
    "gradient_flow",
    "jacobian_products",
    "lyapunov_exponents",
    "newton_convergence",
    "recurrent_spectrum",
    "state_jacobians",
    "tangent_norms",
]
