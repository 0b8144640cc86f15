"""Environments whose every step is known, for several test files."""

import math

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Counter(gymnasium.Env):
    """Shows 0, 1, 2, ... and pays what it shows; terminates at `end`."""

    action_space, observation_space = Discrete(2), Box(0, 100, (1,), np.float32)

    def __init__(self, end=3):
        self.end = end

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.array([self.count], np.float32), float(self.count), self.count >= self.end, False, {}


class Walk(gymnasium.Env):
    """Random lengths, rewards and kinds of end; shows its name, the episode and the step."""

    action_space, observation_space = Discrete(2), Box(-math.inf, math.inf, (3,), np.float32)

    def __init__(self, name=0, stop=0.25):
        self.name, self.stop, self.episode = name, stop, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action):
        self.count += 1
        over, terminal = self.np_random.random() < self.stop, self.np_random.random() < 0.5
        return self._seen(), self.np_random.normal() + action, over and terminal, over and not terminal, {}

    def _seen(self):
        return np.array([self.name, self.episode, self.count], np.float32)


class Played(gymnasium.Env):
    """A TabularMDP, played: absorbing states end the episode. Shows the state, or one-hot its vector."""

    def __init__(self, mdp, one_hot=False):
        self.mdp, self.one_hot, (states, actions) = mdp, one_hot, mdp.rewards.shape
        self.ends, self.action_space = mdp.absorbing.tolist(), Discrete(actions)
        self.observation_space = Box(0, 1, (states,), np.float32) if one_hot else Discrete(states)
        self.moves, self.first = mdp.transitions.cumsum(-1).numpy(), mdp.start.cumsum(-1).numpy()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self._drawn(self.first)
        return self._seen(), {}

    def step(self, action):
        reward = float(self.mdp.rewards[self.state, action])
        self.state = self._drawn(self.moves[self.state, action])
        return self._seen(), reward, self.ends[self.state], False, {}

    def _drawn(self, sums):
        return int(np.searchsorted(sums, self.np_random.random() * sums[-1], side="right"))

    def _seen(self):
        return np.eye(len(self.ends), dtype=np.float32)[self.state] if self.one_hot else self.state


def last_bit(observations):
    """An action that follows from what is seen."""
    return (observations.sum(-1) * 7).long() % 2


def closing(kind):
    """The environment as a class, and everything of it that was closed, in order."""
    closed = []

    class Closing(kind):
        def close(self):
            closed.append(self)

    return Closing, closed


def broken(policy):
    """An `evaluate` that fails."""
    raise KeyError("evaluate")
