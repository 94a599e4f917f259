"""What README.md says of the interfaces of the package, and the glossary of its words."""

import inspect
import subprocess
import sys

import jax

import jaxrnn
from jaxrnn import _types, analysis, configuration, modules
from jaxrnn.sequence import registry
from tests.docs.statements import ROOT, says, text_of
from tests.docs.statements.library import made_of, names

README, GLOSSARY = "README.md", "docs/glossary.md"


@says(README)
def published_interfaces_of_analysis():
    for name in (
        "state_jacobians",
        "jacobian_products",
        "lyapunov_exponents",
        "recurrent_spectrum",
        "cell_state_jacobian_terms",
    ):
        assert name in analysis.__all__
    return "Jacobians of every step, singular values of their products over any length, Lyapunov exponents, the spectrum of `W_h`, the four terms"


@says(README)
def what_loads_on_first_use():
    code = "import sys, jaxrnn; print([n for n in ('analysis', 'interop', 'modules') if f'jaxrnn.{n}' in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    assert {"interop", "modules"} <= set(jaxrnn._ON_FIRST_USE)
    return "Flax NNX modules; loaded on first use, as is `interop`"


@says(README)
def registry_returns_its_table():
    assert registry.table() in text_of("jaxrnn/sequence/implementations/README.md")
    return "`registry.py` chooses the implementation and returns the table of what each supports"


@says(README)
def files_of_implementations():
    folder = ROOT / "jaxrnn/sequence/implementations"
    files = sorted(path.stem for path in folder.glob("[!_]*.py") if path.stem not in ("protocol", "vmapped"))
    assert files == [
        "associative",
        "bptt",
        "cudnn",
        "newton",
        "newton_back",
        "newton_solve",
        "pallas",
        "reference",
        "scan",
    ]
    return (
        "one file each for bptt, scan, reference, associative, cudnn, pallas (with `kernels/`) and newton "
        "(with `newton_solve.py` and `newton_back.py`)"
    )


@says(README)
def module_arguments():
    assert {"num_layers", "bidirectional", "rngs"} <= set(inspect.signature(modules.LSTM).parameters)
    return "lstm = jaxrnn.modules.LSTM(8, 16, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))"


@says(README)
def shapes_of_the_projection_of_states():
    states, _ = jax.eval_shape(
        lambda: jaxrnn.unroll(jaxrnn.lstm(64), made(jaxrnn.lstm(64), 8), jax.numpy.ones((50, 16, 8)))
    )
    assert states._fields == ("h", "c")
    return "ys (50, 16, 64); final.h, final.c"


def made(cell, size):
    return cell.init(jax.random.key(0), size)


# The glossary


@says(GLOSSARY)
def numbers_of_gates():
    counts = {"LSTM": jaxrnn.lstm(4), "GRU": jaxrnn.gru(4), "RNN": jaxrnn.rnn(4)}
    found = [f"{name} {made_of(cell).w_x.shape[1] // 4}" for name, cell in counts.items()]
    return f"gates of a cell: {', '.join(found)}"


@says(GLOSSARY)
def entries_of_a_state():
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(cell.initial_state())) for cell in (jaxrnn.gru(4), jaxrnn.lstm(4))
    ]
    assert sizes == [4, 8]
    return "entries of the state of one sequence: H, for an LSTM 2H"


@says(GLOSSARY)
def families():
    assert list(configuration.FACTORIES) == [
        "rnn", "lstm", "gru", "mgu", "slstm", "indrnn", "min_gru", "min_lstm", "rg_lru", "lru", "regularize", "attend",
    ]  # fmt: skip
    return "cells whose parameters are one record: RNN, LSTM, GRU, MGU, sLSTM, IndRNN, minGRU, minLSTM, RG-LRU, LRU"


@says(GLOSSARY)
def parts_of_the_rule():
    return f"a cell split into {names(jaxrnn.Rule._fields[:4])}"


@says(GLOSSARY)
def parts_of_the_tape():
    assert _types.Tape._fields == ("before", "after", "residual")
    return "**tape**: residual, state before, state after"
