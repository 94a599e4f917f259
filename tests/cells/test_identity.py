"""Cells, networks and modules compare by value. Equal ones share compiled programs."""

import copy
import pickle
import subprocess
import sys

import chex
import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import jaxrnn
from jaxrnn import analysis, initializers
from jaxrnn._bound import Bound
from jaxrnn.sequence import registry
from tests.support.registry import CELLS, B, H, I, T

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: pickle.loads(cloudpickle.dumps(value)),
}
XS = np.zeros((T, B, I), np.float32)


def network(dropout=0.1):
    return jaxrnn.stack([jaxrnn.lstm(H), jaxrnn.gru(H)], bidirectional=True, merge="sum", dropout=dropout)


def module(**options):
    return jaxrnn.modules.LSTM(I, H, num_layers=2, dropout=0.1, rngs=nnx.Rngs(0), **options)


def params_of(model):
    shapes = jax.eval_shape(lambda key: model.init(key, I), jax.random.key(0))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.fixture
def traced_once(monkeypatch):
    """`unroll` raises when it is traced a second time."""
    once = chex.assert_max_traces(registry._run, n=1)
    monkeypatch.setattr(registry, "_run_compiled", jax.jit(once, static_argnums=(0, 1)))


# Equality


@pytest.mark.parametrize("name", CELLS)
def test_cells_of_equal_options_are_equal(name):
    one, two = CELLS[name](), CELLS[name]()
    assert one == two
    assert hash(one) == hash(two)
    assert one.equations == two.equations
    assert len({one, two}) == 1


def test_cells_of_unequal_options_are_unequal():
    cells = [make() for make in CELLS.values()]
    cells += [jaxrnn.lstm(H + 1), analysis.ablate_gates(jaxrnn.lstm(H), "f", 0.5)]
    cells += [analysis.ablate_gates(jaxrnn.lstm(H), "f", 0.6), jaxrnn.regularize(jaxrnn.lstm(H), zoneout=0.1)]
    assert len(set(cells)) == len(cells)


def test_equal_initialisers_make_equal_cells():
    options = {
        "kernel_init": initializers.glorot_uniform,
        "recurrent_init": initializers.orthogonal,
        "bias_init": lambda: initializers.gate_bias(f=2.0, i=-1.0),
    }
    one, two = (jaxrnn.lstm(H, **{name: make() for name, make in options.items()}) for _ in range(2))
    assert one == two
    assert initializers.chrono(9) == initializers.chrono(9) != initializers.chrono(10)
    assert initializers.identity(0.5) != initializers.identity()
    assert initializers.uniform(1.0) == initializers.uniform(1.0)
    assert initializers.torch_uniform() == initializers.torch_uniform()


def test_equations_do_not_depend_on_initialisers():
    cell = jaxrnn.lstm(H, bias_init=initializers.gate_bias(f=2.0))
    assert cell != jaxrnn.lstm(H)  # their `init` draw different parameters
    assert cell.equations == jaxrnn.lstm(H).equations
    noisy = jaxrnn.regularize(cell, zoneout=0.5)
    assert noisy.equations == jaxrnn.regularize(jaxrnn.lstm(H), zoneout=0.5).equations


def test_user_defined_cell_equals_itself_and_its_copies():
    def make():
        lstm = jaxrnn.lstm(H)
        return jaxrnn.Cell(lambda key, size: (), lstm.initial_state, lambda p, s, x: (s, s.h), name="own")

    own = make()
    assert own == own
    assert own == copy.deepcopy(own)
    assert own != make()


def test_networks_of_equal_options_are_equal():
    assert network() == network()
    assert hash(network()) == hash(network())
    assert network() != network(dropout=0.2)
    assert jaxrnn.stack([jaxrnn.lstm(H)], merge=jnp.maximum) == jaxrnn.stack([jaxrnn.lstm(H)], merge=jnp.maximum)


def test_modules_of_equal_options_have_equal_graphs():
    assert nnx.graphdef(module()) == nnx.graphdef(module())
    assert nnx.graphdef(module()) != nnx.graphdef(module(peephole=True))


# Compiled programs


def test_rebuilt_cells_are_traced_once(traced_once):
    params = params_of(jaxrnn.lstm(H))
    for k in range(100):
        cell = jaxrnn.lstm(H, bias_init=initializers.gate_bias(f=float(k)))
        jaxrnn.unroll(cell, params, XS, reverse=True, key=None)


@pytest.mark.parametrize("name", {make().config.factory: name for name, make in CELLS.items()}.values())
def test_rebuilt_cells_of_every_family_are_traced_once(name, traced_once):
    for _ in range(3):
        cell = CELLS[name]()
        jaxrnn.unroll(cell, params_of(cell), XS, key=None)


def test_cells_rebuilt_inside_jit_share_one_trace(traced_once):
    params = params_of(jaxrnn.gru(H))
    for _ in range(10):
        jax.jit(lambda params, xs: jaxrnn.unroll(jaxrnn.gru(H), params, xs))(params, XS)
        jax.grad(lambda params: jnp.sum(jaxrnn.unroll(jaxrnn.gru(H), params, XS)[1]))(params)


def test_calls_outside_jit_are_traced_once():
    calls, plain = [], jaxrnn.gru(H)

    def step(params, state, x):
        calls.append(x)
        return plain.step(params, state, x)

    params, own = params_of(plain), jaxrnn.Cell(plain.init, plain.initial_state, step)
    jaxrnn.unroll(own, params, XS)
    first = len(calls)
    jaxrnn.unroll(own, params, XS)
    assert len(calls) == first > 0


def test_rebuilt_cells_are_equal_static_arguments():
    f = jax.jit(chex.assert_max_traces(lambda cell, key: cell.init(key, I), n=1), static_argnums=0)
    for _ in range(100):
        f(jaxrnn.gru(H), jax.random.key(0))


def test_rebuilt_networks_are_traced_once_for_each_direction_of_each_layer(monkeypatch):
    once = chex.assert_max_traces(registry._run, n=4)  # two layers in two directions
    monkeypatch.setattr(registry, "_run_compiled", jax.jit(once, static_argnums=(0, 1)))
    params = params_of(network())
    for _ in range(20):
        network().unroll(params, XS, key=None)


def test_rebuilt_modules_are_traced_once():
    f = nnx.jit(chex.assert_max_traces(lambda lstm, xs: lstm(xs, deterministic=True)[0], n=1))
    lstm = module()
    for _ in range(10):
        again = module()
        again.load(lstm.params)
        f(again, XS)


def test_analysis_of_rebuilt_cells_is_traced_once():
    from jaxrnn.analysis import jacobians  # the package has a function of the same name

    params, traces = params_of(jaxrnn.lstm(H)), []
    for _ in range(3):
        analysis.state_jacobians(jaxrnn.lstm(H, bias_init=initializers.gate_bias(f=2.0)), params, XS)
        traces.append(jacobians.jacobians_of._cache_size())
    assert len(set(traces)) == 1


REBUILD = """
import resource
import jax, numpy as np, jaxrnn
from jaxrnn.sequence import registry

params = jaxrnn.lstm(4).init(jax.random.key(0), 3)
for k in range(2200):
    cell = jaxrnn.lstm(4, bias_init=jaxrnn.initializers.gate_bias(f=float(k)))
    jaxrnn.unroll(cell, params, np.zeros((6, 5, 3), np.float32))
    if k in (199, 2199):
        print(registry._run_compiled._cache_size(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.processes
def test_two_thousand_rebuilt_cells_add_neither_programs_nor_memory():
    """A process of its own runs without the shape checks of the tests, which take most of the time of a call."""
    said = subprocess.run([sys.executable, "-c", REBUILD], capture_output=True, text=True, check=True).stdout
    (programs, memory), (programs_later, memory_later) = (map(int, line.split()) for line in said.splitlines())
    assert programs_later == programs == 1
    assert memory_later - memory < 20_000  # KiB. One program for each cell would take 2.2 MiB each


# Copies


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_cells_run_the_same_program(how, traced_once):
    cell = jaxrnn.lstm(H, bias_init=initializers.chrono(9))
    params = params_of(cell)
    jaxrnn.unroll(cell, params, XS)
    again = COPIES[how](cell)
    assert again == cell
    jaxrnn.unroll(again, params, XS)


@pytest.mark.parametrize("how", COPIES)
def test_copies_equal_their_originals(how):
    cells = [make() for make in CELLS.values()]
    for value in (*cells, network(), analysis.ablate_gates(jaxrnn.gru(H), "z", 0.5)):
        again = COPIES[how](value)
        assert again == value
        assert hash(again) == hash(value)
        assert repr(again) == repr(value)


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_modules_compute_equal_outputs(how):
    lstm = module()
    again = COPIES[how](lstm)
    assert nnx.graphdef(again) == nnx.graphdef(lstm)
    xs = np.ones_like(XS)
    np.testing.assert_array_equal(again(xs, deterministic=True)[0], lstm(xs, deterministic=True)[0])


@pytest.mark.processes
def test_unpickled_cells_equal_those_made_in_another_process(tmp_path):
    path = tmp_path / "cells.pickle"
    path.write_bytes(pickle.dumps({name: make() for name, make in CELLS.items()}))
    script = (
        "import pickle, sys, tests.support.registry as registry\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    cells = pickle.load(file)\n"
        "assert all(cell == registry.CELLS[name]() for name, cell in cells.items())\n"
        "print(len(cells))"
    )
    said = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(len(CELLS))


def test_pickling_errors_name_the_part_that_cannot_be_pickled():
    with pytest.raises((pickle.PicklingError, AttributeError), match="<lambda>"):
        pickle.dumps(jaxrnn.rnn(H, activation=lambda a: a))
    with pytest.raises((pickle.PicklingError, AttributeError), match="init"):
        pickle.dumps(jaxrnn.rnn(H, kernel_init=jax.nn.initializers.normal()))
    mesh = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
    with pytest.raises(TypeError, match="Device"):
        pickle.dumps(jaxrnn.model_parallel(jaxrnn.lstm(H), mesh))


def test_hashes_are_computed_once():
    class Counted:
        count = 0

        def __hash__(self):
            Counted.count += 1
            return 7

    bound = Bound(max, Counted())
    assert hash(bound) == hash(bound)
    assert Counted.count == 1
    assert hash(Bound(max, 1, key=abs)) == hash(Bound(max, 1, key=abs))
