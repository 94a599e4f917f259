"""Weights in mappings of any library: what cannot be read or is no floating-point array is refused by its name."""

import re
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import Bidirectional, interop
from tests.support.fuzzing.values import REFUSED, ROWS, SAME, LazyArray, LazyMapping, nested
from tests.support.fuzzing.weights import BASES, CELLS, NETWORKS, RECORDS, WRITERS, H

pytestmark = pytest.mark.usefixtures("unhooked")

DTYPES = ("int32", "uint8", "bool", "complex64", "int4", "float8_e4m3fn", "longdouble")
NO_FLOATS = [np.dtype(getattr(jnp, name, None) or name) for name in DTYPES]


def arrays_of(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: array for name, array in weights.items() if isinstance(array, np.ndarray)}


# ---- dtypes


@pytest.mark.parametrize("name", BASES)
def test_only_floating_point_weights_are_read(name):
    read, weights, _, prefix = BASES[name]
    for entry, array in arrays_of(weights).items():
        for dtype in NO_FLOATS:
            with pytest.raises(TypeError) as caught:
                read({**weights, entry: array.astype(dtype)}, prefix)
            expected = f"{read.__name__}: entry {entry!r} expected a floating-point array, got {dtype.name}["
            assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("where", WRITERS)
def test_only_floating_point_params_are_written(where):
    write, kinds = WRITERS[where]
    for kind in kinds.split():
        record = RECORDS[kind]
        paths, structure = jax.tree_util.tree_flatten_with_path(record)
        for k, (path, array) in enumerate(paths):
            for dtype in NO_FLOATS:
                leaves = [leaf.astype(dtype) if j == k else leaf for j, (_, leaf) in enumerate(paths)]
                broken = jax.tree.unflatten(structure, leaves)
                call = (lambda b=broken, k=kind: interop.to_onnx(NETWORKS[k], b)) if where == "to_onnx" else lambda b=broken: write(b)  # fmt: skip
                name = f"params{'[0]' if where == 'to_cudnn' and len(path) == 1 else ''}{jax.tree_util.keystr(path)}"
                if where == "to_onnx":
                    name = f"{name.rpartition('.')[0]}: params.{path[-1].name}"
                with pytest.raises(
                    TypeError, match=f"^{where}: {re.escape(name)} expected .*floating-point .*{dtype.name}"
                ):
                    call()
            assert array.dtype == np.float32


def test_flat_weights_and_weights_of_onnx_are_floating_point():
    flat = np.asarray(interop.to_cudnn(RECORDS["gru"]))
    model = interop.to_onnx(CELLS["gru"], RECORDS["gru"])
    w = np.zeros((1, 3 * H, 7), np.float32)
    for dtype in NO_FLOATS:
        with pytest.raises(TypeError, match=f"^from_cudnn: flat expected a floating-point array, got {dtype.name}"):
            interop.from_cudnn(flat.astype(dtype), 7, H, kind="gru")
        with pytest.raises(
            TypeError, match=rf"^from_onnx: weights\['layer_0.W'\] expected a floating-point array, got {dtype.name}"
        ):
            interop.from_onnx(model, weights={"layer_0.W": w.astype(dtype)})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_floating_point_dtype_is_read_and_written_unchanged(dtype, x64):
    """The numbers are those that NumPy casts to."""
    for name, (read, weights, _, prefix) in BASES.items():
        given = {k: v.astype(jnp.dtype(dtype)) if isinstance(v, np.ndarray) else v for k, v in weights.items()}
        wide = {k: v.astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in given.items()}
        ours, exact = jax.tree.leaves(read(given, prefix)), jax.tree.leaves(read(wide, prefix))
        for a, b in zip(ours, exact, strict=True):
            assert a.dtype == jnp.dtype(dtype)
            # A library with two biases adds them in their own dtype.
            assert np.allclose(np.asarray(a, np.float64), b, rtol=2 * float(jnp.finfo(a.dtype).eps), atol=0), name
    for where, (write, kinds) in WRITERS.items():
        if where != "to_onnx":
            record = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), RECORDS[kinds.split()[0]])
            chex.assert_type(jax.tree.leaves(write(record)), jnp.dtype(dtype))


def test_masked_arrays_are_refused():
    """NumPy would read the numbers below the mask."""
    read, weights, _, _ = BASES["torch lstm"]
    masked = np.ma.masked_greater(weights["bias_ih_l0"], 0)
    with pytest.raises(
        TypeError, match="^from_torch: entry 'bias_ih_l0' expected an array, got a masked one; fill it first$"
    ):
        read({**weights, "bias_ih_l0": masked})
    with pytest.raises(TypeError, match="^to_torch: params.b expected an array, got a masked one"):
        interop.to_torch(RECORDS["lstm"]._replace(b=np.ma.masked_greater(RECORDS["lstm"].b, 0)))


@pytest.mark.parametrize("form", SAME)
def test_arrays_in_any_form_give_the_same_params(form):
    for read, weights, _, prefix in BASES.values():
        changed = {k: SAME[form](v) if isinstance(v, np.ndarray) else v for k, v in weights.items()}
        for a, b in zip(*map(jax.tree.leaves, (read(weights, prefix), read(changed, prefix))), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype == np.float32


def test_written_arrays_are_in_the_byte_order_of_the_machine():
    swapped = RECORDS["lstm"]._replace(w_h=RECORDS["lstm"].w_h.astype(">f4"))
    for weights in (interop.to_torch(swapped), interop.to_keras(swapped)):
        assert all(array.dtype.isnative for array in weights.values())
    np.testing.assert_array_equal(interop.to_cudnn(swapped), interop.to_cudnn(RECORDS["lstm"]))


# ---- the entry that is wrong


@pytest.mark.parametrize("name", BASES)
def test_the_shape_that_does_not_fit_is_named(name):
    """Whichever entry has a wrong shape, and the shapes of all others agree."""
    read, weights, free, prefix = BASES[name]
    changes = {
        **ROWS,
        **{
            k: REFUSED[k]
            for k in ("one more axis", "one entry less", "one more entry", "twice", "empty", "a scalar", "flat")
        },
    }
    for entry, array in arrays_of(weights).items():
        for what, change in changes.items():
            changed = change(array)
            if changed.shape == array.shape or (entry in free and changed.ndim == array.ndim):
                continue
            with pytest.raises(ValueError, match=f"^{read.__name__}: .*entry '{re.escape(entry)}'"):
                read({**weights, entry: changed}, prefix)
            assert what


def test_the_expected_shape_is_that_of_most_entries():
    lstm = interop.to_torch((RECORDS["lstm"],))
    for entry, shape, right in (
        ("weight_hh_l0", (20, 6), r"\(20, 5\)"),
        ("weight_hh_l0", (16, 5), r"\(20, 5\)"),
        ("weight_ih_l0", (15, 7), r"\(20, 7\)"),
        ("bias_hh_l0", (5,), r"\(20,\)"),
    ):
        with pytest.raises(
            ValueError, match=rf"^from_torch: entry '{entry}' expected shape {right}, got {re.escape(str(shape))}$"
        ):
            interop.from_torch({**lstm, entry: np.ones(shape, np.float32)})
    projected = interop.to_torch(RECORDS["projected"])
    with pytest.raises(ValueError, match=r"^from_torch: entry 'weight_hr_l0' expected shape \(2, 5\), got \(2, 6\)$"):
        interop.from_torch({**projected, "weight_hr_l0": np.ones((2, 6), np.float32)})
    with pytest.raises(
        ValueError, match=r"^from_torch: entry 'weight_hh_l0' expected .* is entry 'weight_hr_l0' missing\?$"
    ):
        interop.from_torch({name: w for name, w in projected.items() if "hr" not in name})
    with pytest.raises(ValueError, match=r"^to_torch: params\[0\].w_h expected .* is params\[0\].w_proj missing\?$"):
        interop.to_torch((RECORDS["projected"][0]._replace(w_proj=None),))


def test_both_entries_are_named_where_either_may_be_wrong():
    ones = {"weight_ih_l0": np.ones((12, 3), np.float32), "weight_hh_l0": np.ones((16, 4), np.float32)}
    expected = r"^from_torch: entry 'weight_ih_l0' expected shape \(16, 3\), got \(12, 3\); or entry 'weight_hh_l0' is wrong, with \(16, 4\)$"
    with pytest.raises(ValueError, match=expected):
        interop.from_torch(ones)
    with pytest.raises(
        ValueError,
        match=r"^from_haiku: entry 'linear/b' expected shape \(16,\), got \(12,\); or entry 'linear/w' is wrong",
    ):
        interop.from_haiku({"linear/w": np.ones((7, 16), np.float32), "linear/b": np.ones(12, np.float32)})


def test_a_kind_that_the_shapes_do_not_have_is_refused_as_an_argument():
    for kind in ("rnn", "gru"):
        with pytest.raises(ValueError, match=f"^from_torch: kind expected 'lstm', which the shapes have, got '{kind}'"):
            interop.from_torch(BASES["torch lstm"].weights, kind=kind)
    assert interop.from_torch(BASES["torch lstm"].weights, kind="lstm")


def test_directions_read_inputs_of_one_size():
    wide = RECORDS["both"][0].backward._replace(w_x=np.ones((9, 20), np.float32))
    both = Bidirectional(RECORDS["lstm"], wide)
    for write in (interop.to_keras, interop.to_nnx, interop.to_linen, interop.to_torch, interop.to_cudnn):
        with pytest.raises(
            ValueError,
            match=rf"^{write.__name__}: params\[0\].backward.w_x expected 7 features of the input as params\[0\].forward.w_x, got 9$",
        ):
            write((both,))
    keras = dict(BASES["keras both ways"].weights)
    keras["bidirectional/backward_lstm/lstm_cell/kernel"] = np.ones((9, 20), np.float32)
    with pytest.raises(
        ValueError,
        match="^from_keras: entry 'bidirectional/backward_lstm/lstm_cell/kernel' expected 7 features of the input as entry 'bidirectional/forward",
    ):
        interop.from_keras(keras)
    nnx = {
        half: interop.to_nnx(record, optimized=True)
        for half, record in zip(("forward_rnn", "backward_rnn"), both, strict=True)
    }
    with pytest.raises(
        ValueError,
        match="^from_nnx: entry 'backward_rnn' expected 7 features of the input as entry 'forward_rnn', got 9",
    ):
        interop.from_nnx({half: {"cell": weights} for half, weights in nnx.items()})


def test_fields_that_no_record_is_without_are_named():
    for where, (write, kinds) in WRITERS.items():
        record = RECORDS[kinds.split()[0]]
        for field in ("w_x", "w_h"):
            with pytest.raises((TypeError, ValueError), match=rf"^{where}: params.*\.{field} expected .*, got None"):
                write(record._replace(**{field: None}))


def test_equinox_fields_agree_with_the_weights():
    weights = BASES["equinox lstm"].weights
    for name, value, right, source in (
        ("input_size", 8, 7, "weight_ih"),
        ("hidden_size", 4, 5, "weight_hh"),
        ("use_bias", False, True, "bias"),
    ):
        with pytest.raises(
            ValueError,
            match=f"^from_equinox: entry '{name}' expected {right}, as entry '{source}' has it, got {value}$",
        ):
            interop.from_equinox({**weights, name: value})
    with pytest.raises(
        ValueError, match="^from_equinox: entry 'use_bias' expected False, as entry 'bias' has it, got True$"
    ):
        interop.from_equinox({**weights, "bias": None})


def test_haiku_cores_have_numbers_of_their_own():
    one = interop.to_haiku(RECORDS["lstm"])["lstm/linear"]
    for names in (("lstm", "lstm_0"), ("lstm_1", "lstm_01")):
        with pytest.raises(
            ValueError, match=f"^from_haiku: params expected one core of each number, got '{names[0]}', '{names[1]}'$"
        ):
            interop.from_haiku({f"{name}/linear": one for name in names})


# ---- mappings that cannot be read


@pytest.mark.parametrize(
    "error",
    [RuntimeError("lazy"), KeyError("lazy"), OSError("disk"), AttributeError("x"), ImportError("y" * 3000)],
    ids=repr,
)
def test_errors_of_a_mapping_or_an_array_name_the_entry(error):
    for read, weights, _, prefix in BASES.values():
        entry = list(arrays_of(weights))[-1]
        kind = re.escape(f"({type(error).__name__}: ")
        with pytest.raises(
            ValueError,
            match=f"^{read.__name__}: .*entry '{re.escape(entry)}' expected an array, got one that cannot be read {kind}",
        ) as caught:
            read(LazyMapping(weights, entry, error), prefix)
        assert caught.value.__cause__ is error
        with pytest.raises(
            TypeError,
            match=f"^{read.__name__}: entry '{re.escape(entry)}' expected an array, got .*, which cannot be read {kind}",
        ) as caught:
            read({**weights, entry: LazyArray(error)}, prefix)
        assert caught.value.__cause__ is error
        assert len(str(caught.value)) <= 500
        with pytest.raises(
            ValueError,
            match=f"^{read.__name__}: .* expected a mapping of names to arrays, got LazyMapping, whose names cannot be read {kind}",
        ):
            read(LazyMapping(weights, None, error), prefix)


def test_lazy_mappings_that_can_be_read_are_read():
    for read, weights, _, prefix in BASES.values():
        lazy = LazyMapping(weights, object(), RuntimeError())
        for a, b in zip(*map(jax.tree.leaves, (read(weights, prefix), read(lazy, prefix))), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "key",
    [1.5, True, None, b"a", (), ("a", 2.0), frozenset(), 10**5000, np.int64(3), -(10**10)],
    ids=lambda key: str(type(key)),
)
def test_names_are_strings_or_tuples_of_strings_and_numbers_of_layers(key):
    for read, weights, _, prefix in BASES.values():
        with pytest.raises(
            TypeError, match=f"^{read.__name__}: names expected strings, or tuples of strings and integers, got "
        ) as caught:
            read({**weights, key: 1}, prefix)
        assert len(str(caught.value)) <= 500


def test_mappings_that_hold_themselves_or_have_no_end_are_refused():
    loop: dict[str, Any] = {"weight": np.ones(1)}
    loop["a"] = loop["b"] = {"c": loop}
    for read, *_ in BASES.values():
        with pytest.raises(
            ValueError,
            match=f"^{read.__name__}: .* expected at most 64 mappings in each other, got one that holds itself, at 'a[./]c[./]'$",
        ):
            read(loop)
        with pytest.raises(
            ValueError, match=f"^{read.__name__}: .* expected at most 64 mappings in each other, got more, at "
        ) as caught:
            read(nested(3000))
        assert len(str(caught.value)) <= 500


def test_messages_with_long_names_are_short():
    for read, weights, _, _ in BASES.values():
        for name in (
            "x" * 10**5,
            "weight_ih_l" + "9" * 5000,
            "lstm_" + "9" * 5000 + "/linear/w",
            "layers_0." * 1000,
            "forward_" * 1000 + "/a",
        ):
            if "params.ii.kernel" in weights or "params.forward_rnn.cell.ii.kernel" in weights:
                name = f"params.{name}"  # other collections are ignored
            for mapping in (
                {**weights, name: np.ones(3, np.float32)},
                {name: np.ones(3, np.float32)},
                dict.fromkeys([name + str(k) for k in range(9)], 1),
            ):
                with pytest.raises((TypeError, ValueError), match=f"^{read.__name__}: ") as caught:
                    read(mapping)
                assert len(str(caught.value)) <= 500
            with pytest.raises(
                ValueError, match=f"^{read.__name__}: .* expected entries below .*; does prefix lead to them"
            ) as caught:
                read(weights, name)
            assert len(str(caught.value)) <= 500


def test_many_layers_are_checked_quickly():
    """The length of cuDNN's array tells that there are not so many layers."""
    flat = np.ones(480, np.float32)
    for name in ("num_layers", "hidden_size", "input_size"):
        sizes = {"input_size": 7, "hidden_size": 5, "num_layers": 2, name: 2**31 - 1}
        with pytest.raises(ValueError, match=f"^from_cudnn: flat expected shape .*are .*{name}"):
            interop.from_cudnn(flat, **sizes)
        with pytest.raises(ValueError, match=f"^from_cudnn: {name} expected at most 2147483647, got 1000000000000"):
            interop.from_cudnn(flat, **{**sizes, name: 10**12})
        traced = jax.jit(lambda size, name=name, sizes=sizes: interop.from_cudnn(flat, **{**sizes, name: size})[0].w_x)
        with pytest.raises(
            TypeError, match=f"^from_cudnn: {name} expected a positive integer, got int32.*cannot be traced"
        ):
            traced(3)


# ---- modules


def test_converters_ask_for_the_params_of_a_module():
    from flax import nnx

    import jaxrnn

    module, cell = jaxrnn.modules.LSTM(7, 5, rngs=nnx.Rngs(0)), jaxrnn.modules.LSTMCell(7, 5, rngs=nnx.Rngs(0))
    for given, part in ((module, "network"), (cell, "cell")):
        with pytest.raises(
            TypeError,
            match=rf"^to_onnx: network expected a Network or a Cell, got .*; of a module give its \.{part} and its \.params$",
        ):
            interop.to_onnx(given, given.params)  # pyright: ignore[reportArgumentType]
        with pytest.raises(
            TypeError,
            match=r"^to_onnx: params: params expected LSTMParams|^to_onnx: params expected .*; of a module give its \.params$",
        ):
            interop.to_onnx(getattr(given, part), given)
        interop.to_onnx(getattr(given, part), given.params)
        for where, (write, _) in WRITERS.items():
            if where != "to_onnx":
                with pytest.raises(TypeError, match=rf"^{where}: .*; of a module give its \.params$"):
                    write(given)
