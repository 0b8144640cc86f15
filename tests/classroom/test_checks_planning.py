"""The check of the build exercise passes policy iteration in several shapes and names what is wrong with others."""

import pytest
import torch
from torch.nn.functional import one_hot

from rlhf_lab.classroom.checks.planning import check_policy_iteration


def q_values(transitions, rewards, gamma, values):
    return rewards + gamma * transitions @ values


def evaluate(transitions, rewards, gamma, policy):
    moves = (policy[:, :, None] * transitions).sum(1)
    return torch.linalg.solve(torch.eye(len(moves)).double() - gamma * moves, (policy * rewards).sum(1))


def swept(transitions, rewards, gamma, policy):
    values = torch.zeros(len(rewards)).double()
    for _ in range(400):
        values = (policy * q_values(transitions, rewards, gamma, values)).sum(1)
    return values


def solve(transitions, rewards, gamma, rounds=99, evaluate=evaluate, choose=torch.argmax):
    policy = torch.full_like(rewards, 1 / rewards.shape[1])
    for _ in range(rounds):
        values = evaluate(transitions, rewards, gamma, policy)
        before, policy = (
            policy,
            one_hot(choose(q_values(transitions, rewards, gamma, values), dim=1), len(rewards.T)).double(),
        )
        if (policy == before).all():
            break
    return evaluate(transitions, rewards, gamma, policy), policy


def in_float32(transitions, rewards, gamma):
    return [part.float().numpy() for part in solve(transitions, rewards, gamma)]


SOLUTIONS = {
    "linear system": solve,
    "sweeps": lambda *inputs: solve(*inputs, evaluate=swept),
    "float32, arrays, a list": in_float32,
    "whole numbers": lambda *inputs: (solve(*inputs)[0], solve(*inputs)[1].int()),
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_passes(name, capsys):
    check_policy_iteration(SOLUTIONS[name])
    assert "passed" in capsys.readouterr().out


def no_evaluation(transitions, rewards, gamma):
    uniform = torch.full_like(rewards, 1 / rewards.shape[1])
    q = q_values(transitions, rewards, gamma, evaluate(transitions, rewards, gamma, uniform))
    return q.amax(1), one_hot(q.argmax(1), rewards.shape[1]).double()


def in_place(transitions, rewards, gamma):
    rewards += 0.01
    return solve(transitions, rewards - 0.01, gamma)


MISTAKES = {
    "one round": (lambda *inputs: solve(*inputs, rounds=1), "one round only"),
    "no step": (lambda *inputs: solve(*inputs, rounds=0), "no greedy step"),
    "no evaluation": (no_evaluation, "no evaluation after it"),
    "worst": (lambda *inputs: solve(*inputs, choose=torch.argmin), "the worst policy"),
    "no look ahead": (lambda t, r, g: solve(t, r, g, evaluate=lambda t, r, g, p: (p * r).sum(1)), "largest rewards"),
    "no gamma in the step": (lambda t, r, g: (solve(t, r, 0.99)[0], solve(t, r, g)[1]), "evaluate the policy"),
    "too few sweeps": (
        lambda *inputs: solve(*inputs, evaluate=lambda t, r, g, p: (p * q_values(t, r, g, r.amax(1))).sum(1)),
        "until no value grows",
    ),
    "policy of the start": (lambda t, r, g: (solve(t, r, g)[0], torch.full_like(r, 1 / r.shape[1])), "is not theirs"),
    "no law": (lambda t, r, g: (solve(t, r, g)[0], q_values(t, r, g, solve(t, r, g)[0])), "each row is a law"),
    "actions": (lambda t, r, g: (solve(t, r, g)[0], solve(t, r, g)[1].argmax(1)), "each row is a law"),
    "values alone": (lambda *inputs: solve(*inputs)[0], "the values and the policy"),
    "nothing": (lambda *inputs: None, "the values and the policy"),
    "action values": (lambda t, r, g: (q_values(t, r, g, solve(t, r, g)[0]), solve(t, r, g)[1]), "the shape"),
    "in place": (in_place, "in place"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name):
    mistake, cause = MISTAKES[name]
    with pytest.raises(AssertionError, match=cause):
        check_policy_iteration(mistake)


def test_an_empty_exercise_gets_one_line():
    def solve(transitions, rewards, gamma):
        raise NotImplementedError("your code here")

    with pytest.raises(NotImplementedError, match="not attempted yet"):
        check_policy_iteration(solve)
