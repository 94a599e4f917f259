"""Refusals of converters name the function, the entry, what was expected and what was found; so do those of files."""

import json
import pickle
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxrnn
from jaxrnn import Bidirectional, GRUParams, LSTMParams, RNNParams, interop

pytestmark = pytest.mark.usefixtures("unhooked")

I, H = 2, 3  # noqa: E741


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


LSTM = LSTMParams(ones(I, 4 * H), ones(H, 4 * H), ones(4 * H))
GRU = GRUParams(ones(I, 3 * H), ones(H, 3 * H), ones(3 * H), ones(H))
RNN = RNNParams(ones(I, H), ones(H, H), ones(H))
PROJECTED = LSTMParams(ones(I, 4 * H), ones(2, 4 * H), ones(4 * H), w_proj=ones(H, 2))

TORCH = interop.to_torch((LSTM,))
TORCH_GRU = interop.to_torch((GRU,))
KERAS = {
    "lstm/lstm_cell/kernel": ones(I, 4 * H),
    "lstm/lstm_cell/recurrent_kernel": ones(H, 4 * H),
    "lstm/lstm_cell/bias": ones(4 * H),
}
KERAS_GRU = {"kernel": ones(I, 3 * H), "recurrent_kernel": ones(H, 3 * H), "bias": ones(2, 3 * H)}
NNX = {"dense_i.kernel": ones(I, 4 * H), "dense_h.kernel": ones(H, 4 * H), "dense_h.bias": ones(4 * H)}
LINEN = {"i.kernel": ones(I, H), "h.kernel": ones(H, H), "i.bias": ones(H)}
HAIKU = {"lstm/linear": {"w": ones(I + H, 4 * H), "b": ones(4 * H)}}
EQUINOX = {"weight_ih": ones(4 * H, I), "weight_hh": ones(4 * H, H), "bias": ones(4 * H)}


def without(weights: dict, name: str) -> dict:
    return {key: value for key, value in weights.items() if key != name}


def broken(weights: dict, name: str, value: Any) -> dict:
    return {**weights, name: value}


# Converter, weights, and two of their entries.
READERS = {
    "torch": (interop.from_torch, TORCH, "weight_hh_l0", "bias_hh_l0"),
    "torch-cell": (interop.from_torch, interop.to_torch(GRU), "weight_ih", "bias_hh"),
    "keras": (interop.from_keras, KERAS, "lstm/lstm_cell/recurrent_kernel", "lstm/lstm_cell/kernel"),
    "keras-cell": (interop.from_keras, KERAS_GRU, "kernel", "recurrent_kernel"),
    "nnx": (interop.from_nnx, NNX, "dense_h.kernel", "dense_h.bias"),
    "linen": (interop.from_linen, LINEN, "h.kernel", "i.bias"),
    "haiku": (interop.from_haiku, {"lstm/linear/w": ones(I + H, 4 * H), "lstm/linear/b": ones(4 * H)}, "lstm/linear/w", "lstm/linear/b"),
    "haiku-gru": (interop.from_haiku, {"w_i": ones(I, 3 * H), "w_h": ones(H, 3 * H), "b": ones(3 * H)}, "w_h", "b"),
    "haiku-rnn": (interop.from_haiku, {"linear/w": ones(I, H), "linear/b": ones(H), "linear_1/w": ones(H, H)}, "linear/w", "linear/b"),
    "equinox": (interop.from_equinox, EQUINOX, "weight_hh", "weight_ih"),
    "equinox-gru": (interop.from_equinox, {name: np.asarray(a) for name, a in interop.to_equinox(GRU).items()}, "weight_ih", "bias_n"),
}  # fmt: skip


@pytest.mark.parametrize("library", READERS)
def test_faults_of_every_entry_are_refused(library):
    """The message of each fault names the converter and the entry."""
    read, weights, name, needed = READERS[library]
    read(weights)
    where = read.__name__
    for entry in (name, needed):
        faults: dict[str, tuple[Any, type[Exception], str]] = {
            "missing": (without(weights, entry), ValueError, f"{where}: expected entry '{entry}', got '"),
            "integers": (broken(weights, entry, np.ones(weights[entry].shape, int)), TypeError,
                         f"{where}: entry '{entry}' expected a floating-point array, got int64"),
            "objects": (broken(weights, entry, np.full(weights[entry].shape, "x", object)), TypeError,
                        f"{where}: entry '{entry}' expected a floating-point array, got object"),
            "complex": (broken(weights, entry, weights[entry].astype(np.complex64)), TypeError,
                        f"{where}: entry '{entry}' expected a floating-point array, got complex64"),
            "list": (broken(weights, entry, weights[entry].tolist()), TypeError,
                     f"{where}: entry '{entry}' expected an array, got list"),
            "none": (broken(weights, entry, None), TypeError, f"{where}: entry '{entry}' expected an array, got None"),
            "float64": (broken(weights, entry, weights[entry].astype(np.float64)), TypeError,
                        f"{where}: entry '{entry}' expected a dtype that JAX holds, got float64; set jax_enable_x64"),
            "axes": (broken(weights, entry, np.stack([weights[entry]] * 2)), ValueError, f"{where}: entry '{entry}' expected "),
            "shape": (broken(weights, entry, np.pad(weights[entry], 1)), ValueError, f"{where}: entry '"),
        }  # fmt: skip
        for fault, (given, error, message) in faults.items():
            if fault == "none" and library.startswith("equinox"):
                error, message = ValueError, f"{where}: expected entry '{entry}', got '"
            with pytest.raises(error) as caught:
                read(given)
            assert str(caught.value).startswith(message), fault
    with pytest.raises(ValueError, match=f"^{where}: .*extra.*prefix selects a part of a larger mapping"):
        read(broken(weights, name.replace(name.split("/")[-1].split(".")[-1], "extra"), ones(1)))


JUNK = np.zeros(1, [("a", "f4")])

REFUSED = {
    # the mapping
    "a module": (lambda: interop.from_torch(object()), TypeError, "from_torch: state_dict expected a mapping of names to arrays, got object .*; files .*; of a module give the weights, not the module"),
    "a path": (lambda: interop.from_torch("net.pt"), TypeError, "from_torch: state_dict expected a mapping of names to arrays, got str 'net.pt'; files are read with jaxrnn.interop.read"),
    "names": (lambda: interop.from_torch({3.0: ones(1)}), TypeError, "from_torch: names expected strings, or tuples of strings and integers, got float 3.0"),
    "twice": (lambda: interop.from_nnx({**NNX, "dense_h": {"bias": ones(4 * H)}}), ValueError, "from_nnx: entry 'dense_h.bias' expected once, got it twice, flat and nested"),
    "nothing": (lambda: interop.from_equinox({}), ValueError, "from_equinox: weights expected entries below '', got no entries"),
    "prefix": (lambda: interop.from_torch(TORCH, prefix="net"), ValueError, "from_torch: state_dict expected entries below 'net.', got 'weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0'"),
    "no prefix": (lambda: interop.from_torch(interop.to_torch((LSTM,), "net")), ValueError, "from_torch: state_dict expected the weights of one layer below '', got those of layers below 'net'; prefix selects one"),
    "prefix type": (lambda: interop.from_torch(TORCH, prefix=("net",)), TypeError, "from_torch: prefix expected a string, got tuple"),
    "traced": (lambda: jax.jit(interop.from_equinox)(EQUINOX), TypeError, "from_equinox: entry 'bias' expected a concrete array, got float32\\[12\\]; convert outside jit"),
    "records": (lambda: interop.from_torch(broken(TORCH, "bias_ih_l0", JUNK)), TypeError, "from_torch: entry 'bias_ih_l0' expected a floating-point array"),
    # PyTorch
    "torch shape": (lambda: interop.from_torch(broken(TORCH, "weight_ih_l0", ones(11, I))), ValueError, r"from_torch: entry 'weight_ih_l0' expected shape \(12, 2\), got \(11, 2\)"),
    "torch gates": (lambda: interop.from_torch(broken(TORCH, "weight_hh_l0", ones(6, H))), ValueError, r"from_torch: entry 'weight_hh_l0' expected shape \(12, 3\), got \(6, 3\)$"),
    "torch kind": (lambda: interop.from_torch(TORCH, kind="gru"), ValueError, "from_torch: kind expected 'lstm', which the shapes have, got 'gru'; entry 'weight_hh_l0' has 4 gates"),
    "torch kind name": (lambda: interop.from_torch(TORCH, kind="LSTM"), ValueError, "from_torch: kind expected one of 'rnn', 'lstm', 'gru', None; got 'LSTM'"),
    "torch kind and projection": (lambda: interop.from_torch(interop.to_torch((PROJECTED,)), kind="gru"), ValueError, r"from_torch: kind expected 'lstm' with a projection \(weight_hr\), got 'gru'"),
    "torch projection missing": (lambda: interop.from_torch(without(interop.to_torch((PROJECTED, PROJECTED)), "weight_hr_l0")), ValueError, "from_torch: expected entry 'weight_hr_l0'"),
    "torch layer missing": (lambda: interop.from_torch({**TORCH, **{k.replace("l0", "l2"): v for k, v in TORCH.items()}}), ValueError, "from_torch: expected entry 'weight_ih_l1'"),
    "torch layer far off": (lambda: interop.from_torch(broken(TORCH, "weight_ih_l99999999999", ones(1))), ValueError, "from_torch: expected entry 'weight_ih_l1'"),
    "torch direction missing": (lambda: interop.from_torch({**TORCH, **{k + "_reverse": v for k, v in TORCH.items() if "weight" in k}}), ValueError, "from_torch: expected entry 'bias_ih_l0_reverse'"),
    "torch layers do not fit": (lambda: interop.from_torch(interop.to_torch((RNN,)) | {k.replace("l0", "l1"): v for k, v in interop.to_torch((RNN,)).items()}), ValueError, r"from_torch: entry 'weight_ih_l1' expected shape \(3, 3\), got \(3, 2\)"),
    "torch other entries": (lambda: interop.from_torch(broken(TORCH, "weight_g_l0", ones(1))), ValueError, "from_torch: entry 'weight_g_l0' is not one of 'weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0'; prefix"),
    "torch biases of two dtypes": (lambda: interop.from_torch(broken(TORCH, "bias_hh_l0", np.ones(12, np.float16))), TypeError, "from_torch: entry 'bias_hh_l0' expected float32 as 'bias_ih_l0', got float16; they become one array"),
    # Keras
    "keras GRU bias": (lambda: interop.from_keras(broken(KERAS_GRU, "bias", ones(3, 3 * H))), ValueError, r"from_keras: entry 'bias' expected shape \(2, 9\), got \(3, 9\); of a GRU with reset_after"),
    "keras LSTM bias": (lambda: interop.from_keras(broken(KERAS, "lstm/lstm_cell/bias", ones(2, 4 * H))), ValueError, r"from_keras: entry 'lstm/lstm_cell/bias' expected shape \(12,\), got \(2, 12\)"),
    "keras Dense": (lambda: interop.from_keras({**KERAS, "dense/kernel": ones(H, 1), "dense/bias": ones(1)}), ValueError, "from_keras: expected entry 'dense/recurrent_kernel', got 'dense/kernel', 'dense/bias'; prefix"),
    "keras bare and not": (lambda: interop.from_keras({**KERAS, **KERAS_GRU}), ValueError, "from_keras: entry 'lstm/lstm_cell/kernel' is not one of 'kernel', 'recurrent_kernel', 'bias'"),
    "keras stacked both ways": (lambda: interop.from_keras({f"b/{way}_rnn/{cell}/{k}": v for way in ("forward", "backward") for cell in ("gru_cell", "gru_cell_1") for k, v in KERAS_GRU.items()}), ValueError,
                                "from_keras: expected one cell below 'b/forward_' and one below 'b/backward_', got 'b/forward_rnn/gru_cell', 'b/forward_rnn/gru_cell_1', 'b/backward_rnn/gru_cell', .*; convert each with its prefix"),
    "keras backward layer of another name": (lambda: interop.from_keras({f"m/b/{cell}/{k}": v for cell in ("forward_lstm/lstm_cell", "gru/gru_cell") for k, v in KERAS_GRU.items()}, "m"), ValueError,
                                             "from_keras: expected one cell below 'm/b/forward_' and one below 'm/b/backward_', got 'm/b/forward_lstm/lstm_cell', 'm/b/gru/gru_cell'; convert"),
    # Flax
    "nnx without filter": (lambda: interop.from_nnx({"cell": NNX, "rngs": {"count": np.ones(())}}), ValueError, r"from_nnx: entry 'rngs' is not one of 'cell'; .*nnx.state\(module, nnx.Param\)"),
    "nnx of Linen": (lambda: interop.from_nnx(interop.to_linen(LSTM)["params"]), ValueError, "from_nnx: expected entry 'if_.kernel'"),
    "nnx direction": (lambda: interop.from_nnx({"forward_rnn": {"cell": NNX}}), ValueError, "from_nnx: expected entry 'backward_rnn', got 'forward_rnn'"),
    "nnx layer": (lambda: interop.from_nnx({"layers": {0: NNX, 2: NNX}}), ValueError, "from_nnx: expected entry 'layers.1', got 'layers.0', 'layers.2'"),
    "nnx gates": (lambda: interop.from_nnx(broken(NNX, "dense_h.kernel", ones(H, 2 * H))), ValueError, r"from_nnx: entry 'dense_h.kernel' expected shape \(3, 12\), got \(3, 6\)$"),
    "linen of another": (lambda: interop.from_linen({"params": {"Dense_0": {"kernel": ones(1, 1)}}}), ValueError, "from_linen: expected entry 'params.ii.kernel' of an LSTM, 'ir.kernel' of a GRU or 'i.kernel'"),
    "linen gates of two dtypes": (lambda: interop.from_linen({**interop.to_linen(GRU)["params"], "hz": {"kernel": np.ones((3, 3), jnp.bfloat16)}}), TypeError, "from_linen: entry 'hz.kernel' expected float32 as 'hr.kernel', got bfloat16"),
    # Haiku
    "haiku shape": (lambda: interop.from_haiku({"linear": {"w": ones(H, 4 * H), "b": ones(4 * H)}}), ValueError, r"from_haiku: entry 'linear/w' expected shape \(I \+ H, 4H\), got \(3, 12\)"),
    "haiku gates": (lambda: interop.from_haiku({"linear": {"w": ones(H, 7), "b": ones(7)}}), ValueError, r"from_haiku: entry 'linear/w' expected shape \(I \+ H, 4H\), got \(3, 7\)"),
    "haiku order": (lambda: interop.from_haiku({**HAIKU, "gru": {"w_i": ones(1, 3), "w_h": ones(1, 3), "b": ones(3)}}), ValueError, "from_haiku: params expected cores of one name and kind, got 'lstm' and 'gru', whose order is not to be seen"),
    # Equinox
    "equinox gates": (lambda: interop.from_equinox({"weight_ih": ones(H, I), "weight_hh": ones(H, H)}), ValueError, "from_equinox: entry 'weight_hh' expected 3 or 4 gates, got 1"),
    # cuDNN
    "cudnn length": (lambda: interop.from_cudnn(ones(287), 3, 4), ValueError, r"from_cudnn: flat expected shape \(144,\), got \(287,\); are input_size, hidden_size, num_layers, bidirectional and kind those of the network\?"),
    "cudnn axes": (lambda: interop.from_cudnn(ones(144, 1), 3, 4), ValueError, r"from_cudnn: flat expected shape \(144,\), got \(144, 1\)"),
    "cudnn dtype": (lambda: interop.from_cudnn(np.ones(144, int), 3, 4), TypeError, r"from_cudnn: flat expected a floating-point array, got int64\[144\]"),
    "cudnn float64": (lambda: interop.from_cudnn(np.ones(144), 3, 4), TypeError, "from_cudnn: flat expected a dtype that JAX holds, got float64"),
    "cudnn kind": (lambda: interop.from_cudnn(ones(144), 3, 4, kind="rnn"), ValueError, "from_cudnn: kind expected one of 'lstm', 'gru', 'rnn_tanh', 'rnn_relu'; got 'rnn'"),
    "cudnn size": (lambda: interop.from_cudnn(ones(144), 3, 0), ValueError, "from_cudnn: hidden_size expected a positive integer, got 0"),
    "cudnn directions": (lambda: interop.from_cudnn(ones(144), 3, 4, bidirectional=2), TypeError, "from_cudnn: bidirectional expected True or False, got int 2"),
    "cudnn mixed dtypes": (lambda: interop.to_cudnn((LSTM._replace(b=np.ones(12, np.float16)),)), TypeError, "to_cudnn: params expected one dtype, got float16 and float32"),
    # params without a counterpart
    "torch reset": (lambda: interop.to_torch((GRU._replace(b_hn=None),)), ValueError, r"to_torch: params\[0\].b_hn expected an array, got None; PyTorch resets after the product, this GRU before it"),
    "torch kinds": (lambda: interop.to_torch((LSTM, GRU)), ValueError, r"to_torch: params\[1\] expected lstm\(3\) with w_x, w_h, b as params\[0\], got gru\(3\) with w_x, w_h, b, b_hn; PyTorch has layers of one kind and size"),
    "torch biases": (lambda: interop.to_torch((RNN, RNN._replace(w_x=ones(H, H), b=None))), ValueError, r"to_torch: params\[1\] expected rnn\(3\) with w_x, w_h, b as params\[0\], got rnn\(3\) with w_x, w_h;"),
    "torch directions": (lambda: interop.to_torch((Bidirectional(RNN, RNN), RNN)), ValueError, r"to_torch: params\[1\] expected two directions as params\[0\].forward, got one direction"),
    "torch merge": (lambda: interop.to_torch((Bidirectional(RNN, RNN), Bidirectional(*[RNN._replace(w_x=ones(H, H))] * 2))), ValueError, r"to_torch: params\[1\].forward.w_x expected 6 rows, the outputs below it side by side, got 3; PyTorch merges"),
    "torch inputs differ": (lambda: interop.to_torch((Bidirectional(RNN, RNN._replace(w_x=ones(5, H))),)), ValueError, r"to_torch: params\[0\].backward.w_x expected 2 features of the input as params\[0\].forward.w_x, got 5"),
    "torch projection as large": (lambda: interop.to_torch((LSTMParams(ones(I, 12), ones(3, 12), ones(12), w_proj=ones(3, 3)),)), ValueError, r"to_torch: params\[0\].w_proj expected fewer than 3 columns, got 3; PyTorch takes proj_size below hidden_size"),
    "torch cell projection": (lambda: interop.to_torch(PROJECTED), ValueError, r"to_torch: params.w_proj expected None, got float32\[3, 2\]; PyTorch's cell has no projection"),
    "nnx b_hn": (lambda: interop.to_nnx(GRU), ValueError, "to_nnx: params.b_hn expected zeros, got others; nnx.GRUCell has no place for it, linen.GRUCell"),
    "nnx b_hn below": (lambda: interop.to_nnx((Bidirectional(LSTM, GRU),)), ValueError, r"to_nnx: params\[0\].backward.b_hn expected zeros"),
    "nnx option": (lambda: interop.to_nnx(LSTM, optimized=1), TypeError, "to_nnx: optimized expected True or False, got int 1"),
    "haiku reset": (lambda: interop.to_haiku(GRU._replace(b_hn=0 * GRU.b_hn)), ValueError, r"to_haiku: params.b_hn expected None, got float32\[3\]; Haiku resets before the product, this GRU after it"),
    "haiku directions": (lambda: interop.to_haiku((Bidirectional(LSTM, LSTM),)), ValueError, r"to_haiku: params\[0\].forward expected one direction, got two"),
    "equinox RNN": (lambda: interop.to_equinox(RNN), TypeError, "to_equinox: params expected LSTMParams or GRUParams, got RNNParams; Equinox has no simple RNN"),
    "equinox network": (lambda: interop.to_equinox((LSTM,)), TypeError, "to_equinox: params expected one record, got tuple of \\(LSTMParams.*; convert them one by one"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_weights_and_arguments_are_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match="^" + message):
        call()


WRITERS = {
    "torch": lambda params: interop.to_torch((params,)),
    "torch-cell": interop.to_torch,
    "keras": interop.to_keras,
    "nnx": lambda params: interop.to_nnx((params,)),
    "linen": interop.to_linen,
    "haiku": interop.to_haiku,
    "equinox": interop.to_equinox,
    "cudnn": interop.to_cudnn,
}


@pytest.mark.parametrize("library", WRITERS)
def test_params_without_a_counterpart_are_refused(library):
    write = WRITERS[library]
    where = f"to_{library.removesuffix('-cell')}"
    name = r"params\[0\]" if library in ("torch", "nnx", "cudnn") else "params"
    init = lambda cell: jax.eval_shape(lambda key: cell.init(key, I), jax.random.key(0))  # noqa: E731
    filled = lambda cell: jax.tree.map(lambda leaf: ones(*leaf.shape), init(cell))  # noqa: E731
    variants = {
        "peephole": (filled(jaxrnn.lstm(H, peephole=True)), ValueError, rf"{name}.peephole expected None, got float32\[3, 3\]; .* has no peephole connections"),
        "coupled": (filled(jaxrnn.lstm(H, coupled=True)), ValueError, rf"{name}.w_h expected 4 gates, got the 3 of coupled ones, which .* does not have"),
        "norm": (filled(jaxrnn.lstm(H, layer_norm=True)), ValueError, rf"{name}.norm expected None, got LSTMNorm.*; .* has no layer normalisation"),
        "gru norm": (filled(jaxrnn.gru(H, layer_norm=True)), ValueError, rf"{name}.norm expected None"),
        "mgu": (filled(jaxrnn.mgu(H)), TypeError, r"params(\[0\])? expected .*, got (tuple of \()?MGUParams"),
        "shape": (GRU._replace(b=ones(8)), ValueError, rf"{name}.b expected shape \(9,\), got \(8,\)"),
        "gates": (LSTM._replace(w_h=ones(H, 7)), ValueError, rf"{name}.w_h expected shape \(3, 12\), got \(3, 7\)"),
        "axes": (LSTM._replace(w_x=ones(4)), ValueError, rf"{name}.w_x expected a matrix, got shape \(4,\)"),
        "integers": (LSTM._replace(w_x=np.ones((I, 4 * H), int)), TypeError, rf"{name}.w_x expected a floating-point array, got int64"),
        "b_hn alone": (GRU._replace(b=None), ValueError, rf"{name}.b_hn expected None where b is, got float32\[3\]"),
    }  # fmt: skip
    if library != "torch":
        variants["projection"] = (
            PROJECTED,
            ValueError,
            rf"{name}.w_proj expected None, got float32\[3, 2\]; .* has no projection",
        )
    for params, error, message in variants.values():
        with pytest.raises(error, match=f"^{where}: {message}"):
            write(params)
    for empty in ((), [LSTM], {"w_x": ones(1)}, None):
        with pytest.raises(TypeError, match=f"^{where}: params(\\[0\\])? expected"):
            write(empty)
    if library not in ("torch", "torch-cell", "keras"):  # these give NumPy arrays
        with pytest.raises(TypeError, match=f"^{where}: .* expected a dtype that JAX holds, got float64"):
            write(jax.tree.map(lambda leaf: leaf.astype(np.float64), GRU if library == "linen" else LSTM))


# Files


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.safetensors"
    arrays = {"lstm.weight_ih_l0": ones(12, I), "lstm.weight_hh_l0": ones(12, H).astype(jnp.bfloat16)}
    save_file({**arrays, "steps": np.arange(3)}, path)
    return path, arrays


def test_read_returns_every_array_of_a_file(weights):
    path, arrays = weights
    for given in (path, str(path)):
        found = interop.read(given)
        assert {name: (a.dtype, a.tolist()) for name, a in found.items() if name != "steps"} == {
            name: (a.dtype, a.tolist()) for name, a in arrays.items()
        }
        assert found["steps"].tolist() == [0, 1, 2]
        assert interop.from_torch(found, "lstm")[0].w_h.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_narrow_weights_of_a_file_give_the_numbers_that_were_written(dtype, tmp_path):
    wide = {name: np.random.default_rng(1).standard_normal(w.shape) for name, w in TORCH.items()}
    save_file({f"net.{name}": w.astype(dtype) for name, w in wide.items()}, tmp_path / "weights")
    (params,) = interop.from_torch(interop.read(tmp_path / "weights"), "net")
    assert params.w_x.dtype == dtype
    np.testing.assert_array_equal(params.w_x, wide["weight_ih_l0"].T.astype(dtype))
    np.testing.assert_array_equal(params.w_h, wide["weight_hh_l0"].T.astype(dtype))
    np.testing.assert_array_equal(params.b, wide["bias_ih_l0"].astype(dtype) + wide["bias_hh_l0"].astype(dtype))


def test_layers_of_a_whole_checkpoint_are_listed():
    parts = {"encoder.rnn": (LSTM,), "decoder": (GRU,), "cell": RNN}
    whole = {name: w for prefix, params in parts.items() for name, w in interop.to_torch(params, prefix).items()}
    whole["head.weight"] = ones(5, H)
    for prefix, wanted in parts.items():
        assert type(jax.tree.leaves(interop.from_torch(whole, prefix), is_leaf=lambda p: hasattr(p, "w_x"))[0]) is type(
            wanted if hasattr(wanted, "w_x") else wanted[0]
        )
    listed = "got those of layers below 'encoder.rnn', 'decoder', 'cell'; prefix selects one"
    with pytest.raises(
        ValueError, match=f"^from_torch: state_dict expected the weights of one layer below '', {listed}$"
    ):
        interop.from_torch(whole)
    listed = "got 'encoder.rnn', 'decoder', 'cell', below which layers begin; does prefix lead to them"
    for prefix in ("rnn", "head"):
        with pytest.raises(ValueError, match=f"^from_torch: state_dict expected entries below '{prefix}.', {listed}"):
            interop.from_torch(whole, prefix)
    with pytest.raises(ValueError, match="one layer below 'encoder.', got those of layers below 'encoder.rnn'; prefix"):
        interop.from_torch(whole, "encoder")
    for given, prefix in (
        ({f"module.{name}": w for name, w in whole.items()}, "encoder.rnn"),
        ({f"module._orig_mod.{name}": w for name, w in whole.items()}, "encoder.rnn"),
        ({name.replace("rnn", "_orig_mod.rnn"): w for name, w in whole.items()}, "encoder.rnn"),
        ({f"module.{name}": w for name, w in TORCH.items()}, ""),
    ):
        assert interop.from_torch(given, prefix)[0].w_x.tolist() == LSTM.w_x.tolist()
    both = {**interop.to_torch((LSTM,), "module.a"), **interop.to_torch((RNN,), "_orig_mod.a")}
    assert isinstance(interop.from_torch(both, "_orig_mod.a")[0], RNNParams)
    with pytest.raises(ValueError, match="below 'a.', got those of layers below 'module.a', '_orig_mod.a'; prefix"):
        interop.from_torch(both, "a")


class Armed:
    """Unpickling it creates a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_are_refused_without_execution(tmp_path, protocol):
    trap, path = tmp_path / "trap", tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps({"weight_hh": Armed(str(trap))}, protocol))
    what = "a Python pickle, .*; nothing of it was run" if protocol else "one that is truncated, corrupted or another"
    with pytest.raises(ValueError, match=f"^read: .*weights.safetensors: expected a safetensors file, got {what}"):
        interop.read(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())["weight_hh"].close()
    assert trap.exists()  # the pickle does execute code


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


SPAN = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
FILES = {
    "empty": (b"", "truncated, corrupted"),
    "zip": (b"PK\x03\x04" + bytes(40), "a zip archive, as torch.save, .*; nothing of it was run; jaxrnn.interop.from_keras reads a .keras file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "an HDF5 file, as Keras writes; nothing of it was run; jaxrnn.interop.from_keras reads it"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(40), "a NumPy file; nothing"),
    "text": (b"weights: none at all", "truncated, corrupted"),
    "no JSON": (header(b"{]"), "truncated, corrupted"),
    "offsets outside": (header(json.dumps(SPAN).encode()) + bytes(4), "truncated, corrupted"),
    "bytes besides": (header(json.dumps(SPAN).encode()) + bytes(12), "truncated, corrupted"),
    "shape against offsets": (header(json.dumps({"a": {**SPAN["a"], "shape": [3]}}).encode()) + bytes(8), "truncated, corrupted"),
    "unknown dtype": (header(json.dumps({"a": {**SPAN["a"], "dtype": "F33"}}).encode()) + bytes(8), "truncated, corrupted"),
    "length of a petabyte": (struct.pack("<Q", 2**50) + b"{}", "truncated, corrupted"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_formats_are_refused(tmp_path, name):
    content, message = FILES[name]
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"^read: .*some.safetensors: expected a safetensors file, got (one that is )?{message}"
    ):
        interop.read(path)


def test_dtypes_unknown_to_numpy_are_refused(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(
        header(json.dumps({"a": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()) + bytes(8)
    )
    with pytest.raises(ValueError, match="^read: .*some.safetensors: a expected one of F64, .*, got F8_E8M0$"):
        interop.read(path)


def test_truncated_files_are_refused(weights):
    path, _ = weights
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="^read: .*weights.safetensors: expected a safetensors file"):
            interop.read(path)


def test_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        interop.read(tmp_path / "nowhere.safetensors")


def test_missing_safetensors_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(
        ImportError, match=r'read: expected safetensors to be installed: pip install "jaxrnn\[interop\]"'
    ):
        interop.read("weights.safetensors")
