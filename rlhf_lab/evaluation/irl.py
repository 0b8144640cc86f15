"""Is a learned reward the right one? By its canonical form, by what its policy visits, and by where it leads elsewhere.

Many rewards explain the same behaviour: a potential can be added and the scale is open. So rewards are compared in a
form from which both are gone. And behaviour cloning visits what the demonstrators visit without any reward, so what a
learned reward adds shows only where the dynamics differ from those of the demonstrations.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_lab.maths.mdp import TabularMDP, expected_return, policy_evaluation, value_iteration
from rlhf_lab.maths.soft import rewards_of, state_action_visits

NOTHING = 1e-9  # a canonical reward below this share of the reward itself is rounding


def uniform_policy(mdp: TabularMDP) -> Tensor:
    """[S, A]: every action equally likely."""
    return torch.full_like(mdp.rewards, 1 / mdp.rewards.shape[1])


def canonical_reward(mdp: TabularMDP, rewards: Tensor) -> Tensor:
    """The advantages of the uniform policy, in which a potential is gone: its differences cancel.

        C(s, a) = r(s, a) + gamma sum over s' of P(s' | s, a) V(s') - V(s),    V the values of the uniform policy

    Args:
        mdp: the process, without a horizon; its own rewards do not count.
        rewards: [S, A].

    Returns:
        [S, A], each row with mean 0. Adding gamma E[phi(s')] - phi(s), phi 0 at absorbing states, changes nothing.

    Raises:
        ValueError: the process has a horizon (a potential then leaves its last value behind), or as
            `policy_evaluation`.

    Example:
        >>> from rlhf_lab.maths.mdp import chain
        >>> mdp = chain(1, gamma=0.5)
        >>> [round(x, 4) for x in canonical_reward(mdp, mdp.rewards)[0].tolist()]    # V = 2/3
        [-0.3333, 0.3333]

    Source: Skalse et al. 2024, STARC: A General Framework For Quantifying Differences Between Reward Functions, for
    value-adjusted levelling; potentials: Ng, Harada and Russell 1999. Chapter 09.
    """
    if mdp.horizon is not None:
        raise ValueError(f"horizon is {mdp.horizon}; expected None: with a horizon a potential changes the return")
    paid = replace(mdp, rewards=rewards_of(mdp, rewards))
    values = policy_evaluation(paid, uniform_policy(mdp))
    return (paid.q_values(values) - values[:, None]) * (~mdp.absorbing).double()[:, None]


def reward_distance(mdp: TabularMDP, first: Tensor, second: Tensor) -> float:
    """How far two rewards are apart in the dynamics of `mdp`, whatever their potentials and their scales.

        1/2 || C1 / ||C1|| - C2 / ||C2|| ||,    C the canonical rewards; sqrt((1 - cosine) / 2)

    0 exactly where both order all policies of this process alike, 1 where they order them the other way round, about
    0.71 for unrelated ones. A reward that is nothing but a potential counts as 0, at 0.5 from every other.

    Args:
        mdp: the process, without a horizon. Other dynamics have other distances.
        first, second: [S, A] rewards.

    Raises:
        ValueError: as `canonical_reward`.

    Example:
        >>> from rlhf_lab.maths.mdp import chain
        >>> mdp = chain(3, gamma=0.9)
        >>> reward_distance(mdp, mdp.rewards, 5 * mdp.rewards), reward_distance(mdp, mdp.rewards, -mdp.rewards)
        (0.0, 1.0)

    Source: Skalse et al. 2024. EPIC (Gleave et al. 2021) needs no dynamics and a reward of every (s, a, s');
    with expected rewards [S, A] that is not there. Chapter 09.
    """
    sides = []
    for rewards in (first, second):
        canonical = canonical_reward(mdp, rewards)
        size = canonical.norm()
        sides.append(canonical / size if size > NOTHING * rewards.double().norm() else torch.zeros_like(canonical))
    return float((sides[0] - sides[1]).norm() / 2)


def occupancy_distance(first: Tensor, second: Tensor) -> float:
    """Total variation of two tables of visits, each made a law: 0 the same, 1 nothing in common.

        1/2 sum over s, a of |rho1 / sum rho1 - rho2 / sum rho2|

    Args:
        first, second: [S, A] of `state_action_visits`, or of demonstrations.

    Raises:
        ValueError: other shapes, a negative number, or a table without visits.

    Example:
        >>> occupancy_distance(torch.tensor([[1.0, 1.0]]), torch.tensor([[4.0, 0.0]]))
        0.5

    Chapter 09.
    """
    if first.shape != second.shape:
        raise ValueError(f"second has shape {tuple(second.shape)}; expected that of first, {tuple(first.shape)}")
    for name, visits in (("first", first), ("second", second)):
        if not (visits >= 0).all() or not visits.sum() > 0:
            raise ValueError(f"{name} sums to {float(visits.sum()):.4g}; expected visits, none negative, some above 0")
    return float((first.double() / first.double().sum() - second.double() / second.double().sum()).abs().sum() / 2)


def clone_behaviour(visits: Tensor) -> Tensor:
    """Behaviour cloning on a table: the policy [S, A] that acts as the demonstrators did, evenly where they never were.

        pi(a | s) = rho(s, a) / sum over b of rho(s, b)

    In the dynamics of the demonstrations it visits what they visited.

    Args:
        visits: [S, A] of the demonstrators.

    Example:
        >>> clone_behaviour(torch.tensor([[3.0, 1.0], [0.0, 0.0]])).tolist()
        [[0.75, 0.25], [0.5, 0.5]]

    Source: Pomerleau 1991, Efficient training of artificial neural networks for autonomous navigation. Chapter 09.
    """
    visits = visits.double()
    total = visits.sum(1, keepdim=True)
    return torch.where(total > 0, visits / total.clamp(min=torch.finfo(torch.float64).tiny), 1 / visits.shape[1])


@dataclass(frozen=True)
class IRLReport:
    """What a learned reward is worth; returns are the true ones, under the changed dynamics.

    Attributes:
        reward_distance: to the true reward, in the dynamics of the demonstrations.
        reward_distance_changed: the same in the changed dynamics.
        occupancy_distance: of the learned soft-optimal policy to the demonstrators.
        cloned_occupancy_distance: of behaviour cloning to the demonstrators.
        learned_return: of the best policy for the learned reward, planned with the changed dynamics.
        cloned_return: of behaviour cloning, which cannot plan.
        best_return: of the best policy for the true reward.
        uniform_return: of equally likely actions.
    """

    reward_distance: float
    reward_distance_changed: float
    occupancy_distance: float
    cloned_occupancy_distance: float
    learned_return: float
    cloned_return: float
    best_return: float
    uniform_return: float


def judge_irl(mdp: TabularMDP, changed: TabularMDP, visits: Tensor, rewards: Tensor, policy: Tensor) -> IRLReport:
    """Judge a reward that was learned in one process by what it is worth there and in a changed one.

    Args:
        mdp: where the demonstrations are from, with the true reward, without a horizon.
        changed: the same states and actions, other dynamics; its reward is the truth there.
        visits: [S, A] of the demonstrators in `mdp`.
        rewards: [S, A], learned.
        policy: [S, A], soft-optimal for them in `mdp`.

    Raises:
        ValueError: as `canonical_reward`, or `changed` has other states or actions.

    Chapter 09.
    """
    if changed.rewards.shape != mdp.rewards.shape:
        got, expected = tuple(changed.rewards.shape), tuple(mdp.rewards.shape)
        raise ValueError(f"changed has {got} states and actions; expected those of mdp, {expected}")
    _, planned = value_iteration(replace(changed, rewards=rewards_of(changed, rewards)))
    _, best = value_iteration(changed)
    cloned = clone_behaviour(visits)
    earned = lambda chosen: float(expected_return(changed, chosen))  # noqa: E731
    return IRLReport(
        reward_distance=reward_distance(mdp, mdp.rewards, rewards),
        reward_distance_changed=reward_distance(changed, changed.rewards, rewards),
        occupancy_distance=occupancy_distance(visits, state_action_visits(mdp, policy)),
        cloned_occupancy_distance=occupancy_distance(visits, state_action_visits(mdp, cloned)),
        learned_return=earned(planned),
        cloned_return=earned(cloned),
        best_return=earned(best),
        uniform_return=earned(uniform_policy(changed)),
    )
