"""What CONTRIBUTING.md, MIGRATION.md and CHANGELOG.md say."""

import inspect
import re

import jax
import numpy as np
from flax import linen, nnx

import jaxrnn
import jaxrnn.sequence
from experiments import __main__ as listing
from experiments.command import devices, options
from experiments.datasets import _table, pretrained
from experiments.training import runs
from jaxrnn import _checks, configuration, initializers
from jaxrnn import layers as layers_of_networks
from jaxrnn.interop import _onnx_files, from_torch
from jaxrnn.sequence import registry, request
from jaxrnn.sequence.implementations.kernels import tiling
from tests.cells import test_known_answers
from tests.docs.statements import ROOT, WORDS, says, text_of
from tests.support import programs

CONTRIBUTING, MIGRATION, CHANGELOG = "CONTRIBUTING.md", "MIGRATION.md", "CHANGELOG.md"


def commands(path):
    """The lines of a script that are commands."""
    lines = [line.partition(" #")[0].strip() for line in text_of(path).splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]


# CONTRIBUTING.md


@says(CONTRIBUTING)
def what_lint_runs():
    found = commands(".ci/lint")
    assert sorted(found) == ["lint-imports", "pyright", "ruff check .", "ruff format --check ."]
    return "| `bash .ci/lint` | `ruff check .`, `ruff format --check .`, `pyright`, `lint-imports` |"


@says(CONTRIBUTING)
def what_test_runs():
    assert commands(".ci/test") == ['python -m pip install -e ".[test]" && python -m pytest -n auto "$@"']
    return "| `bash .ci/test` | installs the package and runs all tests: the README's test command |"


@says(CONTRIBUTING)
def what_run_runs():
    steps = [line.split()[-1] for line in commands(".ci/run") if "bash .ci/" in line]
    assert steps == [".ci/test", ".ci/lint", ".ci/quick", ".ci/newest"]
    assert text_of(".ci/run").count("-m venv") == 2
    return "in virtual environments of its own: tests, lint, the experiments of `.ci/quick`, the newest JAX"


@says(".ci/quick")
def what_quick_runs():
    always, with_data = (
        {word.partition(":")[0] for word in re.search(pattern, text_of(".ci/quick"))[1].split()}  # type: ignore[index]
        for pattern in (r'scripts="([^$"]*)"', r'scripts="\$scripts ([^"]*)"')
    )
    own = {script.name for script in listing.SCRIPTS if script.quick and not script.name.startswith("benchmarks.")}
    assert always | with_data == own
    assert {script.name for script in listing.SCRIPTS if not script.quick} == {"long_sequence", "datasets"}
    return "all but long_sequence and the benchmarks; without data, those that need none."


@says(CONTRIBUTING)
def workflow_calls_the_scripts():
    called = re.findall(r"run: bash (\S+)", text_of(".github/workflows/ci.yml"))
    assert called == [".ci/lint", ".ci/run"]
    return "`.github/workflows/ci.yml` calls the same scripts."


@says(CONTRIBUTING)
def hooks():
    found = [hook.splitlines() for hook in text_of(".pre-commit-config.yaml").split("- id: ")[1:]]
    assert [hook[0] for hook in found] == ["ruff-check", "ruff-format", "lint-imports", "pyright"]
    assert [hook[0] for hook in found if "        stages: [pre-push]" in hook] == ["pyright"]
    return "ruff and lint-imports at every commit, pyright at every push."


@says(CONTRIBUTING)
def peers():
    (line,) = [line for line in commands(".ci/run") if "torch==" in line]
    return f"`{line.replace('python -m ', '')}`"


@says(CONTRIBUTING)
def markers():
    block = re.search(r"markers = \[(.*?)\]", text_of("pyproject.toml"), re.S)[1]  # type: ignore[index]
    found = re.findall(r'"(\w+): (.*?)"', block)
    assert [name for name, _ in found] == ["devices", "peers", "processes", "slow"]
    about = dict(found)
    return f"`processes` (starts processes) or `slow` ({about['slow'].replace('takes ', '')})"


@says(CONTRIBUTING)
def folders_of_tests():
    section = text_of(CONTRIBUTING).partition("## Which tests")[2].partition("## Add a cell")[0]
    folders = set(re.findall(r"`(tests/\w+)`", section))
    mirrored = {f"tests/{path.name}" for path in (ROOT / "tests").iterdir() if (path / "__init__.py").is_file()}
    assert folders == mirrored - {"tests/support", "tests/golden"}
    return "Tests mirror the package."


@says(CONTRIBUTING)
def stored_answers():
    assert sorted(test_known_answers.GOLDEN) == ["keras", "onnx", "torch"]
    return "stored answers in `tests/golden/`, made by `python -m tests.golden.make`"


@says(CONTRIBUTING)
def strictness_of_the_tests():
    conftest = text_of("tests/conftest.py")
    assert "jax_numpy_rank_promotion" in conftest
    assert "jax_numpy_dtype_promotion" in conftest
    assert "install_import_hook" in conftest
    return "it checks the shapes in signatures, and raises on implicit promotion of ranks or dtypes."


@says(CONTRIBUTING)
def members_of_an_implementation():
    for each in registry.IMPLEMENTATIONS.values():
        for name in ("name", "supports", "reasons", "refused_transformations", "unsupported_cell", "run"):
            assert hasattr(each, name), name
    assert list(inspect.signature(registry.Implementation.run).parameters)[1:] == ["options", "inputs"]
    assert request.FEATURES
    assert programs.PAIRS
    return "`run(options, inputs)`, which returns the final state, the outputs and the states."


@says(CONTRIBUTING)
def layers():
    block = re.search(r'type = "layers"\nlayers = \[(.*?)\n\]', text_of("pyproject.toml"), re.S)[1]  # type: ignore[index]
    found = [row for row in re.findall(r'"(.*)"', block) if not row.startswith("jaxrnn._")]
    order = [
        "experiments",
        "modules",
        "interop",
        "beams",
        "analysis",
        "network",
        "layers",
        "sequence",
        "cells",
        "initializers",
    ]
    assert [row.removeprefix("jaxrnn.").partition(" ")[0] for row in found][: len(order)] == order
    return "`experiments`, `modules`, `interop` and `saving`, `beams`, `analysis`, `parallel`, `generation` and `configuration`, `network`, `sequence`, `cells`"


@says(CONTRIBUTING)
def base_of_configurations():
    assert {"seed", "seeds", "resume", "out"} <= set(runs.RunOptions.__dataclass_fields__)
    return "a frozen dataclass derived from `RunOptions` (`experiments/training/runs.py`)"


# MIGRATION.md; its tables are executed by test_migration_*.py


@says(MIGRATION)
def prefix_of_from_torch():
    assert "prefix" in inspect.signature(from_torch).parameters
    return '`prefix="encoder.rnn"` selects a part of a larger model'


@says(MIGRATION)
def layouts_of_weights():
    params = jaxrnn.interop.from_torch(
        {"weight_ih_l0": np.zeros((12, 2), np.float32), "weight_hh_l0": np.zeros((12, 3), np.float32)}
    )
    assert params[0].w_x.shape == (2, 12)
    return "| `weight_ih_l0 (GH, I)`, `bias_ih_l0`, `bias_hh_l0` | `params[0].w_x (I, GH)`, `params[0].b`"


@says(MIGRATION)
def bias_of_flax_grus():
    """Linen has a bias in the recurrent product of the candidate, NNX has none."""
    weights = linen.GRUCell(4).init(jax.random.key(0), np.zeros(4, np.float32), np.zeros(3, np.float32))["params"]
    assert "bias" in weights["hn"]
    cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))
    assert cell.dense_h.bias is None or cell.dense_h.use_bias is False
    return "there is a `b_hn`, which Linen has and NNX does not"


@says(MIGRATION)
def forget_bias():
    gate = inspect.signature(jaxrnn.lstm).parameters["bias_init"].default
    assert gate == initializers.gate_bias(f=1.0)
    return "an LSTM's forget bias starts at 1"


@says(MIGRATION)
def merges():
    quoted = ['"' + name + '"' for name in layers_of_networks.MERGES]
    return f"| {', '.join(quoted)} by name |"


# CHANGELOG.md


@says(CHANGELOG)
def seeds():
    assert options.SEEDS == 2**32
    return "seeds from 2³² (they repeated runs)"


@says(CHANGELOG)
def most_devices():
    return f"more than {devices.MOST_DEVICES:,} devices"


@says(CHANGELOG)
def most_nested():
    return f"more than {configuration.MOST_NESTED} nested `regularize`"


@says(CHANGELOG)
def deepest_graphs():
    return f"more than {_onnx_files.DEEPEST} nested graphs"


@says(CHANGELOG)
def largest_size():
    assert _checks.LARGEST_SIZE + 1 == 2**31
    return "sizes of 2³¹ or more"


@says(CHANGELOG)
def data_sets():
    sets = [source for source in _table.SETS.values() if source not in pretrained.NETWORKS]
    return f"`experiments.datasets`: {WORDS[len(sets)]} data sets"


@says(CHANGELOG)
def tolerance_of_pytorch():
    return f"PyTorch (float64, values and gradients, {test_known_answers.TOLERANCE['torch']:.0e})"


@says(CHANGELOG)
def units_of_the_kernels():
    return f"on CUDA GPUs, up to {tiling.MOST_UNITS} units"


@says(CHANGELOG)
def sequence_exports_nothing():
    assert not [
        name
        for name in vars(jaxrnn.sequence)
        if not name.startswith("_") and not inspect.ismodule(getattr(jaxrnn.sequence, name))
    ]
    return "The package `jaxrnn.sequence` exports nothing"


@says(CHANGELOG)
def interpreted_kernels():
    assert "pallas_interpret" in registry.IMPLEMENTATIONS
    return '`"pallas_interpret"` runs it anywhere'
