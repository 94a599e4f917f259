"""The spectrum of the recurrent weights, gate by gate, and of their powers."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from jaxrnn import _checks
from jaxrnn._types import AnyCell, Params
from jaxrnn.analysis._families import gates_of_params, recurrent_matrices
from jaxrnn.analysis._jacobi_svd import after, ball
from jaxrnn.analysis._trajectory import factored_dtype
from jaxrnn.sequence.arguments import check_cell


class Spectrum(NamedTuple):
    """The spectrum of one gate's recurrent matrix W, as in h W.

    D is H, the number of units. With N heads there is one W `(D, D)` for each head, D = H/N, and
    every field has a leading axis of heads.
    """

    singular_values: Float[Array, "*N D"]  # the largest first
    eigenvalues: Complex[Array, "*N D"]  # the largest modulus first
    log_power_singular_values: Float[Array, "*N n D"]  # natural logs, of W, W², … Wⁿ


def recurrent_spectrum(params: Params, *, powers: int = 0, cell: AnyCell | None = None) -> dict[str, Spectrum]:
    """Singular values and eigenvalues of W_h, gate by gate, and the singular values of its powers.

    Without gates and activation ∂h_T/∂h_t is the power W_hᵀ^(T-t). It can grow if a singular
    value is above 1, and vanishes if all are below 1. In the long run it grows by the largest
    modulus of an eigenvalue per step.

    With a projection h = m W_p the matrix is the effective W_p W_h of each gate, `(H, H)`, from m
    to the gates; its eigenvalues are H - P zeros and those of W_h W_p. A vector `w_h` is a
    diagonal matrix. With layer normalisation W_h is used unchanged, although the cell then does
    not depend on its scale.

    With N heads W_h is block-diagonal, and the spectrum is that of each head's block. The values of
    all heads together are those of the whole matrix: `spectrum["f"].eigenvalues.reshape(-1)`.

    Costs O(G H³) (some tens of H³ each), and O(n G H³) for n powers, each with a few sweeps
    of Jacobi rotations; memory O(G H² + n G H). With N heads H³ becomes H³/N², and H² H²/N.
    JAX computes eigenvalues on a CPU or GPU, not on a TPU. It differentiates
    `log_power_singular_values` in forward mode only.

    Args:
        params: of an RNN, IndRNN, LSTM, GRU or MGU; of a network, those of one layer in one direction.
        powers: n, the highest power whose singular values are returned. They are logs, so that
            nothing overflows, each with full relative accuracy if W is well conditioned.
        cell: the cell of these parameters, if it is one of your own that declares its :class:`jaxrnn.Gates`.
            Its `w_h` is `(H, G*H)`, or the blocks `(N, D, G*D)` of heads.

    Returns:
        A dictionary of :class:`Spectrum` by the name of the gate: i f g o (coupled f g o),
        r z n, f n, or h. Its fields are `(H,)`, `(H,)` and `(n, H)`, with heads `(N, D)`, `(N, D)` and
        `(N, n, D)`.

    Raises:
        TypeError, ValueError: for params that are not those of a cell of this library, or powers
            that are not an integer of at least 0.

    Example:
        >>> import jax, jaxrnn
        >>> from jaxrnn import analysis
        >>> params = jaxrnn.gru(4).init(jax.random.key(0), 3)
        >>> spectrum = analysis.recurrent_spectrum(params, powers=1000)
        >>> list(spectrum), spectrum["r"].log_power_singular_values.shape
        (['r', 'z', 'n'], (1000, 4))
        >>> spectrum["n"].singular_values.round(3).tolist()  # orthogonal at initialisation
        [1.0, 1.0, 1.0, 1.0]
    """
    where = "recurrent_spectrum"
    if cell is not None:
        check_cell(where, cell)
    gates = gates_of_params(where, params, cell)
    w_h, w_proj = recurrent_matrices(where, params, gates)
    names = gates.blocks
    if not (_checks.is_integer(powers) and powers == 0):
        powers = _checks.size(where, "powers", powers)
    found = _spectra(int(powers), _matrices(w_h, w_proj, len(names)))
    return {name: jax.tree.map(lambda leaf, k=k: leaf[k], found) for k, name in enumerate(names)}


def _matrices(w_h: Array, w_proj: Array | None, count: int) -> Float[Array, "G *N D D"]:
    """The matrix of each gate, with heads one for each head."""
    w_h = w_h.astype(factored_dtype(w_h.dtype))
    if w_h.ndim == 1:
        return jnp.diag(w_h)[None]
    blocks = jnp.stack(jnp.split(w_h, count, axis=-1))
    return blocks if w_proj is None else jnp.einsum("hp,gpk->ghk", w_proj.astype(w_h.dtype), blocks)


@functools.partial(jax.jit, static_argnums=0)
def _spectra(powers: int, matrices: Float[Array, "G *N D D"]) -> Spectrum:
    eigenvalues = jnp.linalg.eigvals(matrices)
    order = jnp.argsort(-jnp.abs(eigenvalues), axis=-1)

    def power_logs(w: Float[Array, "D D"]) -> Float[Array, "n D"]:
        def body(axes: Any, _: None) -> Any:
            axes = after(axes, axes.directions @ w)
            return axes, axes.log_lengths

        return jax.lax.scan(body, ball(w.shape[0], w.dtype), None, length=powers)[1]

    logs = functools.reduce(lambda f, _: jax.vmap(f), matrices.shape[:-2], power_logs)(matrices)
    return Spectrum(
        jnp.linalg.svd(matrices, compute_uv=False),
        jnp.take_along_axis(eigenvalues, order, axis=-1),
        -jnp.sort(-logs, axis=-1),
    )
