"""docs/mathematics.md: its numbers, the tests that it names, and the equations that no other test covers."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn
from jaxrnn import analysis

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mathematics.md").read_text(encoding="utf-8")
T, B, I, H = 6, 2, 3, 4  # noqa: E741


def test_equations_are_numbered_in_order():
    blocks = "".join(re.findall(r"```text\n(.*?)```", PAGE, re.S))
    numbers = [int(number) for number in re.findall(r" \((\d+)\)$", blocks, re.M)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 40
    assert max(int(number) for number in re.findall(r"\((\d+)\)", PAGE)) == len(numbers)


def test_every_equation_has_a_row_of_tests():
    _, _, section = PAGE.partition("## Where each equation is tested")
    covered = set()
    for row in re.findall(r"^\| (\(.*?) \|", section, re.M):
        for first, last in re.findall(r"\((\d+)\)(?: to \((\d+)\))?", row):
            covered |= set(range(int(first), int(last or first) + 1))
    assert covered == set(range(1, max(covered) + 1))
    assert f"({max(covered)})" in PAGE.partition("## Slips")[0].rpartition("```")[0]


def test_the_tests_that_the_page_names_exist():
    names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(names) > 12
    for path, name in names:
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), name


def test_references_in_the_code_are_equations_of_the_page():
    highest = max(int(number) for number in re.findall(r" \((\d+)\)$", PAGE, re.M))
    for path in [*(ROOT / "jaxrnn").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        for sentence in re.findall(r"mathematics\.md[^.]*", path.read_text(encoding="utf-8")):
            assert all(1 <= int(number) <= highest for number in re.findall(r"\((\d+)\)", sentence)), path


@pytest.mark.parametrize(
    ("psi", "cost"),
    [
        (lambda logits: np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), optax.softmax_cross_entropy),
        (lambda logits: 1 / (1 + np.exp(-logits)), optax.sigmoid_binary_cross_entropy),
    ],
    ids=["softmax", "sigmoid"],
)
def test_cotangent_of_the_logits_is_the_difference_from_the_target(psi, cost, x64):
    """(2) and (22); softmax's target is one class, σ's are independent bits."""
    rng = np.random.default_rng(0)
    hs, v, d = rng.standard_normal((T, H)), rng.standard_normal((H, I)), rng.standard_normal(I)
    targets = np.eye(I)[rng.integers(I, size=T)]
    if cost is optax.sigmoid_binary_cross_entropy:
        targets = rng.integers(2, size=(T, I)).astype(float)

    def loss(hs, v, shift):
        return jnp.sum(cost(hs @ v + d[None] + shift, targets))

    by_hs, by_v, by_logits = jax.grad(loss, (0, 1, 2))(hs, v, np.zeros((T, I)))
    apart = psi(hs @ v + d) - targets
    np.testing.assert_allclose(by_logits, apart, atol=1e-12)
    np.testing.assert_allclose(by_hs, apart @ v.T, atol=1e-12)
    np.testing.assert_allclose(by_v, hs.T @ apart, atol=1e-12)


@pytest.mark.parametrize("reads_h_only", [True, False])
def test_total_and_handed_back_cotangents_of_the_cell_state(reads_h_only, x64):
    """`log_state_norms.c` is the log of what is handed back, f_{t+1} ⊙ δc_{t+1}, and not of the total δc_t."""
    cell = jaxrnn.lstm(H)
    params = jax.tree.map(lambda leaf: 2 * leaf, cell.init(jax.random.key(0), I, dtype=jnp.float64))
    xs = jax.random.normal(jax.random.key(1), (T, B, I), jnp.float64)
    of_outputs, of_memory = np.split(np.random.default_rng(0).standard_normal((T + 1, B, H)), [T])

    def loss(final, ys):
        return jnp.sum(of_outputs * ys) + (0 if reads_h_only else jnp.sum(of_memory[0] * final.c))

    flow = analysis.gradient_flow(cell, params, xs, loss)

    def rest(state, start):
        """What the loss reads from step `start` on, as a function of h and c after that step, each by itself."""
        ys = [state.h]
        for x in xs[start:]:
            state, y = cell.step(params, state, x)
            ys.append(y)
        earlier = jnp.zeros((start - 1, B, H))
        return loss(state, jnp.concatenate([earlier, jnp.stack(ys)]))

    _, _, states = jaxrnn.unroll(cell, params, xs, return_states=True)
    gates = analysis.gate_values(cell, params, xs)
    following = np.zeros((B, H)) if reads_h_only else of_memory[0]
    for t in range(T, 0, -1):
        now = jax.tree.map(lambda leaf, t=t: leaf[t - 1], states)
        by = jax.grad(rest)(now, t)
        shown = by.h * gates["o"][t - 1] * (1 - np.tanh(now.c) ** 2)
        np.testing.assert_allclose(by.c, following, atol=1e-12)  # κ_t
        with np.errstate(divide="ignore"):
            expected = np.log(np.linalg.norm(following, axis=-1))
        np.testing.assert_allclose(flow.log_state_norms.c[t - 1], expected, atol=1e-10)
        np.testing.assert_allclose(flow.log_state_norms.h[t - 1], np.log(np.linalg.norm(by.h, axis=-1)), atol=1e-10)
        total = shown + following
        assert np.abs(total - following).max() > 1e-4
        following = gates["f"][t - 1] * total
    assert np.isneginf(flow.log_state_norms.c[-1]).all() == reads_h_only


def test_powers_follow_eigenvalues_and_not_singular_values():
    """The example of the slip of S3: a largest singular value of 1.5 beside a power that vanishes."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((8, 8))
    w *= 1.5 / np.linalg.norm(w, 2)
    radius = np.abs(np.linalg.eigvals(w)).max()
    power = np.linalg.norm(np.linalg.matrix_power(w, 400), 2)
    assert radius < 1
    assert np.log(power) / 400 == pytest.approx(np.log(radius), abs=0.01)
    normal = (w + w.T) * (1.5 / np.linalg.norm(w + w.T, 2))
    assert np.log(np.linalg.norm(np.linalg.matrix_power(normal, 400), 2)) / 400 == pytest.approx(np.log(1.5), abs=1e-9)
