"""Soft optimality: policies that maximise reward plus entropy, and the visits by which policies are compared.

A soft-optimal policy prefers an action by how much more it is worth: exp of its action value over the temperature. So
every action keeps a positive probability, and how often each is chosen says by how much it is worth less than the best,
which is what inverse reinforcement learning reads. No choice is left at an absorbing state: it is worth 0 and has no
entropy. Left out: rewards that are unknown (`recipes.irl`), and learning from samples.
"""

import torch
from torch import Tensor

from rlhf_lab.maths.mdp import TabularMDP, occupancy


def soft_value_iteration(
    mdp: TabularMDP,
    temperature: float = 1.0,
    rewards: Tensor | None = None,
    *,
    values: Tensor | None = None,
    tolerance: float = 1e-12,
    sweeps: int = 200,
) -> tuple[Tensor, Tensor]:
    """Soft values, and the policy that maximises the discounted sum of reward + temperature * entropy.

        Q(s, a) = r(s, a) + gamma sum over s' of P(s' | s, a) V(s')
        V(s) = temperature * log sum over a of exp(Q(s, a) / temperature),    pi(a | s) = exp((Q - V) / temperature)

    Args:
        mdp: the process.
        temperature: > 0, reward units per nat; towards 0 it is `value_iteration`.
        rewards: [S, A] in place of the process's own; what it says of absorbing states counts as 0.
        values: [S] from which the sweeps start; 0 if None. Of no use with a horizon.
        tolerance: the sweeps end once no value changes by more, in units of the largest value where that is above 1.
        sweeps: most of them. After each the values of its policy are solved for, so about six are enough.

    Returns:
        values [S] and policy [S, A], even at absorbing states; with a horizon H [H + 1, S] and [H, S, A], row h for
        H - h steps left.

    Raises:
        ValueError: `rewards` of another shape, a temperature that is not above 0, or no convergence: with gamma 1 going
            in circles may be worth ever more for its entropy.

    Example:
        >>> from rlhf_lab.maths.mdp import chain
        >>> soft_value_iteration(chain(1, gamma=0.0))[1][0].tolist()    # 1 / (1 + e), e / (1 + e)
        [0.2689, 0.7311]

    Source: Ziebart, Bagnell and Dey 2010, Modeling Interaction via the Principle of Maximum Causal Entropy. Chapter 09.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0 (at 0 use value_iteration)")
    rewards = rewards_of(mdp, rewards)
    if mdp.horizon is not None:
        rows, laws = [torch.zeros_like(mdp.start)], []
        for _ in range(mdp.horizon):
            now, law = _backup(mdp, rewards, temperature, rows[-1])
            rows.append(now)
            laws.append(law)
        return torch.stack(rows[::-1]), torch.stack(laws[::-1])
    values = torch.zeros_like(mdp.start) if values is None else values
    for _ in range(sweeps):
        better, policy = _backup(mdp, rewards, temperature, values)
        change, values = float((better - values).abs().max()), better
        if change <= tolerance * max(1.0, float(values.abs().max())):
            policy = _backup(mdp, rewards, temperature, values)[1]
            if mdp.gamma == 1:
                occupancy(mdp, policy)  # which refuses a policy that all but never ends
            return values, policy
        values = _soft_evaluation(mdp, rewards, temperature, policy)
    raise ValueError(
        f"no convergence in {sweeps} sweeps (last change {change:.3g}); "
        "lower gamma or the temperature, or set a horizon"
    )


def _backup(mdp: TabularMDP, rewards: Tensor, temperature: float, later: Tensor) -> tuple[Tensor, Tensor]:
    """Soft values [S] a step before `later` [S], and the policy [S, A] behind them."""
    q_values = (rewards + mdp.gamma * (mdp.transitions @ later)) / temperature
    return (~mdp.absorbing).double() * temperature * q_values.logsumexp(1), q_values.softmax(1)


def _soft_evaluation(mdp: TabularMDP, rewards: Tensor, temperature: float, policy: Tensor) -> Tensor:
    """[S], what a policy earns with its entropy. After a sweep this makes it a step of Newton's method."""
    on = (~mdp.absorbing).nonzero().squeeze(1)
    paid = (policy * (rewards - temperature * policy.clamp(min=1e-300).log())).sum(1)[on]
    moves = (policy[:, :, None] * mdp.transitions).sum(1)[on][:, on]
    system = torch.eye(len(on), dtype=torch.float64) - mdp.gamma * moves
    solved, failed = torch.linalg.solve_ex(system, paid)
    if failed or not solved.isfinite().all():
        raise ValueError("the soft-optimal policy never ends, so its values are open; lower gamma or the temperature")
    return torch.zeros_like(mdp.start).index_put((on,), solved)


def rewards_of(mdp: TabularMDP, rewards: Tensor | None = None) -> Tensor:
    """[S, A] float64: the process's rewards, or others in their place, 0 at absorbing states.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    if rewards is None:
        return mdp.rewards
    if tuple(rewards.shape) != tuple(mdp.rewards.shape) or not rewards.isfinite().all():
        got = f"shape {tuple(rewards.shape)}" + ("" if rewards.isfinite().all() else ", not all finite")
        raise ValueError(f"rewards has {got}; expected finite numbers of shape {tuple(mdp.rewards.shape)}")
    return rewards.double() * (~mdp.absorbing).double()[:, None]


def state_action_visits(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Expected discounted number of times that each action is taken in each state, 0 at absorbing ones.

        rho(s, a) = sum over t of gamma^t P(s_t = s, a_t = a),    J = sum over s, a of rho(s, a) r(s, a)

    Args:
        mdp: the process.
        policy: [S, A]; with a horizon H also [H, S, A], as `soft_value_iteration` gives it.

    Returns:
        [S, A], differentiable in `policy`. Two policies with the same visits earn the same by every reward.

    Raises:
        ValueError: as `policy_evaluation`, or a policy of another shape.

    Example:
        >>> from rlhf_lab.maths.mdp import chain
        >>> state_action_visits(chain(2, gamma=0.5), torch.tensor([[0.0, 1.0]] * 3)).tolist()
        [[0.0, 1.0], [0.0, 0.5], [0.0, 0.0]]

    Source: Puterman 1994, Markov Decision Processes, section 6.9. Chapter 09.
    """
    if mdp.horizon is None:
        return occupancy(mdp, policy)[:, None] * policy.double()
    shape = (mdp.horizon, *mdp.rewards.shape)
    if tuple(policy.shape) not in (shape, shape[1:]):
        raise ValueError(f"policy has shape {tuple(policy.shape)}; expected {shape[1:]} or {shape}")
    law, total = mdp.start, torch.zeros_like(mdp.rewards)
    for row in policy.double().expand(shape):
        taken = law[:, None] * row
        total = total + taken
        law = mdp.gamma * (taken[..., None] * mdp.transitions).sum((0, 1))
    return total * (~mdp.absorbing).double()[:, None]
