"""What is checked is named, with what was got and what was expected."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from rlhf_lab.recipes.dqn import DQNConfig
from rlhf_lab.recipes.ppo import PPOConfig
from rlhf_lab.recipes.q_learning import QLearningConfig
from rlhf_lab.recipes.reinforce import ReinforceConfig
from rlhf_lab.training import configs
from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require, shares


def test_require():
    require(True, "x", 1, "2")
    with pytest.raises(ValueError, match="x is 1; expected 2"):
        require(False, "x", 1, "2")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (at_least_one, [1, 7], [0, -1]),
        (above_zero, [1e-9, 5], [0, -1.0, float("inf"), float("nan")]),
        (from_zero, [0, 0.5], [-1e-9, float("inf"), float("nan")]),
        (shares, [0, 0.5, 1], [-0.1, 1.1, float("nan")]),
    ],
)
def test_fields_are_checked_one_by_one(check, good, bad):
    for number in good:
        check(SimpleNamespace(a=number, b=number), "a", "b")
    for number in bad:
        with pytest.raises(ValueError, match=r"b is .*; expected"):
            check(SimpleNamespace(a=good[0], b=number), "a", "b")


@pytest.mark.parametrize("number", [1.5, 2.0, "3", True, None, np.float64(2), np.True_, float("nan"), [1], Fraction(3)])
def test_a_count_is_a_whole_number(number):
    with pytest.raises(ValueError, match=r"b is .*; expected a whole number"):
        at_least_one(SimpleNamespace(a=1, b=number), "a", "b")


@pytest.mark.parametrize("check", [above_zero, from_zero, shares])
@pytest.mark.parametrize("number", ["0.5", True, None, [0.5], 1j, np.array([0.5])])
def test_what_is_no_number_is_refused(check, number):
    with pytest.raises(ValueError, match=r"b is .*; expected a number"):
        check(SimpleNamespace(a=1, b=number), "a", "b")


def test_numpys_numbers_become_pythons():
    config = SimpleNamespace(steps=np.int64(3), rate=np.float32(0.5), seed=np.uint8(7), on=np.True_)
    at_least_one(config, "steps")
    above_zero(config, "rate")
    assert (type(config.steps), type(config.rate)) == (int, float)
    configs.whole(config, "seed")
    configs.flags(config, "on")
    assert vars(config) == {"steps": 3, "rate": 0.5, "seed": 7, "on": True}
    assert (type(config.seed), type(config.on)) == (int, bool)


@pytest.mark.parametrize("config", [DQNConfig, PPOConfig, QLearningConfig, ReinforceConfig])
@pytest.mark.parametrize("seed", [0.5, "0", True, -1, None])
def test_a_seed_of_the_control_recipes_is_a_whole_number_from_0_on(config, seed):
    with pytest.raises(ValueError, match=r"seed is .*; expected (a whole number|at least 0)"):
        config(seed=seed)


WRONG = {
    "PPO's count": (lambda: PPOConfig(steps=1.5), "steps is 1.5; expected a whole number"),
    "PPO's minibatch": (lambda: PPOConfig(minibatch=64.0), "minibatch is 64.0; expected a whole number"),
    "PPO's band": (lambda: PPOConfig(clip_epsilon="0.2"), "clip_epsilon is '0.2'; expected a number"),
    "PPO's stop": (lambda: PPOConfig(kl_stop="0.1"), "kl_stop is '0.1'; expected a number"),
    "PPO's flag": (lambda: PPOConfig(whiten="no"), "whiten is 'no'; expected True or False"),
    "REINFORCE's count": (lambda: ReinforceConfig(iterations=2.0), "iterations is 2.0; expected a whole number"),
    "REINFORCE's flag": (lambda: ReinforceConfig(discount_visits=None), "discount_visits is None; expected True"),
    "Q-learning's rate": (lambda: QLearningConfig(learning_rate="1"), "learning_rate is '1'; expected a number"),
    "DQN's memory": (lambda: DQNConfig(memory=1e5), "memory is 100000.0; expected a whole number"),
    "DQN's exploration": (lambda: DQNConfig(exploration=None), "exploration is None; expected a number"),
    "DQN's layers": (lambda: DQNConfig(hidden=64), "hidden is 64; expected a list of widths"),
    "DQN's layer": (lambda: DQNConfig(hidden=(64, 0)), "a width in hidden is 0; expected at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_no_error_of_python_reaches_who_sets_a_config(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()
