"""Against a library that is not ours: its GAE gives our numbers, its agents train in our environments."""

import itertools

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings, strategies as st

import rlhf_lab.worlds.envs  # noqa: F401  (registers them)
from rlhf_lab.maths.returns import gae, lambda_returns
from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.records import as_conversation


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.sampled_from([0.5, 0.99, 1.0])
)
def test_gae_is_that_of_another_library(seed, steps, lam, gamma):
    """One environment, random ends. Theirs knows ends alone; a truncated one is told by gamma V in the last reward."""
    random = np.random.default_rng(seed)
    rewards, values = random.normal(size=steps), random.normal(size=steps)
    starts = np.append(True, random.random(steps - 1) < 0.3)
    last_value, over = random.normal(), random.random() < 0.5
    final_values, truncated = random.normal(size=steps), random.random(steps) < 0.5
    ends = np.append(starts[1:], over)
    theirs = stable_baselines3.common.buffers.RolloutBuffer(
        steps, Box(-1, 1, (1,)), Discrete(2), device="cpu", gae_lambda=lam, gamma=gamma
    )
    for t in range(steps):
        reward = rewards[t] + gamma * final_values[t] * (ends[t] and truncated[t])
        theirs.add(np.zeros((1, 1)), np.zeros(1), np.array([reward]), np.array([starts[t]]),
                   torch.tensor([values[t]]), torch.zeros(1))  # fmt: skip
    theirs.compute_returns_and_advantage(torch.tensor([last_value]), np.array([over]))

    edges = [*np.flatnonzero(starts), steps]
    lengths = torch.tensor(np.diff(edges))
    mask = length_mask(lengths, int(lengths.max()))
    ours = {name: torch.zeros(mask.shape, dtype=torch.float64) for name in ("rewards", "discounts")}
    ours_values = torch.zeros(len(lengths), mask.shape[1] + 1, dtype=torch.float64)
    for row, (a, b) in enumerate(itertools.pairwise(edges)):
        ours["rewards"][row, : b - a] = torch.tensor(rewards[a:b])
        terminal = ends[b - 1] and not truncated[b - 1]
        ours["discounts"][row, : b - a] = torch.tensor([gamma] * (b - a - 1) + [0.0 if terminal else gamma])
        after = final_values[b - 1] if ends[b - 1] else last_value
        ours_values[row, : b - a + 1] = torch.tensor([*values[a:b], after])
    arguments = (ours["rewards"], ours_values, ours["discounts"], mask, lam)
    np.testing.assert_allclose(gae(*arguments)[mask].numpy(), theirs.advantages[:, 0], atol=1e-5)
    np.testing.assert_allclose(lambda_returns(*arguments)[mask].numpy(), theirs.returns[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", ["rlhf_lab/Dialogue-v0", "rlhf_lab/Token-v0"])
def test_an_agent_of_another_library_trains_in_our_environments(name):
    options = {"prompts": [as_conversation("When does the library close?")], "max_new_tokens": 8}
    env = gymnasium.make(name, **(options if "Token" in name else {}))
    agent = stable_baselines3.PPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=1, seed=0, device="cpu")
    before = [p.clone() for p in agent.policy.parameters()]
    agent.learn(64)
    assert any(not torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))
