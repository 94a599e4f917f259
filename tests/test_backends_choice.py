"""What is taken where no implementation is named, for which device, and the page that says what each serves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import backends
from jaxrnn.backends import calls, choice
from jaxrnn.backends.calls import Device
from tests.registry import B, H, I, T, make, weighed
from tests.test_backends import FLAGS, OWN, ROOT, UNROLL, asked


def test_the_page_has_the_table():
    page = (ROOT / "jaxrnn" / "backends" / "README.md").read_text(encoding="utf-8")
    assert backends.table() in page
    assert "| `mask` | yes | yes | yes | no (" in page


def a_call(monkeypatch, **asked_for):
    """As `unroll` makes it."""
    seen = []
    monkeypatch.setattr(
        UNROLL, "choose", lambda call: seen.append(call) or ("scan" if asked_for.get("cell") is OWN else "bptt")
    )
    asked(monkeypatch, None, **asked_for)
    return seen[0]


def row(implementation="scan", **fields):
    """Something measured on the card of these tests."""
    given = {"device": "of a test", "factory": "lstm", "dtype": "float32", "record": "none"}
    return choice.Measured(implementation, **{**given, **fields})


def test_sizes_can_be_refused_too(monkeypatch):
    small = backends.IMPLEMENTATIONS["reference"]._replace(
        limit=lambda call: f"{call.sizes[0]} steps are too many" if call.sizes[0] > 3 else None
    )
    monkeypatch.setitem(backends.IMPLEMENTATIONS, "reference", small)
    with pytest.raises(NotImplementedError, match="this call of lstm.*; 6 steps are too many"):
        asked(monkeypatch, "reference")
    call = a_call(monkeypatch)
    assert choice.choose(call, [row("reference")]) == "bptt"
    assert choice.choose(call._replace(sizes=(3, B, I)), [row("reference")]) == "reference"


@pytest.mark.parametrize(
    ("fields", "asked_for", "expected"),
    [
        ({}, {}, "scan"),
        ({"device": "H200"}, {}, "bptt"),
        ({"factory": "gru"}, {}, "bptt"),
        ({"dtype": "bfloat16"}, {}, "bptt"),
        ({"dtype": "bfloat16"}, {"compute_dtype": jnp.bfloat16}, "scan"),
        ({"steps": (T, T), "rows": (B, B), "hidden": (H, H)}, {}, "scan"),
        ({"steps": (T + 1, 99)}, {}, "bptt"),
        ({"rows": (1, B - 1)}, {}, "bptt"),
        ({"hidden": (1, H - 1)}, {}, "bptt"),
        ({"implementation": "scan"}, {"resets": FLAGS}, "scan"),
        ({"implementation": "cudnn"}, {"checkpoint": "gates"}, "bptt"),  # what the row names cannot serve it
        ({"implementation": "cudnn"}, {"resets": FLAGS}, "bptt"),
        ({}, {"cell": OWN}, "scan"),
    ],
)
def test_what_was_measured_is_chosen_where_it_applies(fields, asked_for, expected, monkeypatch):
    call = a_call(monkeypatch, **asked_for)
    assert choice.choose(call, [row(**fields)]) == expected
    assert choice.choose(call, ()) == ("scan" if "cell" in asked_for else "bptt")


def test_the_first_row_that_applies_counts(monkeypatch):
    call = a_call(monkeypatch)
    assert choice.choose(call, [row(steps=(99, 99)), row("reference"), row("scan")]) == "reference"


def test_rows_have_figures_and_serve_what_the_default_serves():
    allowed = set(backends.IMPLEMENTATIONS["bptt"].transformations)
    for each in choice.MEASURED:
        assert set(backends.IMPLEMENTATIONS[each.implementation].transformations) <= allowed
        assert (ROOT / "experiments" / "benchmarks" / "results" / each.record).is_file()
    assert not set(backends.IMPLEMENTATIONS["cudnn"].transformations) <= allowed


def test_the_device_is_that_of_the_inputs_or_the_default():
    xs = jax.device_put(np.ones(2), jax.devices()[2])
    assert calls.device_of(xs) == Device("cpu", xs.device.device_kind)
    seen = []
    with jax.default_device("cpu"):
        jax.eval_shape(lambda xs: seen.append(calls.device_of(xs)) or xs, xs)
    with jax.default_device(jax.devices()[1]):
        seen.append(calls.device_of(np.ones(2)))
    assert [device.platform for device in seen] == ["cpu", "cpu"]


@pytest.mark.parametrize(("said", "platform"), [("PJRT C API\ncuda 12090", "cuda"), ("PJRT C API\nrocm 70100", "rocm")])
def test_the_makers_of_gpus_are_told_apart(said, platform, monkeypatch):
    class Client:
        platform_version = said

    class GPU:
        platform, device_kind, client = "gpu", "a card", Client

    on_cpu = jnp.ones(2)
    monkeypatch.setattr(calls.jax, "devices", lambda kind=None: [GPU])
    assert calls.device_of(np.ones(2)) == Device(platform, "a card")
    assert calls.device_of(on_cpu).platform == "cpu"  # wherever else a program would run


def test_the_default_lowers_for_cuda():
    case = make("lstm", dtype=jnp.float32)
    loss = lambda params, xs: weighed(jaxrnn.unroll(case.cell, params, xs))  # noqa: E731
    lowered = jax.jit(jax.grad(loss)).trace(case.params, case.xs).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("stablehlo.while") == 2
