"""The checks of chapter 02 pass the solution and name the mistake that was made."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from rlhf_lab.classroom.checks import policy_gradient as checks
from rlhf_lab.maths.objectives import reinforce_objective
from rlhf_lab.maths.returns import discounted_returns
from rlhf_lab.maths.tensors import masked_sum


def unfinished(*args):
    raise NotImplementedError("your code here")


@pytest.mark.parametrize(
    "check",
    [
        checks.check_two_replies,
        checks.check_score_function,
        checks.check_reward_to_go,
        checks.check_reinforce_loss,
        checks.check_optimal_baseline,
        checks.check_importance_weights,
    ],
)
def test_an_empty_exercise_says_so(check):
    with pytest.raises(NotImplementedError, match="your code here"):
        check(unfinished)


# -- by hand -------------------------------------------------------------------------------------------------
RIGHT = (-0.32, 2.163, 0.461, 2.6, 0.0)


@pytest.mark.parametrize("right", [RIGHT, [-0.32, 2.1632, 0.4608, 2.6, 0]])
def test_two_replies_pass(right, capsys):
    checks.check_two_replies(lambda: right)
    assert "passed" in capsys.readouterr().out


def but(at, number):
    return lambda: (*RIGHT[:at], number, *RIGHT[at + 1 :])


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (but(0, 0.32), "the sign"),
        (but(1, 2.368), "is not taken off"),
        (but(1, 1.0816), "one logit of two"),
        (but(2, 0.6656), "is not taken off"),
        (but(2, 0.5), "the variance with the mean rating[^$]*see the hints"),
        (but(3, 1.4), "this is the mean rating"),
        (but(4, 0.2048), "with the best constant[^$]*is not taken off"),
        (lambda: RIGHT[:4], "5 numbers"),
        (lambda: None, "5 numbers"),
        (lambda: (*RIGHT[:4], "zero"), "5 numbers"),
    ],
)
def test_two_replies_names_the_mistake_and_not_the_answer(mistake, cause):
    with pytest.raises(AssertionError, match=cause) as error:
        checks.check_two_replies(mistake)
    assert not any(shown in str(error.value) for shown in ("-0.32", "2.163", "0.461", "2.6,")) or cause == "5 numbers"


# -- the score function --------------------------------------------------------------------------------------


def score_function(logits, actions):
    return one_hot(actions, logits.shape[1]) - logits.softmax(-1)


def by_autograd(logits, actions):
    logits = logits.clone().requires_grad_(True)
    torch.distributions.Categorical(logits=logits).log_prob(actions).sum().backward()
    return logits.grad


def in_lists(logits, actions):
    """Row by row, in float32."""
    rows = []
    for row, action in zip(logits.tolist(), actions.tolist(), strict=True):
        total = sum(math.exp(x) for x in row)
        rows.append([(a == action) - math.exp(x) / total for a, x in enumerate(row)])
    return torch.tensor(rows)


@pytest.mark.parametrize("solution", [score_function, by_autograd, in_lists])
def test_score_function_passes(solution, capsys):
    checks.check_score_function(solution)
    assert "passed" in capsys.readouterr().out


def of_the_probability(logits, actions):
    law = logits.softmax(-1)
    return law.gather(1, actions[:, None]) * score_function(logits, actions)


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda x, a: -score_function(x, a), "the sign"),
        (lambda x, a: -x.softmax(-1), "the 1 at the chosen action is missing"),
        (lambda x, a: one_hot(a, x.shape[1]) * (1 - x.softmax(-1)), "the other actions are missing"),
        (of_the_probability, "gradient of pi itself"),
        (lambda x, a: one_hot(a, x.shape[1]) - x.softmax(0), "the wrong axis"),
        (lambda x, a: one_hot(a, x.shape[1]) - x, "the logits are subtracted"),
        (lambda x, a: one_hot(a, x.shape[1]) - x.log_softmax(-1), "log-probabilities are subtracted"),
        (lambda x, a: one_hot((a + 1) % x.shape[1], x.shape[1]) - x.softmax(-1), "one at the chosen action"),
        (lambda x, a: x.log_softmax(-1).gather(1, a[:, None]).squeeze(1), "one at the chosen action"),
        (lambda x, a: None, "is there a `return`"),
        (lambda x, a: x @ a, "what is asked: one at the chosen action"),
        (lambda x, a: score_function(x.sub_(x.logsumexp(1, keepdim=True)), a), "in place"),
        (lambda x, a: score_function(x, a).T, "what is asked: the shape"),
    ],
)
def test_score_function_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_score_function(mistake)


def test_score_function_is_asked_for_its_mean():
    def wrong_where_not_asked(logits, actions):
        return score_function(logits, actions) + (actions == 0)[:, None] * (len(logits) == 1)

    with pytest.raises(AssertionError, match="its mean over the policy's own actions"):
        checks.check_score_function(wrong_where_not_asked)


# -- reward to go --------------------------------------------------------------------------------------------


def reward_to_go(rewards, gamma, mask):
    running, returns = torch.zeros(len(rewards)).to(rewards), torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        running = torch.where(mask[:, t], rewards[:, t], 0.0) + gamma * running
        returns[:, t] = running
    return returns


def by_the_library(rewards, gamma, mask):
    return discounted_returns(rewards, torch.full_like(rewards, gamma), mask)


@pytest.mark.parametrize("solution", [reward_to_go, by_the_library])
def test_reward_to_go_passes(solution):
    checks.check_reward_to_go(solution)


def so_far(rewards, gamma, mask):
    returns = torch.where(mask, rewards, 0.0)
    for t in range(1, rewards.shape[1]):
        returns[:, t] = returns[:, t] + gamma * returns[:, t - 1]
    return returns * mask


def from_the_start(rewards, gamma, mask):
    weighted = torch.where(mask, rewards, 0.0) * gamma ** torch.arange(rewards.shape[1])
    return weighted.flip(1).cumsum(1).flip(1)


def padding_overwritten(rewards, gamma, mask):
    rewards[~mask] = 0
    return reward_to_go(rewards, gamma, mask)


def without_mask(rewards, gamma, mask):
    return reward_to_go(rewards, gamma, torch.ones_like(mask))


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda r, g, m: reward_to_go(r, 1.0, m), "gamma is forgotten"),
        (so_far, "the past instead of the future"),
        (lambda r, g, m: m * reward_to_go(r, g, m)[:, :1], "the return of the whole episode"),
        (lambda r, g, m: m * (reward_to_go(r, g, m) - r), "own reward is missing"),
        (lambda r, g, m: torch.nn.functional.pad(reward_to_go(r, g, m)[:, 1:], (0, 1)), "the return of the next step"),
        (from_the_start, "discounted to the start"),
        (lambda r, g, m: m * without_mask(r, g, m), "the mask is missing: junk"),
        (without_mask, "the mask is missing: junk at padding is counted, and there"),
        (lambda r, g, m: reward_to_go(r.T, g, m.T).T * m, "the wrong axis"),
        (lambda r, g, m: reward_to_go(r, g, m)[:, 0], "one sum a row"),
        (lambda r, g, m: None, "is there a `return`"),
        (lambda r, g, m: r @ r, "what is asked: from the last step"),
        (padding_overwritten, "argument 1 after the call"),
    ],
)
def test_reward_to_go_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_reward_to_go(mistake)


# -- the loss ------------------------------------------------------------------------------------------------


def reinforce_loss(log_probs, returns, mask):
    return -torch.where(mask, log_probs * returns.detach(), 0.0).sum(1).mean()


def with_the_library(log_probs, returns, mask):
    return -masked_sum(reinforce_objective(log_probs, returns.detach()), mask) / len(mask)


@pytest.mark.parametrize("solution", [reinforce_loss, with_the_library])
def test_reinforce_loss_passes(solution):
    checks.check_reinforce_loss(solution)


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda p, g, m: -reinforce_loss(p, g, m), "the sign"),
        (lambda p, g, m: -(p * g.detach())[m].mean(), "a mean over the steps"),
        (lambda p, g, m: -((p * g * m).sum(1) / m.sum(1)).mean(), "divided by its own length"),
        (lambda p, g, m: -(p * g.detach())[m].sum(), "the mean over episodes is missing"),
        (lambda p, g, m: -(p * g.detach()).sum(1).mean(), "the mask is missing"),
        (lambda p, g, m: -(p * g.detach()).mean(), "the mask is missing, and the mean"),
        (lambda p, g, m: -torch.where(m, p * g, 0.0).sum(0).mean(), "the wrong axis"),
        (lambda p, g, m: -(p.exp() * g * m).sum(1).mean(), "the probabilities are weighted"),
        (lambda p, g, m: -(p * g[:, :1] * m).sum(1).mean(), "the first return"),
        (lambda p, g, m: -torch.where(m, p * g, 0.0).sum(1).mean(), "a missing detach"),
        (lambda p, g, m: reinforce_loss(p.detach(), g, m), "must stay attached"),
        (lambda p, g, m: -torch.where(m, p * g, 0.0).sum(1), "expected one number"),
        (lambda p, g, m: None, "the loss is NoneType"),
        (lambda p, g, m: reinforce_loss(p, g.mul_(m), m), "in place"),
        (lambda p, g, m: -(p * g * m).sum(1).mean() + p.exp()[m].sum(), "what is asked: minus the sum"),
    ],
)
def test_reinforce_loss_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_reinforce_loss(mistake)


# -- the best constant ---------------------------------------------------------------------------------------


def optimal_baseline(scores, returns):
    lengths = scores.square().sum(dim=1)
    return (lengths * returns).sum() / lengths.sum()


def by_least_squares(scores, returns):
    """The regression of g R on g: the baseline is the slope that leaves the least behind."""
    target = (scores * returns[:, None]).flatten()[:, None]
    return torch.linalg.lstsq(scores.flatten()[:, None], target).solution.squeeze()


def in_plain_python(scores, returns):
    weights = [sum(x * x for x in row) for row in scores.tolist()]
    return sum(w * r for w, r in zip(weights, returns.tolist(), strict=True)) / sum(weights)


@pytest.mark.parametrize("solution", [optimal_baseline, by_least_squares, in_plain_python])
def test_optimal_baseline_passes(solution):
    checks.check_optimal_baseline(solution)


def length(scores):
    return scores.square().sum(1)


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda g, r: r.mean(), "this is the mean return"),
        (lambda g, r: (g.norm(dim=1) * r).sum() / g.norm(dim=1).sum(), "the lengths are not squared"),
        (lambda g, r: -optimal_baseline(g, r), "the sign"),
        (lambda g, r: (length(g) * r).mean(), r"division by E\[|g|\^2\] is missing:|is missing"),
        (lambda g, r: (length(g) * r).sum(), "it is a sum and no mean"),
        (lambda g, r: 1 / optimal_baseline(g, r), "upside down"),
        (lambda g, r: (g.square() * r[:, None]).sum(0) / g.square().sum(0), "one baseline for each parameter"),
        (lambda g, r: (g.sum(1).square() * r).sum() / g.sum(1).square().sum(), "summed before they are squared"),
        (lambda g, r: (g.square().sum(0).mean() * r).sum() / g.square().sum(), "the wrong axis"),
        (lambda g, r: r.square().sum() / r.sum(), "the returns are squared"),
        (lambda g, r: [optimal_baseline(g, r)], "not a number"),
        (lambda g, r: optimal_baseline(g, r)[None], r"the shape, \[1\]"),
        (lambda g, r: optimal_baseline(g.mul_(2), r), "in place"),
        (lambda g, r: (g.square() * r).sum(), "what is asked: a mean of the returns"),
    ],
)
def test_optimal_baseline_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_optimal_baseline(mistake)


def test_optimal_baseline_must_move_with_the_returns():
    with pytest.raises(AssertionError, match="move with the returns"):
        checks.check_optimal_baseline(lambda g, r: optimal_baseline(g, r - 10 * (r.mean() > 8)))


# -- importance weights --------------------------------------------------------------------------------------


def importance_weights(log_probs, old_log_probs, mask):
    return torch.where(mask, log_probs - old_log_probs, 0.0).sum(1).exp().detach()


def as_a_product(log_probs, old_log_probs, mask):
    ratio = torch.where(mask, log_probs.exp() / old_log_probs.exp(), 1.0)
    return ratio.prod(dim=1).detach()


@pytest.mark.parametrize("solution", [importance_weights, as_a_product])
def test_importance_weights_passes(solution):
    checks.check_importance_weights(solution)


def of_probabilities(new, old, mask):
    """Right on paper; after some hundreds of steps both products are 0."""
    return (torch.where(mask, new.exp(), 1).prod(1) / torch.where(mask, old.exp(), 1).prod(1)).detach()


def log_ratio(new, old, mask):
    return torch.where(mask, new - old, 0.0).detach()


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        (lambda new, old, m: importance_weights(old, new, m), "upside down"),
        (lambda new, old, m: log_ratio(new, old, m).sum(1), "the exponential is missing"),
        (lambda new, old, m: log_ratio(new, old, m).exp(), "one ratio a step"),
        (lambda new, old, m: (log_ratio(new, old, m).exp() * m).sum(1), "the ratios of the steps are added"),
        (lambda new, old, m: (log_ratio(new, old, m).sum(1) / m.sum(1)).exp(), "a mean over steps"),
        (lambda new, old, m: (log_ratio(new, old, m).exp() * m).sum(1) / m.sum(1), "the mean of the steps' rat"),
        (lambda new, old, m: (new - old).sum(1).exp().detach(), "the mask is missing"),
        (lambda new, old, m: log_ratio(new, old, m).sum(0).exp(), "the wrong axis"),
        (lambda new, old, m: log_ratio(new, old, m).sum(1).softmax(0), "divided by their sum"),
        (lambda new, old, m: len(m) * log_ratio(new, old, m).sum(1).softmax(0), "divided by their mean"),
        (lambda new, old, m: torch.where(m, new, 0.0).sum(1).exp().detach(), "the old policy is missing"),
        (lambda new, old, m: torch.where(m, new - old, 0.0).sum(1).exp(), "a missing detach"),
        (lambda new, old, m: log_ratio(new, old, m).sum(1).exp() * float("inf"), "a number overflowed"),
        (lambda new, old, m: importance_weights(new, old, m).clamp(max=2), "what is asked: sum log_probs"),
        (lambda new, old, m: importance_weights(new, old, m).clamp(max=100), "2000 steps"),
        (of_probabilities, "2000 steps:[^$]*overflowed or became 0"),
        (lambda new, old, m: importance_weights(new, old.mul_(m), m), "in place"),
        (lambda new, old, m: None, "is there a `return`"),
    ],
)
def test_importance_weights_names_the_mistake(mistake, cause):
    with pytest.raises(AssertionError, match=cause):
        checks.check_importance_weights(mistake)


def test_importance_weights_are_asked_for_their_mean():
    def capped_in_large_batches(new, old, mask):
        return importance_weights(new, old, mask).clamp(max=10.0 if len(mask) > 4 else float("inf"))

    with pytest.raises(AssertionError, match="their mean over the old policy is 1"):
        checks.check_importance_weights(capped_in_large_batches)
