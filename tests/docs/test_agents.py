"""The page on agents: its blocks run in order, and compute what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def advantages(rewards, values, done, last_value, discount, trace):
    """The sum of all discounted errors until the end of the episode (Schulman 2016, equation 16)."""
    steps, count = rewards.shape
    after = np.concatenate([values[1:], last_value[None]])
    errors = rewards + discount * after * ~done - values
    found = np.zeros((steps, count))
    for b in range(count):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                found[t, b] += weight * errors[k, b]
                if done[k, b]:
                    break
                weight *= discount * trace
    return found


@pytest.mark.usefixtures("settings_of_users")
def test_blocks_run():
    page: dict = {}
    for block in BLOCKS:
        exec(compile(block, "docs/agents.md", "exec"), page)
    seen = {name: np.asarray(value) for name, value in page["seen"].items()}
    np.testing.assert_array_equal(seen["resets"][1:], seen["done"][:-1])
    np.testing.assert_array_equal(seen["resets"][0], page["first"]["done"][-1])
    assert page["first"]["resets"][0].all()
    assert seen["done"].any()
    operands = seen["rewards"], seen["values"], seen["done"], np.asarray(page["last_value"])
    np.testing.assert_allclose(page["gains"], advantages(*operands, 0.99, 0.95), atol=1e-5)
    params, (loss, _) = page["params"], page["parallel"](page["params"], *page["batch"])
    np.testing.assert_allclose(loss, page["device_loss"](params, *page["batch"]), rtol=1e-5)
    assert page["by_seed"].shape == (3,)
