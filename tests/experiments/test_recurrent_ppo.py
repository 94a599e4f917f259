"""Recurrent PPO: environments against episodes by hand, the bandit's optimum, rollouts against `unroll`, and a run."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.recurrent_ppo import __main__ as recurrent_ppo
from experiments.recurrent_ppo import planning, ppo, speed
from experiments.recurrent_ppo.environments import ENVIRONMENTS, Bandit, Cards, CartPole, Chain, Environment, advance
from experiments.recurrent_ppo.network import Network, network_of
from experiments.recurrent_ppo.plan import planned
from experiments.recurrent_ppo.tables import tables
from experiments.recurrent_ppo.training import greedy_actions, keys_of
from tests.support.draws import assert_independent, blocks, uniform
from tests.support.training import optax_promotes

KEY = jax.random.key(0)
SMALL = ppo.Settings(updates=2, episodes=4, steps=12, discount=0.9, learning_rate=1e-2, entropy=0.01, minibatches=2)


def played(name, state, actions, key=KEY):
    """Observations, rewards and ends of an episode `(B, steps)` of actions, without new episodes."""
    environment, seen = ENVIRONMENTS[name], []
    for action in jnp.asarray(actions).T:
        observed = environment.observe(state)
        state, reward, done = environment.step(state, action, key)
        seen.append((observed, reward, done))
    return tuple(np.stack(part) for part in zip(*seen, strict=True)), state


def test_cart_pole_moves_as_its_equations_by_hand():
    """The first step from rest, upright, by hand; then twenty steps of Gym's lines in Python's floats."""
    zeros = jnp.zeros(1)
    _, after = played("cart_pole", CartPole(zeros, zeros, zeros, zeros, jnp.zeros(1, int)), [[1]])
    push = 10 / 1.1  # of the force on cart and pole
    theta_acc = -push / (0.5 * (4 / 3 - 0.1 / 1.1))
    expected = (0, 0.02 * (push - 0.05 * theta_acc / 1.1), 0, 0.02 * theta_acc)
    np.testing.assert_allclose(np.ravel(after[:4]), expected, rtol=1e-6)
    x, v, theta, w = start = (0.01, -0.02, 0.03, -0.04)
    actions = [1, 0, 0, 1] * 5
    for action in actions:
        force, sin, cos = 10 if action else -10, math.sin(theta), math.cos(theta)
        temp = (force + 0.05 * w**2 * sin) / 1.1
        acc = (9.8 * sin - cos * temp) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        x, v, theta, w = x + 0.02 * v, v + 0.02 * (temp - 0.05 * acc * cos / 1.1), theta + 0.02 * w, w + 0.02 * acc
    state = CartPole(*(jnp.array([each]) for each in start), jnp.zeros(1, int))
    (observed, rewards, done), after = played("cart_pole", state, [actions])
    np.testing.assert_allclose(np.ravel(after[:4]), (x, v, theta, w), atol=1e-6)
    np.testing.assert_allclose(observed[0, 0], (0.01 / 2.4, 0.03 / math.radians(12)), rtol=1e-6)  # no velocities
    assert (rewards == 1).all()
    assert not done.any()


def test_cart_pole_ends_where_it_falls_or_leaves_and_after_500_steps():
    at = lambda x, theta, time: CartPole(*(jnp.array([v]) for v in (x, 0.0, theta, 0.0)), jnp.array([time]))  # noqa: E731
    step = ENVIRONMENTS["cart_pole"].step
    ends = [bool(step(at(*given), jnp.array([1]), KEY)[2][0]) for given in (
        (2.39, 0.0, 0), (2.41, 0.0, 0), (-2.41, 0.0, 0), (0.0, 0.209, 0), (0.0, 0.2095, 0), (0.0, 0.0, 498), (0.0, 0.0, 499),
    )]  # fmt: skip
    assert ends == [False, True, True, False, True, False, True]


def test_chain_rewards_the_cue_after_100_steps():
    actions = np.zeros((2, 101), int)
    actions[:, -1] = 1
    (observed, rewards, done), _ = played("chain", Chain(jnp.array([1, 0]), jnp.zeros(2, int)), actions)
    assert observed[0].tolist() == [[1, 0], [-1, 0]]
    assert not observed[1:-1].any()
    assert observed[-1].tolist() == [[0, 1], [0, 1]]
    assert rewards[-1].tolist() == [1, -1]
    assert not rewards[:-1].any()
    assert done.tolist() == [[False, False]] * 100 + [[True, True]]


def test_bandit_shows_the_last_arm_and_its_reward():
    chances = jnp.array([[1.0, 0.0, 1.0, 0.0, 0.0]])
    state = Bandit(chances, jnp.array([-1]), jnp.zeros(1), jnp.zeros(1, int))
    (observed, rewards, done), _ = played("bandit", state, [[0, 1, 2, 3, 4, 0, 0, 0, 0, 0]])
    assert rewards[:, 0].tolist() == [1, 0, 1, 0, 0, 1, 1, 1, 1, 1]
    assert not observed[0].any()
    assert observed[1:4, 0].tolist() == [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 1]]
    assert done[:, 0].tolist() == [False] * 9 + [True]


def test_cards_ask_for_the_suit_of_four_ago():
    deck = np.asarray(ENVIRONMENTS["repeat_previous"].start(KEY, 3).deck)
    assert (np.sort(deck, 1) == np.repeat(np.arange(4), 13)).all()
    assert (deck[0] != deck[1]).any()
    actions = np.zeros((2, 52), int)
    actions[:, 4:] = deck[:2, :-4]
    actions[1, 4:] = (actions[1, 4:] + 1) % 4
    (observed, rewards, done), _ = played("repeat_previous", Cards(jnp.asarray(deck[:2]), jnp.zeros(2, int)), actions)
    assert (deck[:2] == observed.argmax(-1).T).all()
    assert not rewards[:4].any()
    np.testing.assert_allclose(rewards.sum(0), [1, -1], rtol=1e-5)
    assert done[:, 0].tolist() == [False] * 51 + [True]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_new_episode_begins_after_the_last_step(name):
    environment = ENVIRONMENTS[name]
    state = environment.start(KEY, 4)
    state = state._replace(time=jnp.array([0, environment.steps - 1, 0, environment.steps - 1], jnp.int32))
    after, _, done = advance(environment, state, jnp.zeros(4, int), jax.random.key(1))
    assert done.tolist() == [False, True, False, True]
    assert after.time.tolist() == [1, 0, 1, 0]


# The bandit's optimum


def test_values_of_the_bandit_equal_the_sum_over_all_plans():
    """Two arms, three pulls: every plan, an arm for each sequence of rewards so far, in all sequences of rewards."""
    pulls, histories = 3, [h for n in range(3) for h in itertools.product((0, 1), repeat=n)]
    rewards = planning.every_outcome(pulls)
    best = 0.0
    for plan in itertools.product((0, 1), repeat=len(histories)):
        arm_of = dict(zip(histories, plan, strict=True))
        actions = np.array([[arm_of[tuple(row[:t])] for t in range(pulls)] for row in rewards])
        best = max(best, planning.expected_return(2, rewards, actions))
    assert best == pytest.approx(planning.values(2, pulls).optimal, abs=1e-12)
    assert planning.values(2, 2).optimal == pytest.approx(13 / 12)  # 1/2, then 1/2 (2/3 + 1/2)
    found = planning.values(5, 10)
    assert found.optimal == pytest.approx(ENVIRONMENTS["bandit"].optimum, abs=5e-4)
    assert found.greedy == pytest.approx(6.626, abs=5e-4)
    always = planning.expected_return(5, planning.every_outcome(10), np.zeros((1024, 10), int))
    assert always == pytest.approx(5)


def test_greedy_actions_follow_the_rewards():
    """A network whose policy is its observation plus what it remembers of the first reward."""

    def act(params, state, observations, resets):
        state = jnp.where(resets[0, :, None], 0.0, state) + observations[0, :, 5:]
        return (
            state,
            jnp.concatenate([state + 0.5, jnp.ones((len(state), 1)), jnp.zeros((len(state), 3))], 1)[None],
            None,
        )

    network = Network(lambda key: None, lambda count: jnp.ones((count, 1)), act)
    rewards = planning.every_outcome(4)
    found = np.asarray(greedy_actions(network, None, jnp.asarray(rewards, jnp.float32)))
    won = np.cumsum(rewards, 1) - rewards > 0  # before each pull
    np.testing.assert_array_equal(found, np.where(won, 0, 1))


# Rollouts and learning


@functools.cache
def rolled(cell):
    """Two rollouts, one after the other, of a bandit whose episodes end within them."""
    environment = ENVIRONMENTS["bandit"]
    network = network_of(environment, cell, 8)
    run = ppo.begin(environment, network, SMALL, KEY)
    roll = jax.jit(lambda place, key: ppo.rollout(environment, network, run.params, place, 12, key))
    middle, first = roll(run.place, jax.random.key(1))
    last, second = roll(middle, jax.random.key(2))
    return network, run, (run.place, first), (middle, second), last


@pytest.mark.parametrize("cell", ["gru", "lstm", "min_gru", "memoryless"])
def test_steps_of_a_rollout_equal_unroll(cell):
    """Over the border of two rollouts too, and with a reset at the first step, of a state that is not zeros."""
    network, run, (start, first), (middle, second), last = rolled(cell)
    act = jax.jit(network.act)
    for place, steps, end in ((start, first, middle), (middle, second, last)):
        state, logits, values = act(run.params, place.network, steps.observations, steps.resets)
        np.testing.assert_allclose(values, steps.values, atol=1e-6)
        np.testing.assert_allclose(ppo.of_actions(logits, steps.actions), steps.log_probs, atol=1e-6)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), state, end.network)
        np.testing.assert_array_equal(steps.resets, np.concatenate([place.resets[None], steps.done[:-1]]))
    assert first.resets[0].all()
    assert first.resets[1:].sum(0).tolist() == [1] * 4
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    full = jax.tree.map(lambda leaf: leaf + 3.0, start.network)  # replaced at once
    _, _, values = jax.jit(network.act)(run.params, full, both.observations, both.resets)
    np.testing.assert_allclose(values, both.values, atol=1e-6)


def test_advantages_equal_the_sum_of_discounted_errors():
    rng = np.random.default_rng(0)
    rewards, values, last = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), rng.normal(size=3)
    done = rng.random((6, 3)) < 0.3
    steps = ppo.Steps(*[None] * 4, *map(jnp.asarray, (values, rewards, done)))
    found = ppo.advantages(steps, jnp.asarray(last), 0.9, 0.8)
    after = np.concatenate([values[1:], last[None]])
    errors = rewards + 0.9 * after * ~done - values
    for t, b in np.ndindex(6, 3):
        ends = np.flatnonzero(done[t:, b])
        own = errors[t : t + ends[0] + 1, b] if ends.size else errors[t:, b]
        assert float(found[t, b]) == pytest.approx((own * 0.72 ** np.arange(len(own))).sum(), abs=1e-5)


def test_the_same_program_with_flax_learns_the_same():
    """One update of every program from the same parameters: measured at 3e-6."""
    with optax_promotes(), jax.numpy_rank_promotion("allow"):
        found = speed.measured(ENVIRONMENTS["bandit"], 8, SMALL, 1, 1)
    assert set(found.difference) == {"cell.step", "flax"}
    assert max(found.difference.values()) < 5e-5
    assert set(found.steps_per_second) == set(speed.NAMES)


def test_every_draw_is_independent_of_the_others():
    """Environment and network draw from the keys that they are given, and show them."""
    seen: dict = {}

    def draw(name):
        def drawn(key, *_):
            seen.setdefault(name, []).append(uniform(key, 100))

        return drawn

    def start(key, count):
        draw("start")(key)
        return jnp.zeros(count)

    def step(state, actions, key):
        draw("step")(key)
        return state, jnp.zeros(len(state)), jnp.zeros(len(state), bool)

    environment = Environment("", 1, 2, 3, 1.0, start, lambda state: state[:, None], step)
    act = lambda params, state, xs, resets: (state, jnp.zeros((*xs.shape[:2], 2)), jnp.zeros(xs.shape[:2]))  # noqa: E731
    network = Network(lambda key: draw("params")(key) or {"w": jnp.zeros(1)}, lambda count: (), act)
    keys = keys_of(0)
    with jax.disable_jit(), optax_promotes():
        run = ppo.begin(environment, network, SMALL._replace(episodes=4), keys.start)
        ppo.rollout(environment, network, run.params, run.place, 2, keys.updates)
        ppo.greedy_returns(environment, network, run.params, 4, keys.test)
    draws = {f"{name} {k}": own for name, every in seen.items() for k, own in enumerate(every)}
    assert len(draws) == 1 + 1 + 2 * 2 + 1 + 3
    draws |= {name: uniform(key, 100) for name, key in keys._asdict().items()}
    for k in range(2):
        draws |= {
            f"update {k}, {j}": uniform(key, 100)
            for j, key in enumerate(jax.random.split(jax.random.fold_in(keys.updates, k)))
        }
    assert_independent(draws)
    made = network_of(ENVIRONMENTS["bandit"], "gru", 64).init(KEY)
    assert_independent(blocks("", {name: part for name, part in made.items() if name in ("encoder", "memory")}))


# The script


def test_plan_has_every_cell_and_the_chain_with_both_biases():
    runs = planned(("chain", "bandit"), ("lstm", "memoryless", "min_gru"))
    assert [run.name for run in runs] == [
        "chain-memoryless", "chain-lstm-chrono", "chain-lstm", "chain-min_gru-chrono", "bandit-memoryless", "bandit-lstm",
        "bandit-min_gru",
    ]  # fmt: skip


def test_a_run_writes_its_record_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(recurrent_ppo, "TIMED", 1)
    monkeypatch.setattr(recurrent_ppo, "timing", lambda config: speed.Timed(
        {name: {"most": 2.0, "median": 1.0} for name in speed.NAMES}, {"flax": 0.0}
    ))  # fmt: skip
    arguments = [
        "--environments",
        "bandit",
        "--cells",
        "gru",
        "--hidden-size",
        "4",
        "--seeds",
        "2",
        "--tests",
        "5",
        "--devices",
        "1",
    ]

    def run(name, *more):
        assert recurrent_ppo.main([*arguments, *more, "--out", str(tmp_path / name)]) == 0
        return json.loads((tmp_path / name / "results.json").read_text())

    with optax_promotes(), jax.numpy_rank_promotion("allow"):
        whole = run("whole", "--updates", "2", "--save-every", "1")
        place = tmp_path / "whole" / "bandit-gru"
        (tmp_path / "cut").mkdir()
        (place.parent / "bandit-gru" / "checkpoints" / "2").rename(tmp_path / "cut" / "2")
        again = run("whole", "--updates", "2", "--resume")
    (own,), (resumed,) = whole["runs"], again["runs"]
    for name in ("returns", "test", "exact", "steps"):
        assert own[name] == resumed[name]
    assert own["steps"] == [5120, 10240]
    assert all(4 < value < 6.66 for value in own["exact"])
    assert sorted(path.name for path in (tmp_path / "whole").glob("recurrent_ppo.*")) == [
        "recurrent_ppo.png",
        "recurrent_ppo.svg",
    ]
    made = tables(whole)
    assert "| bandit, 5 arms, 10 pulls | GRU |" in made["returns"]
    assert made["speed"].count("1.00") == 3
    said = recurrent_ppo.main([*arguments, "--cells", "tgru", "--out", str(tmp_path / "other")])
    assert said == 2
