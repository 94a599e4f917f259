"""The page on cells of one's own: its blocks run in order, and what they compute is right."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn

PAGE = Path(__file__).parents[2] / "docs" / "own_cells.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.mark.slow
@pytest.mark.usefixtures("settings_of_users")
def test_blocks_run(capsys):
    namespace: dict = {}
    for block in BLOCKS:
        exec(compile(block, "docs/own_cells.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "gated passes: init and initial_state; step; rule.project and rule.forward" in printed
    assert "rule.accumulate dxs: expected the derivative of rule.forward" in printed
    cell, params, xs = namespace["cell"], namespace["params"], namespace["xs"]
    held = jaxrnn.unroll(namespace["open_gate"], params, xs, jnp.ones((4, 16)))[1]
    np.testing.assert_array_equal(held, jnp.ones((20, 4, 16)))
    by_gate = namespace["found"].by_gate
    whole = jax.grad(lambda params: jnp.sum(jaxrnn.unroll(cell, params, xs)[1][-1] ** 2))(params)
    np.testing.assert_allclose(jnp.concatenate([by_gate["z"].w_h, by_gate["n"].w_h], 1), whole.w_h, atol=1e-5)
