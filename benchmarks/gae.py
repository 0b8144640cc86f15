"""The study behind chapter 04: bias and variance of the policy-gradient estimate as lambda moves, seed by seed.

    python run.py bench gae                   every seed that data/results/gae_lambda.csv does not hold yet
    python run.py bench gae --seeds 0 1       those seeds

A seed draws a process, a policy and an error of the value function. Nothing is sampled after that: all 32,768 episodes
are listed, so bias and variance are exact. One core, some three seconds a seed.
"""

import torch
from rows import RESULTS as FOLDER, Arm, compute, flatten, options
from torch import Tensor

from rlhf_lab.maths.mdp import TabularMDP, policy_evaluation, policy_gradient
from rlhf_lab.maths.returns import gae
from rlhf_lab.training.randomness import generator_for

RESULTS = FOLDER / "gae_lambda.csv"
FLOORS, ROOMS, SEEDS = 8, 3, 30
SIGMAS = (0.0, 0.5, 1.0)  # standard deviation of the value error in each state, in units of a reward's
LAMBDAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


# -- a process in which every episode can be listed -------------------------------------------------------------------
def tower(floors: int, rooms: int, seed: int) -> tuple[TabularMDP, Tensor, Tensor]:
    """A walk up a tower, the logits [S, A] of a policy, and a standard normal [S] for the error of its values.

    Each of two doors of a room leads to two rooms of the next floor and pays a standard normal, fixed by the draw; the
    last floor leads to the end. States are numbered by floor; the end is the last one and has no error.
    """
    generator, count = generator_for(seed, "tower"), floors * rooms
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    moves = torch.zeros(count + 1, 2, count + 1, dtype=torch.float64)
    moves[-rooms - 1 :, :, -1] = 1
    for state in range(count - rooms):
        above = rooms * (state // rooms + 1)
        for door in range(2):
            ahead = above + torch.randperm(rooms, generator=generator)[:2]
            moves[state, door, ahead] = normal(2).softmax(0)
    rewards, start = normal(count + 1, 2), torch.zeros(count + 1)
    rewards[-1], start[0] = 0, 1
    logits, error = normal(count + 1, 2), normal(count + 1)
    error[-1] = 0
    return TabularMDP(moves, rewards, start, gamma=1.0), logits, error


def all_episodes(mdp: TabularMDP, policy: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every episode of `steps` steps: states [N, steps + 1], actions [N, steps], probabilities [N]."""
    law = policy[:, :, None] * mdp.transitions  # [S, A, S], of an action and what follows it
    states, actions, weights = mdp.start.nonzero(), torch.zeros(1, 0, dtype=torch.long), mdp.start[mdp.start > 0]
    for _ in range(steps):
        ahead = weights[:, None, None] * law[states[:, -1]]  # [N, A, S]
        row, action, after = ahead.nonzero(as_tuple=True)
        states, actions = (torch.cat([x[row], y[:, None]], 1) for x, y in ((states, after), (actions, action)))
        weights = ahead[row, action, after]
    return states, actions, weights


# -- what is measured -------------------------------------------------------------------------------------------------
def measure(mdp: TabularMDP, logits: Tensor, values: Tensor, steps: int, lam: float) -> dict[str, float]:
    """Exact squared bias and variance of one episode's gradient estimate, and of its advantages centred per state."""
    policy, truth = logits.softmax(-1), policy_gradient(mdp, logits)
    states, actions, weights = all_episodes(mdp, policy, steps)
    going_on = torch.ones(len(weights), steps, dtype=torch.float64)
    going_on[:, -1] = 0
    rewards, mask = mdp.rewards[states[:, :-1], actions], torch.ones(len(weights), steps, dtype=torch.bool)
    estimates = gae(rewards, values[states], going_on, mask, lam)  # [N, T]
    scores = torch.nn.functional.one_hot(actions, 2) - policy[states[:, :-1]]  # [N, T, A]
    where = states[:, :-1, None].expand_as(scores)
    gradients = scores.new_zeros(len(weights), *logits.shape).scatter_add(1, where, scores * estimates[..., None])
    mean = torch.einsum("n,nsa->sa", weights, gradients)
    second = torch.einsum("n,nsa->", weights, gradients.square())
    parts = {
        "truth": truth.square().sum(),
        "bias": (mean - truth).square().sum(),
        "variance": second - mean.square().sum(),
    }
    parts |= advantage_errors(mdp, policy, states, actions, weights, estimates)
    return {name: float(value) for name, value in parts.items()}


def advantage_errors(mdp, policy, states, actions, weights, estimates) -> dict[str, Tensor]:
    """The same for the advantages, over the visits of all steps: what is the same for all actions of a state goes."""
    cells = states[:, :-1] * 2 + actions  # [N, T]
    flat = lambda x: torch.zeros(policy.numel()).double().index_add(0, cells.flatten(), x.flatten())  # noqa: E731
    weights = weights[:, None].expand_as(estimates)
    visits = flat(weights)
    means = torch.where(visits > 0, flat(weights * estimates) / visits, 0).view_as(policy)
    values = policy_evaluation(mdp, policy)
    centred = means - (policy * means).sum(1, keepdim=True)
    bias = (centred - (mdp.q_values(values) - values[:, None])).square()
    spread = flat(weights * estimates.square()).view_as(policy) - visits.view_as(policy) * means.square()
    steps = visits.sum()
    return {
        "advantage_bias": (visits.view_as(policy) * bias).sum() / steps,
        "advantage_variance": spread.sum() / steps,
    }


def seed_rows(seed: int, floors: int = FLOORS) -> list[dict[str, float]]:
    """A row for each error and each lambda."""
    mdp, logits, error = tower(floors, ROOMS, seed)
    exact = policy_evaluation(mdp, logits.softmax(-1))
    return [
        {"sigma": sigma, "lam": lam} | measure(mdp, logits, exact + sigma * error, floors, lam)
        for sigma in SIGMAS
        for lam in LAMBDAS
    ]


SETTINGS = {"floors": FLOORS, "rooms": ROOMS, "sigmas": SIGMAS, "lambdas": LAMBDAS}
ARM = Arm({}, SETTINGS, range(SEEDS), seed_rows, lambda: dict(flatten(seed_rows(0, floors=3), "sigma", "lam")))

if __name__ == "__main__":
    chosen = options(__doc__)
    torch.set_num_threads(1)
    compute(RESULTS, [ARM], chosen.seeds, chosen.dry_run)
