"""A puck on ice, pushed towards a target around a hole: a control task in which every episode has the same length.

Preferences over pieces of behaviour need such a task. Where an episode ends when something fell over, pieces of unequal
length are compared, and a reward that is learned from them also says how good it is to go on at all. Importing this
module registers it as rlhf_lab/Puck-v0. Left out: rendering.
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

TARGET, HOLE, WIDTH = np.array([0.6, 0.6]), np.array([0.1, 0.1]), 0.25
PUSHES = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])  # none, north, east, south, west
FORCE, FRICTION, HORIZON = 0.03, 0.85, 50


def puck_reward(places: np.ndarray) -> np.ndarray:
    """What a step that leads to a place pays: minus the distance to the target, minus a bump over the hole.

        -|p - target| - exp(-|p - hole|^2 / (2 width^2))

    Args:
        places: [..., 2].

    Example:
        >>> puck_reward(np.stack([TARGET, HOLE])).round(3).tolist()
        [-0.018, -1.707]
    """
    far = np.linalg.norm(places - TARGET, axis=-1)
    return -far - np.exp(-np.square(places - HOLE).sum(-1) / (2 * WIDTH**2))


class PuckEnv(gymnasium.Env):
    """A puck in the square [-1, 1]^2: 50 steps, then the episode is cut; no state ends it.

        v <- friction (v + force * push),    p <- p + v, stopped at the walls

    Observations are (x, y, vx, vy), the velocities in units of the largest possible one; actions are no push, north,
    east, south, west. It starts anywhere, at rest.

    Example:
        >>> env = PuckEnv()
        >>> env.reset(seed=0)[0].shape, env.step(2)[2:4]
        ((4,), (False, False))

    Chapter 09.
    """

    observation_space = Box(-1.0, 1.0, (4,), np.float32)
    action_space = Discrete(len(PUSHES))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._place, self._speed, self._steps = self.np_random.uniform(-1, 1, 2), np.zeros(2), 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._speed = FRICTION * (self._speed + FORCE * PUSHES[action])
        there = self._place + self._speed
        self._place = np.clip(there, -1, 1)
        self._speed = np.where(there == self._place, self._speed, 0.0)
        self._steps += 1
        return self._seen(), float(puck_reward(self._place)), False, self._steps == HORIZON, {}

    def _seen(self) -> np.ndarray:
        fastest = FORCE * FRICTION / (1 - FRICTION)
        return np.concatenate([self._place, self._speed / fastest]).astype(np.float32)


gymnasium.register("rlhf_lab/Puck-v0", entry_point="rlhf_lab.worlds.puck:PuckEnv")
