"""The modules against live PyTorch: all outputs and gradients of random configurations, in float32.

The modules load PyTorch's state dict and read its inputs and states. This file converts gradients to PyTorch's layout
by itself, and so checks the converter of jaxrnn.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from jaxrnn import modules
from tests.support.peers import peer

pytestmark = pytest.mark.peers

# Relative to the largest entry of each array.
FORWARD, BACKWARD = 2e-6, 2e-5
EXAMPLES = 34  # distinct ones of each kind

zeros = jax.nn.initializers.zeros  # random weights would be compiled for every shape, and replaced


class Sizes(NamedTuple):
    time: int
    batch: int
    features: int
    hidden: int
    projected: int


def sizes_of(bidirectional: bool, bias: bool, projected: bool, ragged: bool) -> Sizes:
    """Sizes that depend on options with programs of their own, so that no further program is compiled.

    The input is as wide as the output of a layer, so that all layers share a program.
    """
    hidden = 6 - 2 * bidirectional - (not bias)
    output = hidden // 2 if projected else hidden
    return Sizes(7 if ragged else 4, 2 if ragged else 3, (1 + bidirectional) * output, hidden, output)


@st.composite
def configurations(draw: Any, kind: str) -> dict[str, Any]:
    """The arguments of PyTorch's module and of its call."""
    bidirectional, bias, projected = (draw(st.booleans()) for _ in range(3))
    batched = draw(st.sampled_from([True, True, True, False]))
    ragged = batched and draw(st.booleans())
    sizes = sizes_of(bidirectional, bias, projected and kind == "LSTM", ragged)
    lengths = st.lists(st.integers(1, sizes.time), min_size=sizes.batch, max_size=sizes.batch)
    return {
        "kind": kind,
        "sizes": sizes,
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": bidirectional,
        "bias": bias,
        "proj_size": sizes.projected if projected and kind == "LSTM" else 0,
        "nonlinearity": draw(st.sampled_from(["tanh", "relu"])) if kind == "RNN" else "tanh",
        "batch_first": draw(st.booleans()),
        "batched": batched,
        "lengths": draw(lengths) if ragged else None,
        "hx": draw(st.booleans()),
    }


def options(config: dict) -> dict[str, Any]:
    """The arguments with equal names in both modules."""
    names = ["num_layers", "bias", "batch_first", "bidirectional"]
    names += {"LSTM": ["proj_size"], "RNN": ["nonlinearity"], "GRU": []}[config["kind"]]
    return {name: config[name] for name in names}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The shapes of input, states and outputs."""
    sizes, directions = config["sizes"], 1 + config["bidirectional"]
    batch = (sizes.batch,) if config["batched"] else ()
    steps = (*batch, sizes.time) if config["batch_first"] else (sizes.time, *batch)
    output, rows = config["proj_size"] or sizes.hidden, (config["num_layers"] * directions, *batch)
    states = {"h": (*rows, output)} | ({"c": (*rows, sizes.hidden)} if config["kind"] == "LSTM" else {})
    return {"xs": (*steps, sizes.features), **states, "output": (*steps, directions * output)}


def torch_answers(config: dict, module: Any, inputs: dict, cotangents: dict) -> tuple[dict, dict]:
    """PyTorch's outputs, and the gradients of their weighted sum by weights, input and states."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in inputs.items()}
    xs, lengths, first = leaves["xs"], config["lengths"], config["batch_first"]
    hx = tuple(leaves[name] for name in ("h", "c") if name in leaves)
    if lengths is not None:
        xs = pack_padded_sequence(xs, torch.tensor(lengths), batch_first=first, enforce_sorted=False)
    ys, states = module(xs, (hx if config["kind"] == "LSTM" else hx[0]) if hx else None)
    if lengths is not None:
        ys, _ = pad_packed_sequence(ys, batch_first=first, total_length=config["sizes"].time)
    states = states if config["kind"] == "LSTM" else (states,)
    outputs = dict(zip(cotangents, (ys, *states), strict=True))
    sum((torch.from_numpy(cotangents[name]) * value).sum() for name, value in outputs.items()).backward()
    gradients = {name: leaf.grad.numpy() for name, leaf in {**dict(module.named_parameters()), **leaves}.items()}
    return {name: value.detach().numpy() for name, value in outputs.items()}, gradients


def in_torch_layout(config: dict, gradients: Any) -> dict[str, Any]:
    """Cotangents of the functional parameters with PyTorch's names. Its two biases have the cotangent of their sum."""
    directions, out = 1 + config["bidirectional"], {}
    for n in range(config["num_layers"] * directions):
        record = gradients[n // directions]
        if config["bidirectional"]:
            record = record[n % 2]
        suffix = f"_l{n // directions}" + ("_reverse" if n % directions else "")
        out |= {f"weight_ih{suffix}": record.w_x.T, f"weight_hh{suffix}": record.w_h.T}
        if config["bias"]:
            out[f"bias_ih{suffix}"] = out[f"bias_hh{suffix}"] = record.b
            if config["kind"] == "GRU":
                out[f"bias_hh{suffix}"] = jnp.concatenate([record.b[: -len(record.b_hn)], record.b_hn])
        if config["proj_size"]:
            out[f"weight_hr{suffix}"] = record.w_proj.T
    return out


def our_answers(config: dict, state_dict: Any, inputs: dict, cotangents: dict) -> tuple[dict, dict]:
    """The outputs and gradients of our module with PyTorch's weights."""
    sizes = config["sizes"]
    module = getattr(modules, config["kind"])(
        sizes.features, sizes.hidden, rngs=nnx.Rngs(0), kernel_init=zeros, recurrent_init=zeros, **options(config)
    )
    module.load_torch(state_dict)
    graphdef, state = nnx.split(module)
    lengths = None if config["lengths"] is None else np.asarray(config["lengths"], np.int32)

    def run(state: Any, leaves: dict) -> dict:
        hx = tuple(leaves[name] for name in ("h", "c") if name in leaves)
        hx = (hx if config["kind"] == "LSTM" else hx[0]) if hx else None
        ys, states = nnx.merge(graphdef, state)(leaves["xs"], hx, lengths=lengths)
        states = states if config["kind"] == "LSTM" else (states,)
        return dict(zip(cotangents, (ys, *states), strict=True))

    outputs, pullback = jax.vjp(run, state, {name: jnp.asarray(a) for name, a in inputs.items()})
    dstate, dleaves = pullback({name: jnp.asarray(a) for name, a in cotangents.items()})
    return outputs, {**in_torch_layout(config, nnx.merge(graphdef, dstate).params), **dleaves}


def gaps(ours: dict, theirs: dict) -> dict[str, float]:
    """The largest difference of each array, relative to its largest entry."""
    assert {name: a.shape for name, a in ours.items()} == {name: a.shape for name, a in theirs.items()}
    assert {a.dtype.name for a in (*ours.values(), *theirs.values())} == {"float32"}
    worst = lambda a, b: float(np.max(np.abs(np.asarray(a, float) - b)) / max(np.max(np.abs(b)), 1e-30))  # noqa: E731
    return {name: worst(ours[name], b) for name, b in theirs.items()}


def compare(config: dict, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """The gaps of outputs and of gradients."""
    import torch

    rng, sizes = np.random.default_rng(seed), config["sizes"]
    module = getattr(torch.nn, config["kind"])(sizes.features, sizes.hidden, **options(config))
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.from_numpy((0.6 * rng.standard_normal(tuple(weight.shape))).astype(np.float32)))
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes(config).items()}
    states = [name for name in ("h", "c") if name in drawn]
    inputs = {name: drawn[name] for name in ("xs", *(states if config["hx"] else []))}
    cotangents = {"output": drawn["output"]} | {
        f"{name}_n": rng.standard_normal(drawn[name].shape).astype(np.float32) for name in states
    }
    theirs = torch_answers(config, module, inputs, cotangents)
    ours = our_answers(config, module.state_dict(), inputs, cotangents)
    return gaps(ours[0], theirs[0]), gaps(ours[1], theirs[1])


@pytest.mark.slow
@pytest.mark.usefixtures("unhooked")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_random_configurations_equal_pytorch(kind):
    peer("torch")
    done = set()

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=[*HealthCheck],
        phases=[Phase.generate],  # shrinking would compile for minutes
    )  # fmt: skip
    @given(configurations(kind))
    def check(config):
        assume(repr(config) not in done)
        forward, backward = compare(config, seed=len(done))
        assert {name: gap for name, gap in forward.items() if gap > FORWARD} == {}
        assert {name: gap for name, gap in backward.items() if gap > BACKWARD} == {}
        done.add(repr(config))

    check()
    assert len(done) == EXAMPLES
