"""The registry: the choice of an implementation, and the table of features that each supports."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import gru, lstm
from jaxrnn.sequence import registry
from jaxrnn.sequence.implementations.protocol import TRANSFORMATIONS, Implementation
from jaxrnn.sequence.implementations.scan import Scan
from jaxrnn.sequence.request import FEATURES, Device
from tests.support.registry import B, H, I, T, make, weighed
from tests.support.requests import ARGUMENTS, FLAGS, OWN, request_of, traced

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "jaxrnn" / "sequence" / "implementations" / "README.md"


def test_page_contains_the_table_of_features():
    is_there = registry.table() in PAGE.read_text(encoding="utf-8")
    command = 'python -c "from jaxrnn.sequence import registry; print(registry.table())"'
    assert is_there, f"{PAGE.relative_to(ROOT)} expected the table that `{command}` prints"
    assert "| mask | yes | yes | yes | yes | no (" in registry.table()


def test_implementations_name_only_known_features():
    for each in registry.IMPLEMENTATIONS.values():
        assert each.supports <= set(FEATURES)
        assert set(each.reasons) <= set(FEATURES)
        assert set(each.refused_transformations) <= set(TRANSFORMATIONS)


# User-defined implementations and cells


@dataclasses.dataclass(frozen=True)
class EveryStep(Implementation):
    """A plain scan that supports forward reading only."""

    name = "every_step"
    supports = frozenset({"float32", "a CPU"})
    scale: float = 1.0

    def run(self, options, inputs):
        final, ys, states = Scan().run(options, inputs)
        return final, self.scale * ys, states


def test_user_defined_implementation_runs_and_refuses():
    case = make("gru", dtype=jnp.float32)
    given = (case.cell, case.params, case.xs, case.state)
    _, doubled = jaxrnn.unroll(*given, implementation=EveryStep(2.0))
    np.testing.assert_allclose(doubled, 2 * jaxrnn.unroll(*given)[1], rtol=1e-6)
    with pytest.raises(
        NotImplementedError, match="'every_step' does not support this call of gru.4.; reverse: it does"
    ):
        jaxrnn.unroll(*given, reverse=True, implementation=EveryStep())
    net = jaxrnn.stack([case.cell])
    _, ys = net.unroll((case.params,), case.xs, (case.state,), implementation=EveryStep(2.0))
    np.testing.assert_array_equal(ys, doubled)
    assert "every_step" in registry.table({"mine": EveryStep()})


def test_unknown_features_are_refused(monkeypatch):
    """Every implementation refuses a feature that it does not list, so that a new feature is refused at first."""
    request = request_of(monkeypatch)
    later = request._replace(features=request.features | {"tomorrow"})
    for each in registry.IMPLEMENTATIONS.values():
        assert each.unsupported(later) is not None
    assert registry.IMPLEMENTATIONS["scan"].unsupported(later) == "tomorrow: it does not support that"


def test_user_defined_cell_is_supported_by_scan_and_reference(monkeypatch):
    request = request_of(monkeypatch, cell=OWN, device=Device("cpu", "cpu"))
    running = [name for name, each in registry.IMPLEMENTATIONS.items() if each.unsupported(request) is None]
    assert running == ["scan", "reference"]


# The choice of an implementation by measurements


def row(implementation="scan", **fields):
    """A measured row for the device of these tests."""
    given = {"device": "of a test", "rule": lstm(H).rule, "dtype": "float32", "record": "none"}
    return registry.Measured(implementation, **{**given, **fields})


@dataclasses.dataclass(frozen=True)
class Short(Scan):
    """A scan that refuses more than three steps."""

    name = "short"

    def unsupported_cell(self, request):
        return f"{request.inputs.time} steps are too many" if request.inputs.time > 3 else None


def test_implementation_may_refuse_sizes(monkeypatch):
    with pytest.raises(NotImplementedError, match="this call of lstm.*; 6 steps are too many"):
        traced(monkeypatch, Short())
    monkeypatch.setitem(registry.IMPLEMENTATIONS, "short", Short())
    request = request_of(monkeypatch)
    assert registry.choose(request, measured=[row("short")]).name == "bptt"
    short = request._replace(inputs=request.inputs._replace(xs=jax.ShapeDtypeStruct((3, B, I), jnp.float32)))
    assert registry.choose(short, measured=[row("short")]).name == "short"


@pytest.mark.parametrize(
    ("fields", "asked_for", "expected"),
    [
        ({}, {}, "scan"),
        ({"device": "H200"}, {}, "bptt"),
        ({"rule": gru(H).rule}, {}, "bptt"),
        ({"dtype": "bfloat16"}, {}, "bptt"),
        ({"dtype": "bfloat16"}, {"compute_dtype": jnp.bfloat16}, "scan"),
        ({"steps": (T, T), "sequences": (B, B), "hidden": (H, H)}, {}, "scan"),
        ({"steps": (T + 1, 99)}, {}, "bptt"),
        ({"sequences": (1, B - 1)}, {}, "bptt"),
        ({"hidden": (1, H - 1)}, {}, "bptt"),
        ({"implementation": "scan"}, {"resets": FLAGS}, "scan"),
        # "cudnn" does not support these two.
        ({"implementation": "cudnn"}, {"checkpoint": "gates"}, "bptt"),
        ({"implementation": "cudnn"}, {"resets": FLAGS}, "bptt"),
        ({}, {"cell": OWN}, "scan"),
    ],
)
def test_measured_row_is_chosen_where_it_applies(fields, asked_for, expected, monkeypatch):
    request = request_of(monkeypatch, **asked_for)
    assert registry.choose(request, measured=[row(**fields)]).name == expected
    assert registry.choose(request, measured=()).name == ("scan" if "cell" in asked_for else "bptt")


def test_first_row_that_applies_is_chosen(monkeypatch):
    request = request_of(monkeypatch)
    rows = [row(steps=(99, 99)), row("reference"), row("scan")]
    assert registry.choose(request, measured=rows).name == "reference"


def test_measured_rows_have_records_and_support_every_transformation_of_bptt():
    refused = {name: set(each.refused_transformations) for name, each in registry.IMPLEMENTATIONS.items()}
    for each in registry.MEASURED:
        assert refused[each.implementation] <= refused["bptt"]
        assert (ROOT / "experiments" / "benchmarks" / "results" / each.record).is_file()
    assert not refused["cudnn"] <= refused["bptt"]


# The device


def test_device_is_that_of_the_inputs_or_the_default():
    xs = jax.device_put(np.ones(2), jax.devices()[2])
    assert ARGUMENTS.device_of(xs) == Device("cpu", xs.device.device_kind)
    seen = []
    with jax.default_device("cpu"):
        jax.eval_shape(lambda xs: seen.append(ARGUMENTS.device_of(xs)) or xs, xs)
    with jax.default_device(jax.devices()[1]):
        seen.append(ARGUMENTS.device_of(np.ones(2)))
    assert [device.platform for device in seen] == ["cpu", "cpu"]


@pytest.mark.parametrize(("said", "platform"), [("PJRT C API\ncuda 12090", "cuda"), ("PJRT C API\nrocm 70100", "rocm")])
def test_platform_tells_nvidia_from_amd(said, platform, monkeypatch):
    class Client:
        platform_version = said

    class GPU:
        platform, device_kind, client = "gpu", "a card", Client

    on_cpu = jnp.ones(2)
    monkeypatch.setattr(ARGUMENTS.jax, "devices", lambda kind=None: [GPU])
    assert ARGUMENTS.device_of(np.ones(2)) == Device(platform, "a card")
    assert ARGUMENTS.device_of(on_cpu).platform == "cpu"  # the array decides, and not the default device


def test_default_lowers_for_cuda():
    case = make("lstm", dtype=jnp.float32)
    loss = lambda params, xs: weighed(jaxrnn.unroll(case.cell, params, xs))  # noqa: E731
    lowered = jax.jit(jax.grad(loss)).trace(case.params, case.xs).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("stablehlo.while") == 2
