"""What README.md, the glossary and the page of the implementations say of the package."""

import functools
import inspect
import pickle
import tempfile
from pathlib import Path

import jax
import pytest

import jaxrnn
from experiments import __main__ as listing
from experiments import _summary as summary
from jaxrnn import configuration, initializers
from jaxrnn.sequence import registry, segments
from jaxrnn.sequence.implementations import newton_back, newton_solve
from jaxrnn.sequence.implementations.kernels import tiling
from tests.docs.statements import ROOT, WORDS, record, says, text_of
from tests.support.registry import TOLERANCE

README, GLOSSARY, PAGE = "README.md", "docs/glossary.md", "jaxrnn/sequence/implementations/README.md"


def defaults(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def made_of(cell, size=3):
    return jax.eval_shape(lambda key: cell.init(key, size), jax.random.key(0))


def names(things):
    return ", ".join(f"`{thing}`" for thing in things)


# README.md


@says(README)
def tolerance_of_the_gradient():
    return f"equals automatic differentiation in float64 to {TOLERANCE['float64']:.0e}"


@says(README)
def python_versions():
    classifiers = [line for line in text_of("pyproject.toml").splitlines() if "Python :: 3." in line]
    first, *_, last = [line.rpartition(":: ")[2].strip('", ') for line in classifiers]
    assert f'requires-python = ">={first},<3.{int(last[2:]) + 1}"' in text_of("pyproject.toml")
    return f"in a fresh clone, with Python {first} to {last}."


@says(README)
def minutes_of_the_first_command():
    (minutes,) = [script.minutes for script in listing.SCRIPTS if script.name == "sequential_images"]
    return f"on handwritten digits (about {WORDS[int(minutes)]} minutes on two cores)"


@says(README)
def parameters_of_the_tour():
    fields = [name for name, leaf in made_of(jaxrnn.lstm(64))._asdict().items() if leaf is not None]
    return f"# a NamedTuple: {', '.join(fields)}"


@says(README)
def order_of_gates():
    i_f_g_o, r_z_n = (" ".join(cell.config.gates) for cell in (jaxrnn.lstm(2), jaxrnn.gru(2)))
    return f"{i_f_g_o} for the LSTM, {r_z_n} for the GRU."


@says(README)
def cells_of_the_table():
    found = list(configuration.FACTORIES)
    rows = [
        line
        for line in text_of(README).splitlines()
        if line.startswith(("| `lstm` |", "| `gru` |", "| `rnn` |", "| `slstm` |"))
    ]
    rest = [name for name in found if not any(row.startswith(f"| `{name}`") for row in rows)]
    *rest, last, attends = rest
    assert rest == ["mgu", "indrnn", "min_gru", "min_lstm", "rg_lru", "lru"]
    assert attends == "attend"
    affine = [name for name in rest if configuration.FACTORIES[name](2).rule.affine is not None]
    assert affine == rest[2:]
    return (
        f"| {names(rest[:2])} | minimal gated unit; independently recurrent network | | {names(affine)} | minimal GRU and "
        f"LSTM, whose gates read the input alone; RG-LRU with block-diagonal gates; LRU with a complex diagonal and a real output: their step is affine in the state | | `{last}(cell, ...)` |"
    )


@says(README)
def variants_of_the_lstm():
    options = {name for name, value in defaults(jaxrnn.lstm).items() if value in (None, False)}
    assert options == {"projection_size", "peephole", "coupled", "layer_norm"}
    phis = {"activation": "softsign", "recurrent_activation": "hard_sigmoid"}
    jaxrnn.lstm(4, projection_size=2, peephole=True, coupled=True, layer_norm=True, **phis)
    return (
        "projection (LSTMP), peephole, coupled gates (CIFG), layer normalisation, other activations, and any of them "
        "together"
    )


@says(README)
def parts_of_a_cell():
    needed = [name for name in jaxrnn.Cell._fields if name not in jaxrnn.Cell._field_defaults]
    assert needed == ["init", "initial_state", "step"]
    return f"{WORDS[len(needed)].capitalize()} pure functions make a cell"


@says(README)
def parts_of_a_rule():
    needed = [name for name in jaxrnn.Rule._fields if name not in jaxrnn.Rule._field_defaults]
    assert needed == ["project", "forward", "backward", "accumulate"]
    return f"A `Rule` is the same step split into {WORDS[len(needed)]} functions"


@says(README)
def options_of_unroll():
    found = defaults(jaxrnn.unroll)
    assert [found[name] for name in ("checkpoint", "truncate", "clip_gradient")] == [None, None, None]
    return '`checkpoint` ("gates", an integer, "sqrt") chooses what is kept'


@functools.cache
def table_of_implementations():
    return registry.table()


def supported(row):
    """The implementations with "yes" in a row of the table."""
    header, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table_of_implementations().splitlines()[:60]
    ]
    (cells,) = [cells for cells in rows if cells and cells[0] == row]
    return [name for name, cell in zip(header[1:], cells[1:], strict=True) if cell == "yes"]


@says(README)
def implementations_with_forward_mode():
    assert supported("`jvp`, `jacfwd`") == ['`"scan"`', '`"reference"`']
    return 'with automatic differentiation | yes | | `"reference"` | a Python loop over the step, the oracle of the tests | yes |'


@says(README)
def implementations_with_second_derivatives():
    without = [
        f'`"{name}"`'
        for name in registry.IMPLEMENTATIONS
        if f'`"{name}"`' not in supported("`hessian`, reverse over reverse")
    ]
    return f"works with all but {', '.join(without)}"


@says(README)
def units_of_the_kernels():
    return f"RNN, LSTM, GRU up to {tiling.MOST_UNITS} units"


@says(README)
def options_of_meshes():
    assert all("batch_axis" in defaults(function) for function in (jaxrnn.model_parallel, jaxrnn.pipeline))
    assert list(defaults(jaxrnn.model_parallel))[1] == list(defaults(jaxrnn.pipeline))[1] == "mesh"
    assert "chunk" in defaults(jaxrnn.pipeline)
    return "Both accept a `batch_axis`."


@says(README)
def memory_of_the_long_sequence():
    found = record("long_sequence")
    settings, mib = found["settings"], found["temporary_bytes"] / 2**20
    sizes = f"{settings['steps']:,} steps (B = {settings['batch_size']}, H = {settings['hidden_size']})"
    return f'a training step through {sizes} took {mib:.0f} MiB of temporary memory with `checkpoint="{settings["checkpoint"]}"`'


@says(README)
def memory_of_a_forward_pass():
    """The temporary memory of a pass through ten times the steps is the same."""

    def temporary(steps):
        cell = jaxrnn.lstm(16)
        params = jax.eval_shape(lambda key: cell.init(key, 8), jax.random.key(0))
        xs = jax.ShapeDtypeStruct((steps, 8, 8), jax.numpy.float32)
        outputs = jax.jit(lambda params, xs: jaxrnn.unroll(cell, params, xs)[1])
        return outputs.lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(10_000) == temporary(1_000) < 4 * 10_000 * 8 * 16
    return "A forward pass without a gradient keeps only what it returns."


@says(README)
def pickles_are_refused():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        path.write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(ValueError, match="got a Python pickle"):
            jaxrnn.load(path)
    return "`load` refuses pickles."


@says(README)
def sources_of_initialisers():
    drawn = {"chrono", "gate_bias", "glorot_uniform", "identity", "orthogonal", "torch_uniform"}
    assert all("References:" in getattr(initializers, name).__doc__ for name in drawn)
    return "initial parameters, each with its source"


@says(README)
def wide_layers_on_two_devices():
    """Not more than a tenth faster than one device."""
    wide = [
        timing["ratio"]
        for timing in sharded_to_default()
        if int(timing["shape"].split(",")[3]) >= 650 and int(timing["shape"].split(",")[1]) < 64
    ]
    assert len(wide) == 6
    assert max(wide) < 1.1
    assert min(wide) < 1
    return "with 650 or more hidden units and a batch below 64 one device was about as fast here, or faster"


def sharded_to_default():
    """How many times faster train steps on two devices are."""
    found = {}
    for timing in record("benchmarks/speed_two_devices")["timings"]:
        if timing["task"] == "train":
            found.setdefault((timing["cell"], timing["shape"]), {})[timing["contestant"]] = timing["min_ms"]
    return [
        {"cell": cell, "shape": shape, "ratio": ms["default"] / ms["sharded"]}
        for (cell, shape), ms in found.items()
        if "sharded" in ms
    ]


@says(README)
def experiments_that_import_analysis():
    users = set()
    for path in (ROOT / "experiments").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "from jaxrnn import analysis" in source or "jaxrnn.analysis import" in source:
            users.add(path.relative_to(ROOT / "experiments").parts[0])
    *others, last = sorted(users, key=lambda name: (len(name), name), reverse=True)
    named = ", ".join(f"`{name}`" for name in sorted(others))
    return f"{WORDS[len(users)].capitalize()} experiments measure with it, {named} and `{last}`."


@says(README)
def scripts_on_real_data():
    """One of the scripts of the table of results has data that a program draws."""
    scripts = {rows.__module__.split(".")[1] for rows in summary.ROWS.values()}
    made = {path.stem for path in (ROOT / "experiments").glob("*.py") if "mnist1d" in path.read_text(encoding="utf-8")}
    drawn = made & scripts
    assert drawn == {"mnist_1d"}
    real = WORDS[len(scripts - drawn)].capitalize()
    return f"{real} scripts train on real data: images, chorales of Bach, speakers by their vowels, Tang quatrains, spellings of English words, the weather and an airline's passengers, any text. One more"


@says(README)
def character_model():
    found = record("char_lm")
    minutes = WORDS[round(found["seconds"] / 60)]
    parameters = round(found["parameters"], -4)
    return f"After {minutes} minutes on two cores, an LSTM of {parameters:,} parameters reaches {found['validation_nats'][0]:.2f} nats a character"


# The page of the implementations


@says(PAGE)
def nothing_is_measured():
    assert registry.MEASURED == ()
    return (
        "There are no rows yet. On an accelerator a cell whose step is affine in the state runs with "
        f'`"associative"` from {registry.PARALLEL_FROM} steps on, a number that is not measured.'
    )


@says(PAGE)
def sequences_of_a_kernel():
    return f"A program of the kernel runs {tiling.ROWS} sequences by itself."


@says(PAGE)
def shared_memory_of_hopper():
    return f"on Hopper ({tiling.SHARED_MEMORY['9.0'] // 1024} KB a multiprocessor)"


def most_units(bytes_each, gates):
    """Rounded to 32 units, as the table is, or to 64."""
    fits = [
        units
        for units in range(32, tiling.MOST_UNITS + 1, 32)
        if (found := tiling.tiling(gates, units, bytes_each, tiling.SHARED_MEMORY["9.0"])) and found.is_resident(gates)
    ]
    return max(fits)


@says(PAGE)
def units_whose_weights_stay():
    rows = {
        "bfloat16, float16 (`compute_dtype`)": 2,
        "float32 by TF32, the default of JAX on these cards": 4,
        'float32 itself (`jax.default_matmul_precision("highest")`)': 8,
    }
    lines = [
        f"| {name} | {' | '.join(str(most_units(size, gates)) for gates in (1, 3, 4))} |" for name, size in rows.items()
    ]
    return "\n".join(lines)


@says(PAGE)
def most_units_of_a_kernel():
    return f"For more units, up to {tiling.MOST_UNITS}, a part of the weights is read again at every step. More than {tiling.MOST_UNITS} are refused."


@says(PAGE)
def tolerance_of_the_kernels():
    return f'`"pallas"` equals `"bptt"` when interpreted (float64, {TOLERANCE["float64"]:.0e})'


@says(PAGE)
def limits_of_newton():
    memory, fewest = newton_solve.MEMORY // 2**20, newton_solve.FEWEST_STEPS
    return f"within {memory} MiB, and has {fewest} steps at least"


@says(PAGE)
def gradient_of_newton():
    return f"With more than {newton_back.LARGEST_STATE} entries in a state, and with `clip_gradient`, the gradient is"


@says(PAGE)
def tolerance_of_newton():
    newton = jaxrnn.Newton()
    assert (newton.jacobian, newton.tolerance, newton.window, newton.damping) == ("full", None, None, 1.0)
    return (
        f"{newton_solve.ROUNDINGS} times the epsilon of the dtype, of their largest entry; "
        f"{newton.max_iterations} iterations at most"
    )


@says("docs/mathematics.md")
def guess_of_newton():
    return (
        f"that after {newton_solve.SWEEPS} steps from the state that entered the window, "
        f"and after fewer in windows of fewer than {4 * newton_solve.SWEEPS} steps"
    )


@says("CHANGELOG.md")
def rows_of_a_segment():
    return f"The loops run in segments of about {segments.SEGMENT_ROWS:,} rows"
