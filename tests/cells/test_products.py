"""The public products of a weight, and a GRU written with them as a user would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import analysis
from jaxrnn.cells._algebra import Dropped
from jaxrnn.sequence.inspection import multiplied_fields
from jaxrnn.testing import check_cell
from tests.support.own_gru import RULE, Params, own_gru
from tests.testing import own

H, I, T, B = 6, 3, 5, 4  # noqa: E741
KEY = jax.random.key(0)


def weights(rng):
    """Each kind of a weight by name, with the matrix that it stands for, of (4, 6) or square."""
    blocks = rng.normal(size=(2, 2, 4))  # two heads of two units and two gates
    dense = np.zeros((4, 8))
    for head in range(2):
        for gate in range(2):
            columns = slice(4 * gate + 2 * head, 4 * gate + 2 * head + 2)
            dense[2 * head : 2 * head + 2, columns] = blocks[head][:, 2 * gate : 2 * gate + 2]
    vector, matrix = rng.normal(size=4), rng.normal(size=(4, 6))
    keep = np.asarray([True, False, True, True])
    return {
        "matrix": (matrix, matrix),
        "vector": (vector, np.diag(vector)),
        "blocks of heads": (blocks, dense),
        "dropped": (Dropped(jnp.asarray(matrix), jnp.broadcast_to(keep, (3, 2, 4))), keep[:, None] * matrix),
    }


@pytest.mark.parametrize("kind", ["matrix", "vector", "blocks of heads", "dropped"])
def test_products_are_those_of_the_matrix(kind, x64):
    rng = np.random.default_rng(0)
    w, dense = weights(rng)[kind]
    w = jax.tree.map(jnp.asarray, w)
    x, d = rng.normal(size=(3, 2, 4)), rng.normal(size=(3, 2, dense.shape[1]))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)  # noqa: E731
    close(jaxrnn.dot(jnp.asarray(x), w), x @ dense)
    close(jaxrnn.dot_transposed(jnp.asarray(d), w), d @ dense.T)
    params = own.Params(None, w, None)
    prepared = jaxrnn.prepare_transposed("w_h", "w_x")(params)
    assert prepared.w_x is None
    close(jaxrnn.dot_transposed(jnp.asarray(d), prepared.w_h), d @ dense.T)
    found = jaxrnn.weight_gradient(jnp.asarray(x), jnp.asarray(d), w)
    # The cotangent of a weight is JAX's own derivative of the product by its numbers.
    expected = jax.vjp(lambda w: jaxrnn.dot(jnp.asarray(x), w), w)[1](jnp.asarray(d))[0]
    close(found, expected.w if kind == "dropped" else expected)
    if kind != "vector":
        gate = dense.shape[1] // 2
        close(jaxrnn.dot(jnp.asarray(x), jaxrnn.weight_columns(w, gate, 2 * gate)), x @ dense[:, gate:])


def test_products_round_to_the_weight_and_accumulate_in_the_other_operand():
    x, w = jnp.full((1, 2), 1.003), jnp.full((2, 1), 1.01, jnp.bfloat16)
    rounded = float(jnp.bfloat16(1.003)) * float(jnp.bfloat16(1.01))
    product = jaxrnn.dot(x, w)
    assert product.dtype == jnp.float32
    np.testing.assert_allclose(product, [[2 * rounded]], rtol=1e-6)
    np.testing.assert_allclose(jaxrnn.dot_transposed(x[:, :1], w), [[rounded, rounded]], rtol=1e-6)
    assert jaxrnn.weight_gradient(x, x[:, :1], w).dtype == jnp.float32


W, X = jnp.ones((3, 4)), jnp.ones((2, 3))
REFUSED = {
    "a list": (lambda: jaxrnn.dot(X, [[1.0]]), TypeError, "dot: w expected a floating-point weight of shape"),
    "integers": (lambda: jaxrnn.dot(X, jnp.ones((3, 4), int)), TypeError, "dot: w expected a floating-point weight"),
    "four axes": (lambda: jaxrnn.dot(X, jnp.ones((1, 1, 3, 4))), ValueError, r"got shape \(1, 1, 3, 4\)"),
    "x of another size": (lambda: jaxrnn.dot(X[:, :2], W), ValueError, r"dot: x expected a last axis of 3.*\(2, 2\)"),
    "a scalar": (lambda: jaxrnn.dot(jnp.ones(()), W), ValueError, "dot: x expected a last axis of 3"),
    "an integer x": (lambda: jaxrnn.dot(jnp.ones((2, 3), int), W), TypeError, "dot: x expected a floating-point array"),
    "d of another size": (
        lambda: jaxrnn.dot_transposed(X, W),
        ValueError,
        "dot_transposed: d expected a last axis of 4",
    ),
    "other leading axes": (
        lambda: jaxrnn.weight_gradient(X, jnp.ones((5, 4)), W),
        ValueError,
        r"weight_gradient: x and d expected the same leading axes, got \(2, 3\) and \(5, 4\)",
    ),
    "a transposed weight": (
        lambda: jaxrnn.weight_gradient(X, X, jaxrnn.prepare_transposed("w_h")(own.Params(W, W, W)).w_h),
        TypeError,
        "weight_gradient: w expected the weight itself, got its transpose",
    ),
    "a complex x": (
        lambda: jaxrnn.dot(X.astype(jnp.complex64), W),
        TypeError,
        "dot: x and w expected both real or both complex, got compl",
    ),
    "a complex weight": (
        lambda: jaxrnn.dot_transposed(jnp.ones((2, 4)), W.astype(jnp.complex64)),
        TypeError,
        "dot_transposed: d and w exp",
    ),
    "a complex factor": (
        lambda: jaxrnn.weight_gradient(X.astype(jnp.complex64), jnp.ones((2, 4)), W),
        TypeError,
        "weight_gradient: x and w expected both real or both complex, got complex64 and float32",
    ),
    "columns out of range": (lambda: jaxrnn.weight_columns(W, 2, 5), ValueError, "0 <= start < stop <= 4, got 2 and 5"),
    "half a gate": (lambda: jaxrnn.weight_columns(jnp.ones((2, 2, 4)), 0, 3), ValueError, "whole gates of 2 heads"),
    "no names": (lambda: jaxrnn.prepare_transposed(), TypeError, "prepare_transposed: names expected"),
    "a name that is none": (lambda: jaxrnn.prepare_transposed(3), TypeError, "prepare_transposed: names expected"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_arguments_are_refused(what, unhooked):
    call, error, message = REFUSED[what]
    with pytest.raises(error, match=message) as raised:
        call()
    assert len(str(raised.value)) <= 500


# A GRU of one's own


def both(cell, library):
    """The two cells, each with its parameters of equal values."""
    return (cell, cell.init(KEY, I)), (library, library.init(KEY, I))


XS = jax.random.normal(jax.random.key(1), (T, B, I))


@pytest.mark.parametrize("options", [
    {}, {"recurrent_dropout": 0.4}, {"dropconnect": 0.3}, {"input_dropout": 0.2, "zoneout": 0.2},
], ids=str)  # fmt: skip
def test_an_own_gru_equals_that_of_the_library_with_its_noise(options):
    """From one key both draw the same masks, so that the noise has the library's expectation."""
    results = []
    for cell, params in both(own_gru(H), jaxrnn.gru(H)):
        run = jaxrnn.regularize(cell, **options) if options else cell
        key = jax.random.key(2) if options else None

        def loss(params, xs, run=run, key=key):
            return jnp.sum(jnp.sin(jaxrnn.unroll(run, params, xs, key=key)[1]))

        value, gradients = jax.value_and_grad(loss, (0, 1))(params, XS)
        results.append((value, jax.tree.leaves(gradients)))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_an_own_gru_keeps_the_contract():
    report = check_cell(own_gru(H), I)
    assert report.passed[-1] == "dtypes"
    assert report.notes == ()


def products_of(jaxpr):
    """The dtypes of the operands, and of the result, of all matrix products in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(atom.aval.dtype.name for atom in (*equation.invars, *equation.outvars))
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products_of(inner)


def test_all_products_of_a_train_step_of_an_own_gru_are_in_bfloat16():
    cell = own_gru(H)
    loss = lambda params, xs: jnp.sum(jaxrnn.unroll(cell, params, xs, compute_dtype=jnp.bfloat16)[1])  # noqa: E731
    found = list(products_of(jax.make_jaxpr(jax.grad(loss, (0, 1)))(cell.init(KEY, I), XS).jaxpr))
    assert len(found) == 6  # x W_x and h W_h, and two cotangents of each
    assert set(found) == {("bfloat16", "bfloat16", "float32")}


def test_recurrent_dropout_is_refused_where_a_rule_multiplies_by_itself():
    message = (
        "regularize: recurrent_dropout expected a rule whose products with w_h are jaxrnn.dot.*own raised TypeError"
    )
    with pytest.raises(NotImplementedError, match=message):
        jaxrnn.regularize(own.CELL, recurrent_dropout=0.1)
    in_backward = RULE._replace(backward=lambda p, tape, dh, dy: (dh + (dh + dy) @ p.w_h[:, :H].T, (tape.before,) * 2))
    with pytest.raises(NotImplementedError, match="own_gru raised"):
        jaxrnn.regularize(own_gru(H)._replace(rule=in_backward), recurrent_dropout=0.1)
    dropped = jaxrnn.regularize(own.CELL, dropconnect=0.5)
    assert jnp.isfinite(jaxrnn.unroll(dropped, own.init(KEY, I), XS, key=KEY)[1]).all()


def test_recurrent_dropout_runs_a_backward_that_knows_one_batch_axis():
    def backward(params, tape, dh, dy):
        assert dh.ndim == 2
        return RULE.backward(params, tape, dh, dy)

    plain = own_gru(H)
    cells = plain, plain._replace(rule=RULE._replace(backward=backward))
    params = plain.init(KEY, I)
    found = [
        jax.grad(lambda p, c=jaxrnn.regularize(c, recurrent_dropout=0.4): jaxrnn.unroll(c, p, XS, key=KEY)[1].sum())(
            params
        )
        for c in cells
    ]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(a, b)


# Parameters that are no NamedTuple


class Arrays:
    """Parameters with attributes, as a dataclass has."""

    def __init__(self, *arrays):
        self.w_x, self.w_h, self.b, self.b_hn = arrays


jax.tree_util.register_pytree_node(
    Arrays, lambda p: ((p.w_x, p.w_h, p.b, p.b_hn), None), lambda _, arrays: Arrays(*arrays)
)


def of_arrays(matrices=()):
    """A GRU of one's own whose parameters are `Arrays`."""
    cell, record = own_gru(H), lambda p: Params(p.w_x, p.w_h, p.b, p.b_hn)
    of = lambda f: lambda p, *given: f(record(p), *given)  # noqa: E731

    def accumulate(params, *given):
        dparams, dxs = RULE.accumulate(record(params), *given)
        return Arrays(*dparams), dxs

    rule = jaxrnn.Rule(of(RULE.project), of(RULE.forward), of(RULE.backward), accumulate, matrices)
    return cell._replace(init=lambda *given: Arrays(*cell.init(*given)), step=of(cell.step), rule=rule)


OF_ARRAYS = {
    "regularize": (
        lambda: jaxrnn.regularize(of_arrays(), dropconnect=0.1),
        "regularize: cell expected one with a rule and a parameter w_h, got own_gru; w_h is a field of a NamedTuple",
    ),
    "ablate_gates": (
        lambda: analysis.ablate_gates(of_arrays(), "z", 0.5),
        "ablate_gates: cell expected parameters with fields w_x, w_h and b of a NamedTuple",
    ),
    "compute_dtype": (
        lambda: jaxrnn.unroll(of_arrays(("w_h",)), Arrays(*own_gru(H).init(KEY, I)), XS, compute_dtype=jnp.bfloat16),
        "unroll: compute_dtype expected a rule whose matrices are fields of params, NamedTuples of arrays, but that of",
    ),
}


def test_messages_cut_the_name_of_a_cell():
    cell = own_gru(H)._replace(name="long" * 100)
    params, rule = cell.init(KEY, I), cell.rule
    multiplied = rule._replace(forward=lambda p, h, a: h @ p.w_h, matrices=("u",))
    calls = [
        lambda: jaxrnn.regularize(cell._replace(rule=None), dropconnect=0.1),
        lambda: jaxrnn.regularize(cell._replace(rule=multiplied), recurrent_dropout=0.1),
        lambda: jaxrnn.unroll(
            cell._replace(rule=rule._replace(matrices=("u",))), params, XS, compute_dtype=jnp.bfloat16
        ),
        lambda: jaxrnn.unroll(cell._replace(rule=None), params, XS, compute_dtype=jnp.bfloat16),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError) as raised:
            call()
        assert len(str(raised.value)) <= 500


@pytest.mark.parametrize("what", OF_ARRAYS)
def test_parameters_that_are_no_record_are_refused_in_words(what):
    call, message = OF_ARRAYS[what]
    with pytest.raises(NotImplementedError, match=message) as raised:
        call()
    assert len(str(raised.value)) <= 500


def test_parameters_that_are_no_record_have_a_backward_pass():
    loss = lambda final, ys: jnp.sum(ys**2)  # noqa: E731
    params = own_gru(H).init(KEY, I)
    found = analysis.backward_pass(of_arrays(), Arrays(*params), XS, loss)
    expected = analysis.backward_pass(own_gru(H), params, XS, loss)
    assert found.by_gate is None
    assert list(found.pre_activations) == list(expected.pre_activations)
    for a, b in zip(*(jax.tree.leaves((f.weights, f.pre_activations)) for f in (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# The size of the output


def test_output_size_is_read_where_it_is_given():
    def needs_more(*_):
        raise KeyError("memory")

    cell = own_gru(H)._replace(step=needs_more, rule=None)
    net = jaxrnn.stack([cell, jaxrnn.gru(2)])
    assert net.init(KEY, I)[1].w_x.shape == (H, 6)
    message = (
        r"stack: output_size of own_gru is not given, and cannot be learnt .* raised KeyError: 'memory'; give Cell"
    )
    with pytest.raises(ValueError, match=message):
        jaxrnn.stack([cell._replace(output_size=None)])
    with pytest.raises(TypeError, match="output_size of own_gru expected a positive integer"):
        jaxrnn.stack([cell._replace(output_size="6")])
    assert jaxrnn.stack([own_gru(H)._replace(output_size=None), jaxrnn.gru(2)]).init(KEY, I)[1].w_x.shape == (H, 6)


@pytest.mark.parametrize(
    "cell", [jaxrnn.lstm(4, projection_size=2), jaxrnn.lru(4, output_size=3), jaxrnn.slstm(4)], ids=repr
)
def test_output_size_of_a_cell_of_the_library_is_that_of_its_output(cell):
    _, y = cell.step(cell.init(KEY, I), cell.initial_state(), jnp.ones(I))
    assert cell.output_size == y.shape[-1]


def test_multiplied_fields_are_seen_through_the_public_products():
    from jaxrnn.sequence.request import Inputs

    cell = own_gru(H)
    inputs = Inputs(cell.init(KEY, I), XS, cell.initial_state((B,)), None, None, None, None)
    assert multiplied_fields(RULE, inputs) == {"w_x", "w_h"}
