"""Rewards of a dialogue of several turns: at every turn, late, or at the end alone; and shaping without harm.

One number a turn, in the order of the turns; a turn is one reply. Left out: rewards between turns, such as of the time
that passes.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_lab.feedback.targets import rating_to_unit
from rlhf_lab.maths.mdp import TabularMDP
from rlhf_lab.maths.returns import discounted_returns
from rlhf_lab.records import Message, Rating


def ratings_to_turn_scores(ratings: Sequence[Rating]) -> Tensor:
    """Ratings of the replies of one dialogue as scores [T] in [0, 1], in the order of the turns.

    Args:
        ratings: one for each of T turns, in any order: the prompt of each holds the dialogue up to that turn.

    Raises:
        ValueError: no ratings, or one whose prompt does not continue the turn before it.

    Example:
        >>> first = Rating("Hi", "Hello.", 5)
        >>> turns = (*first.prompt, Message("assistant", "Hello."), Message("user", "Where is the zoo?"))
        >>> ratings_to_turn_scores([Rating(turns, "In town.", 3), first]).tolist()
        [1.0, 0.5]

    Chapter 08.
    """
    if not ratings:
        raise ValueError("ratings is empty; expected one for each turn of the dialogue")
    ordered = sorted(ratings, key=lambda rating: len(rating.prompt))
    for before, after in itertools.pairwise(ordered):
        said = (*before.prompt, Message("assistant", before.reply))
        if after.prompt[: len(said)] != said or len(after.prompt) != len(said) + 1:
            raise ValueError(
                f"the prompt of the reply {after.reply!r:.40} does not continue the turn {before.reply!r:.40}; "
                "expected one rating for each turn of one dialogue. Take the replies that the dialogue went on with"
            )
    return torch.tensor([rating_to_unit(rating) for rating in ordered], dtype=torch.float64)


def _scores(name: str, scores: Sequence[float] | Tensor) -> Tensor:
    found = torch.as_tensor(scores, dtype=torch.float64).detach()
    if found.dim() != 1 or not len(found) or not found.isfinite().all():
        raise ValueError(f"{name} is {scores!r:.60}; expected one finite number a turn, at least one")
    return found


def delayed_rewards(scores: Sequence[float] | Tensor, gamma: float = 1.0) -> Tensor:
    """Rewards [T] that pay everything at the last turn, and as much as the scores at every turn would.

        r_{T-1} = sum over t of gamma^(t - (T - 1)) score_t,    all others 0

    So the return of the first turn is that of the scores themselves: with gamma 1 the reward is their sum. Those of
    later turns differ, because they get paid for earlier ones.

    Args:
        scores: [T].
        gamma: the discount of the learner, in (0, 1].

    Raises:
        ValueError: no scores, one that is not finite, or an impossible discount.

    Example:
        >>> delayed_rewards([1.0, 0.0, 0.5]).tolist()
        [0.0, 0.0, 1.5]

    Chapter 08.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma is {gamma}; expected a discount in (0, 1]")
    given = _scores("scores", scores)
    rewards = torch.zeros_like(given)
    early = torch.arange(len(given) - 1, -1, -1, dtype=torch.float64)  # turns before the last
    rewards[-1] = (given * gamma**-early).sum()
    return rewards


def sparse_rewards(verdict: float, turns: int) -> Tensor:
    """Rewards [T] of a dialogue that was judged once, as a whole, at its end.

    Args:
        verdict: of the whole dialogue.
        turns: T, at least 1.

    Raises:
        ValueError: no turns, or a verdict that is not finite.

    Example:
        >>> sparse_rewards(1.0, turns=3).tolist()
        [0.0, 0.0, 1.0]

    Chapter 08.
    """
    if turns < 1:
        raise ValueError(f"turns is {turns}; expected at least 1")
    return _scores("verdict", [0.0] * (turns - 1) + [verdict])


def turn_returns(rewards: Sequence[float] | Tensor, gamma: float = 1.0) -> Tensor:
    """Returns [T] of one dialogue that ends after its last turn: G_t = r_t + gamma G_{t+1}.

    Example:
        >>> turn_returns([1.0, 0.0, 0.5], gamma=0.5).tolist()
        [1.125, 0.25, 0.5]

    Source: Sutton and Barto 2018, section 3.3. Chapter 08.
    """
    given = _scores("rewards", rewards)[None]
    discounts = torch.full_like(given, gamma)
    discounts[:, -1] = 0
    return discounted_returns(given, discounts, torch.ones_like(given, dtype=torch.bool))[0]


# ---- shaping -------------------------------------------------------------------------------------------------


def shaping_rewards(potentials: Sequence[float] | Tensor, gamma: float = 1.0) -> Tensor:
    """What potential-based shaping adds to the rewards of one dialogue.

        F_t = gamma Phi(s_{t+1}) - Phi(s_t)

    Discounted, they sum to gamma^T Phi(s_T) - Phi(s_0): the same for whatever is said in between. So that nothing can
    be earned by where the dialogue ends, the potential of an end is 0.

    Args:
        potentials: [T + 1], of the state before each turn and of the one after the last.
        gamma: discount.

    Returns:
        [T].

    Raises:
        ValueError: fewer than two potentials, or the last is not 0.

    Example:
        >>> shaping_rewards([0.0, 0.5, 1.0, 0.0]).tolist()
        [0.5, 0.5, -1.0]

    Source: Ng, Harada and Russell 1999, Policy Invariance Under Reward Transformations. Chapter 08.
    """
    given = _scores("potentials", potentials)
    if len(given) < 2 or given[-1] != 0:
        raise ValueError(f"potentials ends with {given[-1].item()}; expected T + 1 numbers, the last 0, of the end")
    return gamma * given[1:] - given[:-1]


def shaped(mdp: TabularMDP, potential: Sequence[float] | Tensor) -> TabularMDP:
    """The process with the expected shaping reward added to its rewards.

        r'(s, a) = r(s, a) + gamma sum over s' of P(s' | s, a) Phi(s') - Phi(s)

    Every policy's values become V(s) - Phi(s) and its action values Q(s, a) - Phi(s): what is best in a state stays
    best. That is exact for any potential that is 0 at the ends.

    Args:
        mdp: without a horizon: where episodes are cut, the potential at the cut would be earned.
        potential: [S], 0 at absorbing states.

    Raises:
        ValueError: another shape, a potential at an end, or a horizon.

    Example:
        >>> from rlhf_lab.maths.mdp import chain
        >>> (shaped(chain(2), [0.0, 1.0, 0.0]).rewards - chain(2).rewards).tolist()    # states 0, 1, end; left, right
        [[0.0, 1.0], [-1.0, -1.0], [0.0, 0.0]]

    Source: Ng, Harada and Russell 1999, theorem 1. Chapter 08.
    """
    given = _scores("potential", potential)
    if len(given) != len(mdp.start):
        raise ValueError(f"potential holds {len(given)} numbers; expected {len(mdp.start)}, one a state")
    if mdp.horizon is not None:
        raise ValueError(f"the process is cut after {mdp.horizon} steps; expected one that runs until it ends")
    if given[mdp.absorbing].any():
        state = int((mdp.absorbing & (given != 0)).nonzero()[0])
        raise ValueError(f"potential of the absorbing state {state} is {given[state].item()}; expected 0 at every end")
    return replace(mdp, rewards=mdp.rewards + mdp.gamma * (mdp.transitions @ given) - given[:, None])
