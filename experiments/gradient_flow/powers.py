"""The powers of three matrices with one largest singular value, beside Σ σᵢᵗ uᵢ vᵢᵀ of its singular vectors.

The singular values of Wᵗ are those of W to the power t if W is normal (W Wᵀ = Wᵀ W), and Wᵗ is that sum if
W is symmetric with no negative eigenvalue, where uᵢ = vᵢ. Otherwise log σ_max(Wᵗ)/t falls to log ρ.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
from experiments.gradient_flow.gain import matrix
from jaxrnn import analysis

KINDS = ("symmetric", "rotations", "Gaussian")  # the first two are normal
SIGMA = 1.5
POWERS = 40
LEAST = 0.1  # of the sizes of eigenvalues of the normal matrices, relative to the largest


class Powers(NamedTuple):
    """The powers of one kind of matrix, natural logs; the first axis is that of the seeds."""

    kind: str
    log_radius: np.ndarray  # (seeds,), log ρ
    rates: np.ndarray  # (seeds, POWERS), log σ_max(Wᵗ) / t
    errors: np.ndarray  # (seeds, POWERS), ‖Wᵗ - Σ σᵢᵗ uᵢ vᵢᵀ‖ / ‖Wᵗ‖ in spectral norms


def draw(kind: str, hidden_size: int, key: jax.Array) -> np.ndarray:
    """`(H, H)` with the largest singular value `SIGMA`.

    "symmetric" has eigenvalues from 0.1 to 1 of it, "rotations" turns and scales planes by as much, and "Gaussian"
    has normal entries.
    """
    if kind == "Gaussian":
        return SIGMA * np.asarray(matrix(kind, hidden_size, key))
    key_basis, key_angles = jax.random.split(key)
    basis = np.asarray(matrix("orthogonal", hidden_size, key_basis))
    if kind == "symmetric":
        inner = np.diag(np.linspace(LEAST, 1, hidden_size))
    else:
        inner = np.zeros((hidden_size, hidden_size))
        count = -(-hidden_size // 2)
        angles = np.asarray(jax.random.uniform(key_angles, (count,), maxval=2 * np.pi))
        for k, (size, angle) in enumerate(zip(np.linspace(LEAST, 1, count), angles, strict=True)):
            turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            part = inner[2 * k : 2 * k + 2, 2 * k : 2 * k + 2]
            part[:] = turn if len(part) == 2 else size
    return SIGMA * basis @ inner @ basis.T


def raise_to_powers(hidden_size: int, seeds: range) -> list[Powers]:
    """The powers of every kind of matrix and every seed."""
    with jax.enable_x64(True):
        keys = [jax.random.split(jax.random.fold_in(jax.random.key(seed), 2), len(KINDS)) for seed in seeds]
        return [
            powers_of(kind, [draw(kind, hidden_size, key[place]) for key in keys]) for place, kind in enumerate(KINDS)
        ]


def powers_of(kind: str, matrices: list[np.ndarray]) -> Powers:
    radius, rates, errors = [], [], []
    for w in matrices:
        params = jaxrnn.RNNParams(jnp.zeros((1, len(w))), jnp.asarray(w), jnp.zeros(len(w)))
        found = analysis.recurrent_spectrum(params, powers=POWERS)["h"]
        rates.append(np.asarray(found.log_power_singular_values[:, 0]) / np.arange(1, POWERS + 1))
        radius.append(float(np.log(np.abs(found.eigenvalues[0]))))
        errors.append(errors_of_sum(w))
    return Powers(kind, np.array(radius), np.array(rates), np.array(errors))


def errors_of_sum(w: np.ndarray) -> list[float]:
    """‖Wᵗ - Σ σᵢᵗ uᵢ vᵢᵀ‖ / ‖Wᵗ‖ for every t."""
    u, s, vt = np.linalg.svd(w)
    power, found = np.eye(len(w)), []
    for t in range(1, POWERS + 1):
        power = power @ w
        found.append(float(np.linalg.norm(power - (u * s**t) @ vt, 2) / np.linalg.norm(power, 2)))
    return found
