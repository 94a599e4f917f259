"""Odd values of every argument of networks, `generate` and `last_output`: accepted or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from tests.sequence.test_odd_values import FORMS, KEY, RIGHT, XS, B, H, I, T, options_of
from tests.support.odd_values import faults

pytestmark = pytest.mark.usefixtures("unhooked")


def test_odd_arguments_of_a_network_are_refused():
    net = jaxrnn.stack([jaxrnn.gru(H), jaxrnn.lstm(H)])
    params, states = net.init(KEY, I), net.initial_state((B,))
    traced = lambda f: lambda **arguments: jax.eval_shape(lambda: f(**arguments))  # noqa: E731
    words = {"states": ("states", "state"), "xs": ("xs", "state", "lengths", "resets")}
    good = {"params": params, "xs": XS, "states": states, **options_of(states, np.asarray([T, 2]))}
    right = {**RIGHT, "states": RIGHT["state"]}
    assert not faults(("stack.unroll", "unroll"), traced(net.unroll), good, accepted=right, words=words)
    good, right = {"params": params, "states": states, "x": XS[0]}, dict.fromkeys(("params", "states", "x"), FORMS)
    names = ("stack.step", "gru_step", "lstm_step")
    words = {"states": ("states", "state"), "x": ("x", "state")}
    assert not faults(names, traced(net.step), good, accepted=right, words=words)
    right = {"key": RIGHT["key"] - {"None"}, "dtype": {"None"}, "batch_shape": {"an empty list", "an empty tuple"}}
    assert not faults("stack.init", traced(net.init), {"key": KEY, "input_size": I, "dtype": None}, accepted=right)
    good = {"batch_shape": (B,), "dtype": None}
    assert not faults("stack.initial_state", traced(net.initial_state), good, accepted=right)


def test_odd_options_of_a_stack_are_refused():
    def call(**options):
        net = jaxrnn.stack(**options)
        return net.unroll(net.init(KEY, I), XS, key=KEY)

    good = {"cells": [jaxrnn.gru(H), jaxrnn.gru(H)], "bidirectional": False, "merge": "concat", "dropout": 0.1}
    right = {"bidirectional": {"True"}, "merge": {"a lambda"}, "dropout": {"0"}, "residual": {"True"}}
    traced = lambda **options: jax.eval_shape(lambda: call(**options))  # noqa: E731
    assert not faults(("stack", "stack.unroll"), traced, {**good, "residual": False}, accepted=right)


def test_odd_arguments_of_generate_are_refused():
    traced = lambda **arguments: jax.eval_shape(lambda: jaxrnn.generate(**arguments))  # noqa: E731
    cell, start = jaxrnn.gru(2), jnp.zeros((3, 2))
    net, params = jaxrnn.stack([cell]), cell.init(KEY, 2)
    words = {"net_or_cell": ("net_or_cell", "params"), "first_input": ("first_input", "states")}
    right = {"params": FORMS, "states": FORMS, "first_input": FORMS - {"float16"}, "return_inputs": {"True"}}
    right["key"] = RIGHT["key"]
    for model, own, states in ((net, (params,), (start,)), (cell, params, start)):
        good = {"net_or_cell": model, "params": own, "states": states, "first_input": start}
        good |= {"next_input": lambda y, key: y, "length": 2, "key": KEY, "return_inputs": False}
        assert not faults("generate", traced, good, accepted=right, words=words)


def test_odd_arguments_of_tokens_and_beams_are_refused():
    traced = lambda f: lambda **arguments: jax.eval_shape(lambda: f(**arguments))  # noqa: E731
    cell, start = jaxrnn.gru(2), jnp.zeros((3, 2))
    params, logits, embed = cell.init(KEY, 2), lambda y: y, lambda token: jax.nn.one_hot(token, 2)
    words = {"net_or_cell": ("net_or_cell", "params"), "first_input": ("first_input", "states")}
    good = {"net_or_cell": cell, "params": params, "states": start, "first_input": start, "length": 2, "end": 1}
    right = {
        "params": FORMS,
        "states": FORMS,
        "first_input": FORMS - {"float16"},
        "key": RIGHT["key"],
        "end": {"None", "0"},
    }
    right |= {"return_inputs": {"True"}, "return_tokens": {"True"}}
    own = {"next_input": jaxrnn.next_token(logits, embed), "key": KEY, "return_inputs": False, "return_tokens": True}
    assert not faults("generate", traced(jaxrnn.generate), {**good, **own}, accepted=right, words=words)
    right |= {"length_penalty": {"0", "2.5", "numbers"}, "end": {"0"}}
    own = {"logits": logits, "embed": embed, "beam_size": 2, "length_penalty": 0.5}
    assert not faults("beam_search", traced(jaxrnn.beam_search), {**good, **own}, accepted=right, words=words)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_odd_arguments_of_last_output_are_refused(bidirectional):
    traced = lambda **arguments: jax.eval_shape(lambda: jaxrnn.last_output(**arguments))  # noqa: E731
    good = {"ys": XS, "lengths": np.asarray([T, 2]), "bidirectional": bidirectional}
    right = {"ys": FORMS, "lengths": RIGHT["lengths"], "bidirectional": {"True"}}
    assert not faults("last_output", traced, good, accepted=right, words={"ys": ("ys", "lengths")})
