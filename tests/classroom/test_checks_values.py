"""Each check of chapter 03 passes the solution and fails on realistic mistakes; its stored results are not stale."""

import math
from dataclasses import replace

import dqn as bench
import numpy as np
import pytest
import start_behaviour as crossed
import torch
from rows import read_rows
from torch.nn.functional import one_hot

from rlhf_lab.classroom.checks.values import (
    check_coins,
    check_double_target,
    check_epsilon_greedy,
    check_q_update,
    check_soft_value,
    check_three_targets,
)
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.mdp import expected_return
from rlhf_lab.recipes.q_learning import QLearningConfig, train_q_learning
from rlhf_lab.worlds.envs import TabularEnv, token_world_mdp


def q_update(q, s, a, r, s_next, terminated, rate, gamma):
    new = q.clone()
    later = 0.0 if terminated else q[s_next].max()
    new[s, a] += rate * (r + gamma * later - q[s, a])
    return new


def epsilon_greedy(q_values, epsilon):
    best = (q_values == q_values.max()).double()
    return epsilon / len(q_values) + (1 - epsilon) * best / best.sum()


def double_target(rewards, discounts, online, target):
    chosen = online.argmax(dim=1, keepdim=True)
    return (rewards + discounts * target.gather(1, chosen).squeeze(1)).detach()


def soft_value(q_values, ref_law, beta):
    return beta * torch.logsumexp(ref_law.log() + q_values / beta, dim=1)


def largest_taken_out(q_values, ref_law, beta):
    top = q_values.amax(dim=1, keepdim=True)
    return top.squeeze(1) + beta * (ref_law * ((q_values - top) / beta).exp()).sum(dim=1).log()


def by_hand(rewards, discounts, online, target):
    """Row by row, with numbers that carry no gradient."""
    rows = zip(rewards.tolist(), discounts.tolist(), online.tolist(), target.tolist(), strict=True)
    return torch.tensor([r + d * t[o.index(max(o))] for r, d, o, t in rows], dtype=torch.float64)


def soft_in_python(q_values, ref_law, beta):
    """Row by row, in float32 at the end."""
    rows = []
    for values, law in zip(q_values.tolist(), ref_law.tolist(), strict=True):
        terms = [math.log(p) + q / beta for p, q in zip(law, values, strict=True) if p > 0]
        rows.append(beta * (max(terms) + math.log(sum(math.exp(x - max(terms)) for x in terms))))
    return torch.tensor(rows)


def coins(m):
    return 1 - 2.0 ** (1 - m), 0


SOLUTIONS = [
    (check_three_targets, lambda: (1.5, 1, 1.375)),
    (check_coins, coins),
    (check_q_update, q_update),
    (check_q_update, lambda q, *more: q_update(q.float(), *more)),
    (check_epsilon_greedy, lambda q, epsilon: epsilon_greedy(q.float(), epsilon).float()),
    (check_soft_value, soft_in_python),
    (check_soft_value, lambda q, p, b: soft_value(q.float(), p.float(), b)),
    (check_epsilon_greedy, epsilon_greedy),
    (check_double_target, double_target),
    (check_double_target, by_hand),
    (check_soft_value, soft_value),
    (check_soft_value, largest_taken_out),
]


@pytest.mark.parametrize(("check", "solution"), SOLUTIONS)
def test_solution_passes(check, solution, capsys):
    check(solution)
    assert "passed" in capsys.readouterr().out


def in_place(q, s, a, r, s_next, terminated, rate, gamma):
    q[s, a] = q_update(q, s, a, r, s_next, terminated, rate, gamma)[s, a]
    return q


def moved(q, s, a, by):
    return q + by * (one_hot(torch.tensor(s), len(q))[:, None] * one_hot(torch.tensor(a), q.shape[1]))


def whole_row(q, s, a, r, s_next, terminated, rate, gamma):
    new = q.clone()
    new[s] += rate * (r + gamma * (not terminated) * q[s_next].max() - q[s])
    return new


def sarsa_like(q, s, a, r, n, over, rate, gamma):
    return moved(q, s, a, rate * (r + gamma * (not over) * q[n, a] - q[s, a]))


def mean_like(q, s, a, r, n, over, rate, gamma):
    return moved(q, s, a, rate * (r + gamma * (not over) * q[n].mean() - q[s, a]))


def left_state(q, s, a, r, n, over, rate, gamma):
    return moved(q, s, a, rate * (r + gamma * (not over) * q[s].max() - q[s, a]))


def all_discounted(q, s, a, r, n, over, rate, gamma):
    return moved(q, s, a, rate * (gamma * (r + (not over) * q[n].max()) - q[s, a]))


def not_taken_off(q, s, a, r, n, over, rate, gamma):
    return moved(q, s, a, rate * (r + gamma * (not over) * q[n].max()))


def error_alone(q, s, a, r, n, over, rate, gamma):
    return q_update(q, s, a, r, n, over, rate, gamma) - moved(0 * q, s, a, q[s, a])


def greedy_law(q, e):
    return one_hot(q.argmax(), len(q)).double()


def leaves_out_the_best(q, e):
    best = (q == q.max()).double()
    return (1 - e) * best / best.sum() + e * (1 - best) / (len(q) - best.sum()).clamp(min=1)


def best_or_random(q, e):
    best = q == q.max()
    return torch.where(best, (1 - e) / best.sum(), e / len(q)).double()


def with_gradient(r, d, o, t):
    return r + d * t.gather(1, o.argmax(1, keepdim=True)).squeeze(1)


def law_in_place(q, e):
    law = epsilon_greedy(q, e)
    return q.copy_(law)


def target_in_place(r, d, o, t):
    r += d * t.detach().gather(1, o.argmax(1, keepdim=True)).squeeze(1)
    return r


def largest_of_all_rows(q, p, b):
    return q.max() + b * (p * ((q - q.max()) / b).exp()).sum(1).log()


MISTAKES = {
    "targets, no rate": (check_three_targets, lambda: (3.0, 2.0, 2.75), "rate is forgotten"),
    "targets, no gamma": (
        check_three_targets,
        lambda: (1.5, 1.5, 2.25),
        "SARSA[^$]*gamma is forgotten|is the target of",
    ),
    "targets, no reward": (check_three_targets, lambda: (1.5, 0.5, 0.875), "reward is missing"),
    "targets, the best left out": (check_three_targets, lambda: (1.5, 1.0, 1.25), "may hit the best one too"),
    "targets, exchanged": (check_three_targets, lambda: (1.5, 1.375, 1.0), "this is the target of expected SARSA"),
    "targets, other": (check_three_targets, lambda: (1.5, 1.0, 9.0), "only the last part differs"),
    "targets, two": (check_three_targets, lambda: (1.5, 1.0), "3 numbers"),
    "coins, none": (check_coins, lambda m: None, "2 numbers"),
    "coins, power": (check_coins, lambda m: (1 - 2.0**-m, 0.0), "1 replies, the largest"),
    "coins, always 1": (check_coins, lambda m: (1.0, 0.0), "largest"),
    "coins, double": (check_coins, lambda m: (coins(m)[0], coins(m)[0]), "the double estimator"),
    "update, list": (check_q_update, lambda *x: q_update(*x).tolist(), "not a tensor"),
    "law, list": (check_epsilon_greedy, lambda q, e: epsilon_greedy(q, e).tolist(), "not a tensor"),
    "law, in place": (check_epsilon_greedy, law_in_place, "in place"),
    "target, list": (check_double_target, lambda *x: double_target(*x).tolist(), "not a tensor"),
    "target, in place": (check_double_target, target_in_place, "in place"),
    "soft, in place": (check_soft_value, lambda q, p, b: soft_value(q.div_(b), p, 1.0) * b, "in place"),
    "soft, largest of all rows": (check_soft_value, largest_of_all_rows, "of each row"),
    "soft, a tiny number added": (
        check_soft_value,
        lambda q, p, b: soft_value(q, p + 1e-10, b),
        "is a small number added",
    ),
    "soft, a tiny floor": (check_soft_value, lambda q, p, b: soft_value(q, p.clamp(min=1e-12), b), "is a small number"),
    "update, end ignored": (check_q_update, lambda *x: q_update(*x[:5], False, *x[6:]), "after the end"),
    "update, end inverted": (check_q_update, lambda *x: q_update(*x[:5], not x[5], *x[6:]), "wrong way round"),
    "update, no gamma": (check_q_update, lambda *x: q_update(*x[:7], 1.0), "gamma is forgotten"),
    "update, myopic": (check_q_update, lambda *x: q_update(*x[:7], 0.0), "the reward alone"),
    "update, same action": (check_q_update, sarsa_like, "the same action"),
    "update, mean": (check_q_update, mean_like, "the mean over the next actions"),
    "update, state left": (check_q_update, left_state, "state that was left"),
    "update, all discounted": (check_q_update, all_discounted, "is discounted too"),
    "update, no reward": (check_q_update, lambda q, s, a, r, *x: q_update(q, s, a, 0.0, *x), "reward is missing"),
    "update, no rate": (check_q_update, lambda *x: q_update(*x[:6], 1.0, x[7]), "rate is forgotten"),
    "update, sign": (check_q_update, lambda *x: q_update(*x[:6], -x[6], x[7]), "the sign"),
    "update, added": (check_q_update, not_taken_off, "not taken off"),
    "update, not kept": (check_q_update, error_alone, "not kept"),
    "update, whole row": (check_q_update, whole_row, "whole row"),
    "update, exchanged": (check_q_update, lambda *x: q_update(*x[:6], x[7], x[6]), "exchanged"),
    "update, in place": (check_q_update, in_place, "in place"),
    "update, row returned": (check_q_update, lambda *x: q_update(*x)[x[1]], "the shape"),
    "update, nothing done": (check_q_update, lambda q, *x: q, "moves by rate times"),
    "update, None": (check_q_update, lambda *x: None, "is there a `return`"),
    "law, worst": (check_epsilon_greedy, lambda q, e: epsilon_greedy(-q, e), "the worst action"),
    "law, first tie": (check_epsilon_greedy, lambda q, e: (1 - e) * greedy_law(q, e) + e / len(q), "ties"),
    "law, best left out": (check_epsilon_greedy, leaves_out_the_best, "leaves out the best"),
    "law, best or random": (check_epsilon_greedy, best_or_random, "cannot hit it"),
    "law, exchanged": (check_epsilon_greedy, lambda q, e: epsilon_greedy(q, 1 - e), "exchanged"),
    "law, ties not shared": (
        check_epsilon_greedy,
        lambda q, e: (1 - e) * (q == q.max()).double() + e / len(q),
        "sum is above 1",
    ),
    "law, no exploration": (check_epsilon_greedy, lambda q, e: epsilon_greedy(q, 0.0), "no exploration"),
    "law, epsilon each": (check_epsilon_greedy, lambda q, e: epsilon_greedy(q, e) - e / len(q) + e, "not shared"),
    "law, softmax": (check_epsilon_greedy, lambda q, e: q.softmax(0), "a softmax"),
    "law, an action": (check_epsilon_greedy, lambda q, e: q.argmax(), "the shape"),
    "law, uniform": (check_epsilon_greedy, lambda q, e: torch.full_like(q, 1 / len(q)), "shared by the best"),
    "target, single": (check_double_target, lambda r, d, o, t: double_target(r, d, t, t), "single targets"),
    "target, online alone": (check_double_target, lambda r, d, o, t: double_target(r, d, o, o), "is not used"),
    "target, roles": (check_double_target, lambda r, d, o, t: double_target(r, d, t, o), "roles are exchanged"),
    "target, no discount": (
        check_double_target,
        lambda r, d, o, t: double_target(r, d**0, o, t),
        "discount is forgotten",
    ),
    "target, all discounted": (
        check_double_target,
        lambda r, d, o, t: double_target(d * r, d, o, t),
        "is discounted too",
    ),
    "target, no reward": (check_double_target, lambda r, d, o, t: double_target(0 * r, d, o, t), "reward is missing"),
    "target, reward alone": (check_double_target, lambda r, d, o, t: r, "reward alone"),
    "target, sign": (check_double_target, lambda r, d, o, t: double_target(r, -d, o, t), "the sign"),
    "target, mean": (
        check_double_target,
        lambda r, d, o, t: (r + d * (o.amax(1) + t.amax(1)) / 2).detach(),
        "the mean of the two",
    ),
    "target, smaller": (
        check_double_target,
        lambda r, d, o, t: (r + d * torch.minimum(o.amax(1), t.amax(1))).detach(),
        "the smaller of the two",
    ),
    "target, one action for all": (
        check_double_target,
        lambda r, d, o, t: (r + d * t[:, o.sum(0).argmax()]).detach(),
        "wrong axis",
    ),
    "target, index": (check_double_target, lambda r, d, o, t: r + d * o.argmax(1), "action's number"),
    "target, over rows": (
        check_double_target,
        lambda r, d, o, t: t.gather(0, o.argmax(0, keepdim=True)).squeeze(0).detach(),
        "say what it is worth",
    ),
    "target, live": (check_double_target, with_gradient, "carries a gradient"),
    "target, zeros": (check_double_target, lambda r, d, o, t: 0 * r, "online values choose"),
    "soft, maximum": (check_soft_value, lambda q, p, b: q.amax(1), "the maximum"),
    "soft, mean": (check_soft_value, lambda q, p, b: (p * q).sum(1), "the mean under the reference"),
    "soft, no reference": (check_soft_value, lambda q, p, b: b * (q / b).logsumexp(1), "reference is forgotten"),
    "soft, no factor": (check_soft_value, lambda q, p, b: soft_value(q, p, b) / b, "factor beta in front"),
    "soft, multiplied": (check_soft_value, lambda q, p, b: b * (p.log() + q * b).logsumexp(1), "multiplied by beta"),
    "soft, beta outside only": (check_soft_value, lambda q, p, b: b * soft_value(q, p, 1.0), "beta inside is missing"),
    "soft, upside down": (check_soft_value, lambda q, p, b: soft_value(q, p, 1 / b), "upside down"),
    "soft, without KL": (
        check_soft_value,
        lambda q, p, b: ((p.log() + q / b).softmax(1) * q).sum(1),
        "without its KL",
    ),
    "soft, sign": (check_soft_value, lambda q, p, b: b * (p.log() - q / b).logsumexp(1), "the sign"),
    "soft, reference added": (check_soft_value, lambda q, p, b: b * (p + q / b).logsumexp(1), "not its logarithm"),
    "soft, no logarithm": (check_soft_value, lambda q, p, b: (p * (q / b).exp()).sum(1), "without the logarithm"),
    "soft, over states": (check_soft_value, lambda q, p, b: b * (p.log() + q / b).logsumexp(0), "the shape"),
    "soft, overflow": (check_soft_value, lambda q, p, b: b * (p * (q / b).exp()).sum(1).log(), "overflow"),
    "soft, a clipped log": (
        check_soft_value,
        lambda q, p, b: b * ((p + 1e-4).log() + q / b).logsumexp(1),
        "a number a state",
    ),
    "soft, 0 times infinity": (
        check_soft_value,
        lambda q, p, b: b * (p * p.log() / p + q / b).logsumexp(1),
        "reference probability 0",
    ),
    "soft, raises": (check_soft_value, lambda q, p, b: q[99], "IndexError"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name):
    check, mistake, cause = MISTAKES[name]
    with pytest.raises(AssertionError, match=cause):
        check(mistake)


def test_unfinished_exercise_says_so():
    def unfinished(q_values, epsilon):
        raise NotImplementedError("your turn")

    with pytest.raises(NotImplementedError, match="your turn"):
        check_epsilon_greedy(unfinished)


# -- the stored results of the chapter --------------------------------------------------------------------------------
def test_final_networks_are_kept_apart_from_the_way():
    final = [row["seed"] for row in read_rows(bench.RESULTS) if row["episodes"] == str(bench.AT_THE_END)]
    assert sorted(final) == [str(seed) for seed in range(bench.SEEDS)]


def test_a_short_run_is_measured_on_the_way_and_at_the_end():
    config = replace(bench.DQNConfig(), total_steps=256, learning_starts=128, evaluate_every=1, hidden=(8,))
    rows = bench.run_rows(100, config)
    assert [(row["step"], row["episodes"]) for row in rows] == [(0, 20), (128, 20), (256, 20), (256, 100)]
    for row in rows:
        assert 1 <= row["greedy_return"] <= 500
        assert 0 < row["true_value"] < 100


# -- start, behaviour and update, crossed -----------------------------------------------------------------------------
ZEROS = ("zeros", "epsilon-greedy", "Q-learning")
SETTING = {"rate": (0.5, 0.3), "beta": 0.1, "epsilon": (0.9, 0.2)}


@pytest.mark.parametrize("seed", [0, 3])
def test_the_arm_without_any_change_is_the_librarys_q_learning(seed):
    mdp = token_world_mdp(TokenWorld(3, 2, lambda prompt, tokens: 1.0 + tokens[0] - 2 * tokens[1]))
    table, _ = crossed.learn_table(mdp, ZEROS, SETTING, seed, replies=60)
    config = QLearningConfig(
        steps=120, gamma=1.0, learning_rate=0.5, learning_rate_power=0.3, epsilon=0.9, final_epsilon=0.2, seed=seed
    )
    np.testing.assert_array_equal(table, train_q_learning(lambda: TabularEnv(mdp), config).model)
    assert np.abs(table).max() > 1


def test_what_may_follow_is_a_maximum_or_a_soft_one():
    row, beta = np.array([0.0, 1.0, -2.0]), 0.5
    total = np.exp(row / beta).sum()
    assert crossed.later(row, "Q-learning", beta) == 1.0
    assert crossed.later(row, "soft Q", beta) == pytest.approx(beta * np.log(total / 3))
    assert crossed.later(row, "leashed soft Q", beta) == pytest.approx(beta * np.log(total))
    assert crossed.later(1000 * row, "soft Q", beta) == pytest.approx(1000 - beta * np.log(3))


@pytest.mark.parametrize("behaviour", ["sampled softly", "the reference's data"])
def test_the_leashed_arm_tends_to_the_optimum_of_reward_minus_kl(monkeypatch, behaviour):
    """Whatever writes the replies; 4,000 of them bring every token's probability within 0.02."""
    reference, beta = np.array([0.6, 0.3, 0.1]), 0.5
    monkeypatch.setattr(crossed, "REFERENCE", reference)
    world = TokenWorld(3, 2, lambda prompt, tokens: float(tokens == (1, 1)))
    setting = {"rate": (1.0, 0.9), "beta": beta, "epsilon": (0.0, 0.0)}
    arm = ("zeros", behaviour, "leashed soft Q")
    table, _ = crossed.learn_table(token_world_mdp(world), arm, setting, 0, replies=4000)
    policy = torch.tensor(table[:-1] / beta).softmax(1)
    logits = torch.tensor(reference).log().expand(1, world.num_prefixes, 3)
    optimum = world.optimum(world.law(logits), beta)
    torch.testing.assert_close(world.law(policy.log()[None]), optimum, atol=0.02, rtol=0)


def test_sampling_follows_its_law():
    """Shares within 5 standard errors: a false alarm in some 10,000 runs of all tokens."""
    row, random, n = crossed.REFERENCE * 0, np.random.default_rng(0), 20_000
    row[5] = 1.0
    for behaviour, law in (("the reference's data", crossed.REFERENCE), ("sampled softly", np.exp(row / 0.5))):
        law = law / law.sum()
        drawn = [crossed.act(row, behaviour, 0.5, 0.0, random) for _ in range(n)]
        shares = np.bincount(drawn, minlength=len(law)) / n
        assert (np.abs(shares - law) <= 5 * np.sqrt(law * (1 - law) / n)).all()


def test_the_greedy_reward_is_the_exact_one():
    for seed in range(3):
        table = np.random.default_rng(seed).normal(size=tuple(crossed.MDP.rewards.shape)).round()
        table[[0, 2], 1] = table[[0, 2]].max(1) + seed % 2  # beside others at the top of its row, or alone
        table[[0, 2], 7] = table[[0, 2]].max(1) - seed % 2
        best = torch.tensor(table == table.max(1, keepdims=True)).double()
        exact = expected_return(crossed.MDP, best / best.sum(1, keepdim=True))
        assert crossed.greedy_reward(table) == pytest.approx(float(exact))


def test_every_arm_was_offered_as_many_settings():
    assert len(crossed.SETTINGS) == len(crossed.CLIMBS) == 48
    assert crossed.CHOSEN.keys() == set(crossed.ARMS)
    assert not set(crossed.TUNING) & set(crossed.SEEDS)


def test_with_a_plain_target_the_behaviour_decides():
    found = {}
    for row in read_rows(crossed.RESULTS):
        arm = row["start"], row["behaviour"], row["update"]
        found[arm] = found.get(arm, 0) + (float(row["greedy_reward"]) > 0.5)
    for start, behaviour, update in found:
        shares = found[start, behaviour, update] / len(crossed.SEEDS)
        if behaviour == "the reference's data" or (start, behaviour) == ("reference", "sampled softly"):
            assert shares == 1
        elif update in ("Q-learning", "soft Q") or (behaviour == "epsilon-greedy" and start != "zeros"):
            assert shares < 0.5
