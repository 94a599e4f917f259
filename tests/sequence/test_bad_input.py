"""Refusals of `unroll`, factories and steps. A message has function, argument, expected, got, likely cause."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.sequence import registry
from tests.support.registry import B, H, I, T, make

pytestmark = pytest.mark.usefixtures("unhooked")

MODULE = jaxrnn.modules.RNN(I, H, rngs=nnx.Rngs(0))
LSTM, GRU, RNN = make("lstm"), make("gru"), make("rnn-tanh")
ZEROS = np.zeros((T, B), bool)


def unroll(case=GRU, **changes):
    arguments = {"params": case.params, "xs": case.xs, "state": case.state, **changes}
    return jaxrnn.unroll(arguments.pop("cell", case.cell), **arguments)


REFUSED = {
    # xs
    "rank": (lambda: unroll(xs=jnp.ones(3)), ValueError, r"unroll: xs expected shape \(T, \*B, I\), got \(3,\)"),
    "feature size": (lambda: unroll(xs=jnp.ones((T, B, 7)), state=None), ValueError,
                     r"unroll: xs has last axis 7, params\.w_x expects 3; is xs batch-major"),
    "batch-major with lengths": (lambda: unroll(xs=jnp.ones((B, T, I)), state=None, lengths=np.ones(B, int)), ValueError,
                                 r"unroll: lengths expected the batch shape \(6,\), got \(5,\)"),
    "batch-major with state": (lambda: unroll(xs=jnp.ones((B, T, I))), ValueError,
                               r"unroll: state expected float32\[6, 4\], got float32\[5, 4\]"),
    "integers": (lambda: unroll(xs=jnp.ones((T, B, I), int)), TypeError,
                 r"unroll: xs expected a floating-point array, got int32\[6, 5, 3\]; embed"),
    "booleans": (lambda: unroll(xs=jnp.ones((T, B, I), bool)), TypeError, "unroll: xs expected a floating-point array"),
    "a list": (lambda: unroll(xs=[[1.0]]), TypeError, "unroll: xs expected an array, got list"),
    # state
    "state shape": (lambda: unroll(state=jnp.ones(H)), ValueError,
                    r"unroll: state expected float32\[5, 4\], got float32\[4\]; states are not broadcast"),
    "state structure": (lambda: unroll(LSTM, state=(jnp.ones((B, H)),) * 2), TypeError,
                        r"unroll: state expected LSTMState\(h=.*, c=.*\), got tuple of .* another cell"),
    "state of another cell": (lambda: unroll(LSTM, state=GRU.state), TypeError, "unroll: state expected LSTMState"),
    "integer state": (lambda: unroll(state=jnp.ones((B, H), int)), TypeError, "unroll: state expected floating-point"),
    "reset_state shape": (lambda: unroll(resets=ZEROS, reset_state=jnp.ones((1, H))), ValueError,
                          "unroll: reset_state expected"),
    "reset_state alone": (lambda: unroll(reset_state=GRU.state), ValueError,
                          "unroll: reset_state expected None without resets"),
    # params
    "params of another cell": (lambda: unroll(params=LSTM.params), TypeError,
                               "unroll: params expected GRUParams, got LSTMParams; are they the params of another cell"),
    "params of another size": (lambda: unroll(cell=jaxrnn.gru(9), state=None), ValueError,
                               r"unroll: params\.w_x expected shape \(3, 27\), got \(3, 12\)"),
    "params of another form": (lambda: unroll(cell=jaxrnn.gru(H, reset_after=False)), ValueError,
                               r"unroll: params\.b_hn expected None, got float32\[4\]; are they the params of the same cell in another form"),
    "not a cell": (lambda: unroll(cell=jaxrnn.lstm), TypeError, "unroll: cell expected a jaxrnn.Cell, got function"),
    # lengths, mask, resets
    "lengths and mask": (lambda: unroll(lengths=np.ones(B, int), mask=ZEROS), ValueError,
                         "unroll: lengths and mask were both given, expected one"),
    "float mask": (lambda: unroll(mask=jnp.ones((T, B))), TypeError, r"unroll: mask expected booleans, got float32\[6, 5\]"),
    "mask shape": (lambda: unroll(mask=ZEROS.T), ValueError,
                   r"unroll: mask expected shape \(T, \*B\) = \(6, 5\), got \(5, 6\); is it batch-major"),
    "mask to broadcast": (lambda: unroll(mask=ZEROS[:, :1]), ValueError, r"got \(6, 1\)"),
    "integer resets": (lambda: unroll(resets=ZEROS.astype(int)), TypeError, "unroll: resets expected booleans"),
    "resets shape": (lambda: unroll(resets=ZEROS[:3]), ValueError, "unroll: resets expected shape"),
    "float lengths": (lambda: unroll(lengths=jnp.ones(B)), TypeError, "unroll: lengths expected integers"),
    "lengths as a list": (lambda: unroll(lengths=[1] * B), TypeError, "unroll: lengths expected an array, got list"),
    "lengths shape": (lambda: unroll(lengths=np.ones((B, 1), int)), ValueError, "unroll: lengths expected the batch shape"),
    "lengths above T": (lambda: unroll(lengths=np.full(B, 7)), ValueError,
                        r"unroll: lengths expected values from 0 to T = 6, got 7"),
    "lengths below 0": (lambda: unroll(lengths=jnp.full(B, -1)), ValueError, "from 0 to T = 6, got -1"),
    # options
    "implementation": (lambda: unroll(implementation="fast"), ValueError,
                       "unroll: implementation expected one of None, 'bptt', 'scan', 'reference', 'associative', 'cudnn', 'pallas', 'pallas_interpret', 'newton'; got 'fast'"),
    "reverse": (lambda: unroll(reverse=jnp.ones((), bool)), TypeError, "unroll: reverse expected True or False"),
    "return_states": (lambda: unroll(return_states="yes"), TypeError, "unroll: return_states expected True or False"),
    "compute_dtype": (lambda: unroll(compute_dtype="int8"), TypeError, "unroll: compute_dtype expected one of the dtypes"),
    "compute_dtype name": (lambda: unroll(compute_dtype="bf17"), TypeError, "unroll: compute_dtype expected .* 'bf17'"),
    # variants
    "projection size": (lambda: jaxrnn.lstm(4, projection_size=4), ValueError,
                        "lstm: projection_size expected less than hidden_size = 4, got 4"),
    "projection 0": (lambda: jaxrnn.lstm(4, projection_size=0), ValueError, "lstm: projection_size expected a positive"),
    "peephole": (lambda: jaxrnn.lstm(4, peephole="yes"), TypeError, "lstm: peephole expected True or False"),
    "coupled": (lambda: jaxrnn.lstm(4, coupled=1), TypeError, "lstm: coupled expected True or False"),
    "layer_norm": (lambda: jaxrnn.gru(4, layer_norm=None), TypeError, "gru: layer_norm expected True or False"),
    "plain params for peephole": (lambda: unroll(LSTM, cell=jaxrnn.lstm(H, peephole=True)), ValueError,
                                  r"unroll: params\.peephole expected an array, got None"),
    "plain params for coupled": (lambda: unroll(LSTM, cell=jaxrnn.lstm(H, coupled=True)), ValueError,
                                 r"unroll: params\.w_x expected shape \(3, 12\), got \(3, 16\)"),
    "projected params for plain": (lambda: unroll(make("lstm-projection"), cell=jaxrnn.lstm(H), state=None), ValueError,
                                   r"unroll: params\.w_proj expected None"),
    "norm of a GRU": (lambda: jaxrnn.lstm_step(LSTM.params._replace(norm=make("gru-layer-norm").params.norm), LSTM.state, LSTM.xs[0]),
                      TypeError, "lstm_step: params expected LSTMNorm, got GRUNorm"),
    "mgu size": (lambda: jaxrnn.mgu(0), ValueError, "mgu: hidden_size expected"),
    "indrnn activation": (lambda: jaxrnn.indrnn(4, activation="swish"), ValueError, "indrnn: activation expected one of"),
    "indrnn params": (lambda: jaxrnn.indrnn_step(RNN.params, RNN.state, RNN.xs[0]), TypeError,
                      "indrnn_step: params expected IndRNNParams, got RNNParams"),
    "mgu params": (lambda: jaxrnn.mgu_step(RNN.params, RNN.state, RNN.xs[0]), TypeError, "mgu_step: params expected MGUParams"),
    # factories
    "size 0": (lambda: jaxrnn.lstm(0), ValueError, "lstm: hidden_size expected a positive integer, got 0"),
    "size 2.0": (lambda: jaxrnn.gru(2.0), TypeError, "gru: hidden_size expected a positive integer, got float 2.0"),
    "size True": (lambda: jaxrnn.rnn(True), TypeError, "rnn: hidden_size expected a positive integer, got bool True"),
    "input_size": (lambda: jaxrnn.rnn(2).init(jax.random.key(0), -1), ValueError, "rnn.init: input_size expected"),
    "activation": (lambda: jaxrnn.rnn(2, activation="gelu"), ValueError,
                   "rnn: activation expected one of 'tanh', 'relu', 'sigmoid', .* or a callable; got 'gelu'"),
    "activation None": (lambda: jaxrnn.rnn(2, activation=None), ValueError, "rnn: activation expected"),
    "use_bias": (lambda: jaxrnn.lstm(2, use_bias=1), TypeError, "lstm: use_bias expected True or False"),
    "reset_after": (lambda: jaxrnn.gru(2, reset_after="no"), TypeError, "gru: reset_after expected True or False"),
    "activation that sums": (lambda: unroll(RNN, cell=jaxrnn.rnn(H, activation=jnp.sum)), ValueError,
                             r"rnn: activation expected a function to an array of the same shape, got one from shape \(4,\) to \(\)"),
    # steps
    "step feature size": (lambda: jaxrnn.gru_step(GRU.params, GRU.state, jnp.ones((B, 2))), ValueError,
                          "gru_step: x has last axis 2, params.w_x expects 3"),
    "step scalar": (lambda: jaxrnn.rnn_step(RNN.params, RNN.state, jnp.ones(())), ValueError, "rnn_step: x expected shape"),
    "step integers": (lambda: jaxrnn.lstm_step(LSTM.params, LSTM.state, jnp.ones((B, I), int)), TypeError,
                      "lstm_step: x expected a floating-point array"),
    "step state": (lambda: jaxrnn.lstm_step(LSTM.params, GRU.state, LSTM.xs[0]), TypeError, "lstm_step: state expected"),
    "step params": (lambda: jaxrnn.lstm_step(GRU.params, LSTM.state, LSTM.xs[0]), TypeError, "lstm_step: params expected"),
    "step matrix": (lambda: jaxrnn.gru_step(GRU.params._replace(w_h=jnp.ones(3)), GRU.state, GRU.xs[0]), ValueError,
                    "gru_step: params.w_h expected a matrix"),
    "step bias": (lambda: jaxrnn.gru_step(GRU.params._replace(b=jnp.ones(3)), GRU.state, GRU.xs[0]), ValueError,
                  r"gru_step: params\.b expected shape \(12,\), got \(3,\)"),
    "step activation": (lambda: jaxrnn.rnn_step(RNN.params, RNN.state, RNN.xs[0], activation="cos"), ValueError,
                        "rnn_step: activation expected one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("case", ["feature size", "float mask", "state shape", "implementation"])
def test_bad_arguments_are_refused_while_tracing(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        jax.jit(call)()


def test_unsupported_calls_are_refused_with_a_reason():
    cell = jaxrnn.Cell(*GRU.cell[:3])
    with pytest.raises(
        NotImplementedError,
        match="'bptt' does not support this call of cell; .*which the cell does not have; 'scan' supports it",
    ):
        unroll(cell=cell, implementation="bptt")
    with pytest.raises(NotImplementedError, match="compute_dtype does not support cell"):
        unroll(cell=cell, compute_dtype=jnp.bfloat16)


INTEGERS = jaxrnn.RNNParams(*(np.asarray(v, np.int32) for v in ([[1, 2], [3, 4]], [[0, 1], [1, 0]], [0, 0])))


def test_params_of_whole_numbers_are_refused_and_as_floats_give_the_equations(unhooked):
    """As integers they would round the inputs to zeros in the product."""
    xs = np.asarray([[0.5, 0.25]], np.float32)
    cell = jaxrnn.rnn(2)
    expected = np.tanh(xs @ np.asarray(INTEGERS.w_x))
    floats = jax.tree.map(lambda leaf: leaf.astype(np.float32), INTEGERS)
    np.testing.assert_allclose(jaxrnn.unroll(cell, floats, xs)[1], expected, rtol=1e-6)


def uses_of(cell, params, xs):
    """Every function that reads parameters, on these."""
    h, net, module = np.zeros(2, np.float32), jaxrnn.stack([cell]), jaxrnn.modules.RNN(2, 2, rngs=nnx.Rngs(0))
    calls = [
        lambda name=name: jaxrnn.unroll(cell, params, xs, implementation=name) for name in registry.IMPLEMENTATIONS
    ]
    return [
        *calls,
        lambda: jaxrnn.rnn_step(params, h, xs[0]),
        lambda: net.unroll((params,), xs),
        lambda: net.step((params,), (h,), xs[0]),
        lambda: jaxrnn.generate(cell, params, h, xs[0], lambda y, key: y, 2),
        lambda: module.load((params,)),
        lambda: jaxrnn.save("unused", cell, params),
        lambda: jaxrnn.interop.to_torch((params,)),
        lambda: jaxrnn.analysis.state_jacobians(cell, params, xs),
    ]


@pytest.mark.parametrize("dtype", [np.int32, np.int8, bool, np.complex64])
def test_every_use_of_params_that_are_no_floats_is_refused(dtype, unhooked):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), INTEGERS)
    for call in uses_of(jaxrnn.rnn(2), params, np.asarray([[0.5, 0.25]], np.float32)):
        with pytest.raises((TypeError, ValueError), match=rf"w_x\b.*{np.dtype(dtype).name}"):
            call()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: jaxrnn.unroll(jaxrnn.stack([RNN.cell]), (RNN.params,), RNN.xs), r"unroll: cell expected a jaxrnn.Cell, got .*; call net.unroll\(params, xs\)"),
    (lambda: jaxrnn.unroll(MODULE, RNN.params, RNN.xs), "unroll: cell expected .*; call the module itself, or its network.unroll"),
    (lambda: jaxrnn.save("unused", MODULE, MODULE.params), r"save: network expected .*\.network"),
    (lambda: jaxrnn.interop.to_onnx(MODULE, MODULE.params), r"to_onnx: .*\.network"),
    (lambda: jaxrnn.stack(jaxrnn.lstm(8)), r"stack: cells expected a list; write stack\(\[cell\]\), got lstm\(8\)"),
    (lambda: jaxrnn.stack([RNN.cell])((RNN.params,), RNN.xs), r"a network is not called; use net.unroll\(params, xs\)"),
    (lambda: RNN.cell(RNN.params, RNN.xs), r"a cell is not called; use jaxrnn.unroll\(cell, params, xs\)"),
    (lambda: jaxrnn.lstm(4).initial_state(3), r"lstm.initial_state: batch_shape expected a tuple of sizes, got int 3; write \(3,\)"),
])  # fmt: skip
def test_messages_name_the_call_that_is_meant(call, message, unhooked):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("call", [
    lambda: jaxrnn.stack([RNN.cell]).unroll((RNN.params,), np.ones((60, 60, I)).tolist()),
    lambda: unroll(RNN, lengths=[1] * 5000),
    lambda: unroll(RNN, params=[RNN.params] * 1000),
    lambda: jaxrnn.rnn(10**400),
    lambda: jaxrnn.rnn(2, activation="x" * 5000),
    lambda: RNN.cell.initial_state("x" * 5000),
])  # fmt: skip
def test_long_values_are_described_in_short_messages(call, unhooked):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert len(str(caught.value).splitlines()[0]) <= 500
