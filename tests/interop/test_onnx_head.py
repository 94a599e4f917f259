"""Models with an embedding, the last output and a read-out around the network, against ONNX Runtime."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import Bidirectional
from jaxrnn.interop import from_onnx, to_onnx
from tests.support.onnx_tools import TOLERANCE, cell_of, random_params, run
from tests.support.registry import B, I, T, gap, quick_jit

VOCABULARY, CLASSES = 7, 3
LENGTHS = np.asarray([T, 1, 0, T - 2, 3], np.int32)
NETWORKS = {
    "one way": jaxrnn.stack([cell_of("lstm-projection"), cell_of("gru")]),
    "both ways": jaxrnn.stack([cell_of("gru"), cell_of("lstm")], bidirectional=True),
    "unlike directions": jaxrnn.stack([Bidirectional(cell_of("lstm"), cell_of("gru"))]),
    "a cell": cell_of("gru"),
}
CASES = [
    ("one way", "softmax", {"lengths": True}),
    ("one way", "identity", {"batch_first": True, "opset": 14}),
    ("one way", "sigmoid", {"reverse": True, "lengths": True, "opset": 21}),
    ("both ways", "softmax", {"lengths": True, "batch_first": True}),
    ("both ways", "sigmoid", {}),
    ("unlike directions", "softmax", {"lengths": True, "initial_state": "inputs"}),
    ("a cell", "identity", {"lengths": True}),
]


def head_of(activation, features, dtype=np.float32):
    read = jaxrnn.readout(CLASSES, activation=activation, use_bias=activation != "sigmoid")
    rng, shapes = np.random.default_rng(5), jax.eval_shape(lambda: read.init(jax.random.key(0), features))
    return read, jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), dtype), shapes)


def feeds_of(model, rng, embedded):
    """Tokens or vectors, lengths, and states of random numbers, for the inputs that the model has."""
    feeds = {}
    for given in model.graph.input:
        sizes = {"time": T, "batch": B}
        shape = [sizes.get(d.dim_param, d.dim_value) for d in given.type.tensor_type.shape.dim]
        if given.name == "lengths":
            feeds["lengths"] = LENGTHS
        elif given.name == "tokens":
            feeds["tokens"] = rng.integers(0, VOCABULARY, shape).astype(np.int32)
        else:
            feeds[given.name] = rng.standard_normal(shape).astype(np.float32)
    assert ("tokens" in feeds) == embedded
    return feeds


def in_jax(network, params, feeds, table, head, last_output, options):
    """The same model, as a user of jaxrnn writes it."""
    xs = jnp.asarray(feeds["x"]) if table is None else jnp.asarray(table)[feeds["tokens"]]
    xs = xs.swapaxes(0, 1) if options.get("batch_first") else xs
    lengths, reverse = feeds.get("lengths"), options.get("reverse", False)
    state = None
    if "h_0_l0" in feeds:
        forward = jaxrnn.LSTMState(feeds["h_0_l0"][0], feeds["c_0_l0"][0])
        state = (Bidirectional(forward, jnp.asarray(feeds["h_0_l0_reverse"][0])),)
    if isinstance(network, jaxrnn.Cell):
        _, ys = jaxrnn.unroll(network, params, xs, lengths=lengths, reverse=reverse)
    else:
        _, ys = network.unroll(params, xs, state, lengths=lengths, reverse=reverse)
    if last_output and reverse:
        ys = jnp.where((lengths > 0)[:, None], ys[0], 0)
    elif last_output:
        both = not isinstance(network, jaxrnn.Cell) and isinstance(network.layers[-1], Bidirectional)
        ys = jaxrnn.last_output(ys, lengths, bidirectional=both)
    ys = ys if head is None else head[0].predict(head[1], ys)
    return ys.swapaxes(0, 1) if options.get("batch_first") and not last_output else ys


@pytest.mark.parametrize(("name", "activation", "options"), CASES)
@pytest.mark.parametrize("last_output", [True, False])
def test_whole_models_compute_the_same_in_onnxruntime(name, activation, options, last_output):
    network, rng = NETWORKS[name], np.random.default_rng(3)
    params = random_params(network)
    table = rng.standard_normal((VOCABULARY, I)).astype(np.float32) if last_output else None
    features = {"both ways": 8, "unlike directions": 8}.get(name, 4)
    head = head_of(activation, features)
    model = to_onnx(network, params, embedding=table, last_output=last_output, readout=head, **options)
    feeds = feeds_of(model, rng, embedded=table is not None)
    theirs = run(model, feeds)["y"]
    ours = quick_jit(lambda params: in_jax(network, params, feeds, table, head, last_output, options))(params)
    assert theirs.shape == ours.shape
    assert gap(theirs, ours) < TOLERANCE
    _, read = from_onnx(model, reverse=options.get("reverse", False))
    jax.tree.map(np.testing.assert_array_equal, read[-1], params if name == "a cell" else params[-1])


def test_the_last_output_alone_is_zero_for_a_sequence_of_length_0():
    network = NETWORKS["both ways"]
    model = to_onnx(network, random_params(network), lengths=True, last_output=True)
    xs = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    y = run(model, {"x": xs, "lengths": LENGTHS})["y"]
    assert y.shape == (B, 8)
    assert (y[LENGTHS == 0] == 0).all() and (y[LENGTHS > 0] != 0).all()  # noqa: PT018


NETWORK = NETWORKS["one way"]
READ, HEAD = head_of("softmax", 4)
REFUSED = {
    "vectors": ({"embedding": np.ones(3, "f4")}, r"embedding expected shape \(V, I\), got \(3,\)"),
    "integers": ({"embedding": np.ones((5, I), int)}, "embedding expected a floating-point array, got int64"),
    "narrow table": ({"embedding": np.ones((5, 2), "f4")}, r"embedding expected shape \(V, 3\), .* got \(5, 2\)"),
    "a list": ({"embedding": [[1.0, "a"]]}, "embedding expected an array"),
    "a flag": ({"last_output": 1}, "last_output expected True or False"),
    "a read-out alone": ({"readout": READ}, r"readout expected a pair \(jaxrnn.readout"),
    "params alone": ({"readout": HEAD}, r"readout expected a pair \(jaxrnn.readout"),
    "wrong classes": ({"readout": (jaxrnn.readout(5), HEAD)}, r"readout.*params.v expected shape \(4, 5\), got \(4, 3\)"),
    "no bias": ({"readout": (READ, HEAD._replace(c=None))}, "readout: params.c expected an array, got None"),
    "wrong features": ({"readout": head_of("softmax", 8)}, r"readout expected params.v of 4 rows, .* got shape \(8, 3\)"),
    "into": ({"into": to_onnx(NETWORK, random_params(NETWORK)), "last_output": True}, "last_output expected its default"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_network_is_refused(case, unhooked):
    options, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=f"to_onnx.*{message}") as error:
        to_onnx(NETWORK, random_params(NETWORK), **options)
    assert len(str(error.value)) <= 500


def test_merged_directions_have_no_last_output_of_their_own():
    network = jaxrnn.stack([cell_of("gru")], bidirectional=True, merge="sum")
    with pytest.raises(ValueError, match="last_output expected a last layer of one direction, .* merge='sum'"):
        to_onnx(network, random_params(network), last_output=True)
