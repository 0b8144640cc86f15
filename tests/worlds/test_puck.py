"""The puck: its reward by hand, its motion by its formula, its episodes all of one length."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlhf_lab.experience.episodes import collect_episodes, open_envs
from rlhf_lab.worlds.puck import FORCE, FRICTION, HOLE, HORIZON, TARGET, PuckEnv, puck_reward


def test_gymnasium_accepts_it():
    check_env(gymnasium.make("rlhf_lab/Puck-v0").unwrapped, skip_render_check=True)


def test_the_reward_by_hand():
    assert float(puck_reward(np.array([0.6, -0.4]))) == pytest.approx(-1 - np.exp(-(0.25 + 0.25) / 0.125))
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 81), np.linspace(-1, 1, 81)), -1).reshape(-1, 2)
    assert np.abs(grid[puck_reward(grid).argmax()] - TARGET).max() < 0.06
    assert float(puck_reward(HOLE)) < float(puck_reward(HOLE + [-0.5, -0.5]))  # nearer, and worse


def test_it_moves_as_it_says_and_stops_at_walls():
    env = PuckEnv()
    (x, y, *_), _ = env.reset(seed=1)
    speed = 0.0
    for _ in range(HORIZON):
        seen, reward, terminated, truncated, _ = env.step(2)  # east
        speed = FRICTION * (speed + FORCE)
        speed = 0.0 if x + speed > 1 else speed
        x = 1.0 if speed == 0 else x + speed
        np.testing.assert_allclose(seen, [x, y, speed / (FORCE * FRICTION / (1 - FRICTION)), 0], atol=1e-5)
        assert reward == pytest.approx(float(puck_reward(seen[:2].astype(float))), abs=1e-5)
    assert x == 1.0
    assert (terminated, truncated) == (False, True)


def test_every_episode_has_the_same_length_and_none_terminates():
    with open_envs("rlhf_lab/Puck-v0", 4, seed=0) as envs:
        generator = torch.Generator().manual_seed(0)
        act = lambda seen: torch.randint(5, (len(seen),), generator=generator)  # noqa: E731
        episodes = collect_episodes(envs, act, gamma=0.9)
    assert bool(episodes.mask.all())
    assert episodes.mask.shape == (4, HORIZON)
    assert bool((episodes.discounts == torch.tensor(0.9)).all())
    assert bool((episodes.observations.abs() <= 1).all())
