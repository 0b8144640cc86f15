"""Processes that can be solved: values, visits and gradients against second definitions and known values."""

import gymnasium
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlhf_lab.maths.mdp import (
    TabularMDP,
    chain,
    dialogue,
    expected_return,
    from_table,
    gridworld,
    occupancy,
    policy_evaluation,
    policy_gradient,
    policy_iteration,
    value_iteration,
)

few = settings(max_examples=40, deadline=None)
HORIZONS = st.sampled_from([None, 1, 4])


def random_mdp(seed, gamma=0.9, horizon=None, ends=False):
    """3 states and 2 actions (and an end, into which every step may lead)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    moves, rewards, start = draw(4, 2, 4), 2 * draw(4, 2) - 1, draw(4)
    if ends:
        moves[3], rewards[3] = torch.eye(4)[3], 0.0
    return TabularMDP(moves / moves.sum(2, keepdim=True), rewards, start / start.sum(), gamma, horizon)


def random_logits(seed):
    return torch.randn(4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rolled_out(mdp, policy, steps):
    """J by the definition: the law of the state carried forward, step by step."""
    law, total = mdp.start, 0.0
    for t in range(steps):
        for s in range(4):
            for a in range(2):
                total += float(mdp.gamma**t * law[s] * policy[s, a] * mdp.rewards[s, a])
        law = torch.einsum("s,sa,sat->t", law, policy, mdp.transitions)
    return total


# -- a given policy ---------------------------------------------------------------------------------------------------
@few
@given(st.integers(0, 10**6), HORIZONS)
def test_expected_return_is_the_sum_over_time(seed, horizon):
    mdp, policy = random_mdp(seed, gamma=0.7, horizon=horizon), random_logits(seed).softmax(-1)
    assert float(expected_return(mdp, policy)) == pytest.approx(rolled_out(mdp, policy, horizon or 90), abs=1e-10)


@few
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 0.99, 1.0]), HORIZONS)
def test_visits_and_values_tell_the_same_return(seed, gamma, horizon):
    mdp, policy = random_mdp(seed, gamma, horizon, ends=True), random_logits(seed).softmax(-1)
    visits = occupancy(mdp, policy)
    visits = visits if horizon is None else visits.sum(0)
    assert float(visits @ (policy * mdp.rewards).sum(1)) == pytest.approx(float(expected_return(mdp, policy)), abs=1e-9)


@few
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.9, 1.0]), HORIZONS)
def test_the_theorem_gives_the_gradient_of_the_return(seed, gamma, horizon):
    mdp, logits = random_mdp(seed, gamma, horizon, ends=True), random_logits(seed).requires_grad_()
    (by_autograd,) = torch.autograd.grad(expected_return(mdp, logits.softmax(-1)), logits)
    torch.testing.assert_close(policy_gradient(mdp, logits), by_autograd, rtol=0, atol=1e-10)


def test_the_value_of_a_random_walk_is_known():
    """Gambler's ruin with a reflecting wall: from every state the end is reached, for a reward of 1."""
    uniform = torch.full((6, 2), 0.5)
    torch.testing.assert_close(policy_evaluation(chain(5), uniform), torch.tensor([1.0] * 5 + [0.0]).double())
    steps = policy_evaluation(chain(5, step_reward=-1.0), uniform)
    assert float(steps[0]) == pytest.approx(1 - 30)  # n (n + 1) steps from a reflecting wall


def test_partial_derivatives_by_the_policy_are_visits_times_q_values():
    """Rows are rescaled to sum to 1 in every digit, and that is no part of the derivative."""
    mdp, policy = random_mdp(0), random_logits(0).softmax(-1).requires_grad_()
    (by_autograd,) = torch.autograd.grad(expected_return(mdp, policy), policy)
    fixed = policy.detach()
    q_values = mdp.q_values(policy_evaluation(mdp, fixed))
    torch.testing.assert_close(by_autograd, occupancy(mdp, fixed)[:, None] * q_values)


def test_with_a_horizon_visits_count_the_end_too():
    assert occupancy(TabularMDP(*walk(1), 1.0, horizon=3), torch.tensor([[0.0, 1.0]] * 2)).tolist() == [
        [1, 0], [0, 1], [0, 1],
    ]  # fmt: skip


def walk(length):
    mdp = chain(length)
    return mdp.transitions, mdp.rewards, mdp.start


@pytest.mark.parametrize(("length", "gap"), [(3, 12.0), (5, 8.0), (5, 10.0), (1, 40.0)])
def test_a_value_that_the_numbers_cannot_hold_is_refused(length, gap):
    """From every state the end pays 1, and is reached after more steps than float64 can count."""
    policy = torch.tensor([gap, 0.0]).double().softmax(0).expand(length + 1, 2)
    with pytest.raises(ValueError, match="ends too rarely"):
        policy_evaluation(chain(length), policy)


# -- the best policy --------------------------------------------------------------------------------------------------
@few
@given(st.integers(0, 10**6))
def test_value_and_policy_iteration_agree_with_the_best_of_all_policies(seed):
    mdp = random_mdp(seed, gamma=0.8)
    every = [torch.eye(2)[[int(c) for c in f"{i:04b}"]].double() for i in range(16)]
    best = torch.stack([policy_evaluation(mdp, policy) for policy in every]).amax(0)
    for values, policy in (value_iteration(mdp), policy_iteration(mdp)):
        torch.testing.assert_close(values, best, rtol=0, atol=1e-9)
        torch.testing.assert_close(policy_evaluation(mdp, policy), best, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solve", [value_iteration, policy_iteration])
@pytest.mark.parametrize("mdp", [chain(4), gridworld(["S..", ".#.", "..G"], gamma=1.0, slip=0.2)])
def test_of_equal_actions_one_that_ends_is_chosen(solve, mdp):
    """Without a cost of steps every way is as good as another, as long as it arrives."""
    values, policy = solve(mdp)
    torch.testing.assert_close(policy_evaluation(mdp, policy), values, rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("gamma", [0.9, 0.999999])
def test_policy_iteration_ends_whatever_the_size_of_the_rewards(size, gamma):
    generator = torch.Generator().manual_seed(0)
    moves = torch.rand(20, 3, 20, generator=generator, dtype=torch.float64)
    rewards, start = size * torch.rand(20, 3, generator=generator, dtype=torch.float64), torch.eye(20)[0]
    mdp = TabularMDP(moves / moves.sum(2, keepdim=True), rewards, start, gamma)
    values, policy = policy_iteration(mdp)
    torch.testing.assert_close(mdp.q_values(values).amax(1), values, rtol=1e-8, atol=0)
    torch.testing.assert_close(policy_evaluation(mdp, policy), values, rtol=1e-8, atol=0)


def test_large_rewards_on_the_way_to_an_end():
    mdp = gridworld(["S..", ".#.", "..G"], gamma=1.0, slip=0.2, goal_reward=1e6)
    assert float(mdp.start @ policy_iteration(mdp)[0]) == pytest.approx(1e6)


def test_of_equal_actions_the_first_is_chosen_where_the_future_is_discounted():
    """Action 1 ends and action 0 stays, both for nothing."""
    mdp = TabularMDP(walk(1)[0], torch.zeros(2, 2), [1.0, 0.0], 0.5)
    for solve in (value_iteration, policy_iteration):
        assert solve(mdp)[1][0].tolist() == [1, 0]


def test_a_policy_that_cannot_end_is_greedy():
    """State 0 may stay for nothing or pay to leave; staying is best, and nothing ends."""
    moves = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    mdp = TabularMDP(moves, torch.tensor([[0.0, -1.0], [0.0, 0.0]]), torch.tensor([1.0, 0.0]), 1.0)
    assert value_iteration(mdp)[1][0].tolist() == [1, 0]


def test_with_a_horizon_the_best_action_may_depend_on_the_time_left():
    """Action 0 pays 1 at once; action 1 pays 10 one step later."""
    moves, rewards = torch.zeros(3, 2, 3), torch.zeros(3, 2)
    moves[0, 0, 0] = moves[0, 1, 1] = moves[1, :, 2] = moves[2, :, 2] = 1
    rewards[0, 0], rewards[1] = 1, 10
    values, policy = value_iteration(TabularMDP(moves, rewards, torch.eye(3)[0], 1.0, horizon=4))
    assert values[:, 0].tolist() == [12, 11, 10, 1, 0]
    assert policy[:, 0].tolist() == [[1, 0], [1, 0], [0, 1], [1, 0]]


def test_sweeps_end_where_nothing_changes_any_more():
    values, _ = value_iteration(chain(3, gamma=0.5), tolerance=0.0)
    assert values.tolist() == [0.25, 0.5, 1, 0]


@pytest.mark.parametrize(
    ("name", "options", "gamma", "horizon", "value"),
    [
        ("FrozenLake-v1", {"map_name": "4x4"}, 0.99, None, 0.5420259),
        ("FrozenLake-v1", {"map_name": "4x4"}, 1.0, None, 14 / 17),
        ("FrozenLake-v1", {"map_name": "4x4"}, 1.0, 100, 0.7441903),
        ("FrozenLake-v1", {"map_name": "8x8"}, 0.99, None, 0.4146404),
        ("FrozenLake-v1", {"map_name": "4x4", "is_slippery": False}, 0.99, None, 0.9509900),
        ("CliffWalking-v1", {}, 1.0, None, -13.0),
    ],
)
def test_known_values_of_gymnasiums_tables(name, options, gamma, horizon, value):
    env = gymnasium.make(name, **options).unwrapped
    mdp = from_table(env.P, env.initial_state_distrib, gamma, horizon=horizon)
    values, _ = value_iteration(mdp)
    assert float(mdp.start @ (values if horizon is None else values[0])) == pytest.approx(value, abs=1e-6)


def test_the_start_law_of_a_table_is_kept():
    env = gymnasium.make("Taxi-v4").unwrapped
    mdp = from_table(env.P, env.initial_state_distrib, 0.99)
    assert len(mdp.start) == 501  # 300 of its 500 states may be the first one
    assert mdp.start.unique().tolist() == pytest.approx([0, 1 / 300])
    ends = {0: [(1.0, 0, 0.0, True)]}
    assert from_table({0: ends, 1: ends}, [0.1, 0.9], 0.5).start.tolist() == [0.1, 0.9, 0.0]  # every digit


def test_known_value_of_the_uniform_policy():
    env = gymnasium.make("FrozenLake-v1").unwrapped
    mdp = from_table(env.P, env.initial_state_distrib, 0.99)
    assert float(expected_return(mdp, torch.full((17, 4), 0.25))) == pytest.approx(0.0123561, abs=1e-6)


# -- processes --------------------------------------------------------------------------------------------------------
def test_a_grid_is_walked_around_its_walls_and_pits():
    mdp = gridworld(["S.#", "#.O", "..G"], gamma=1.0, step_reward=-1.0, goal_reward=0.0, pit_reward=-100.0)
    values, policy = value_iteration(mdp)
    assert float(mdp.start @ values) == -4.0
    moves = {name: mdp.actions[int(row.argmax())] for name, row in zip(mdp.states, policy, strict=True)}
    assert (moves["0,0"], moves["0,1"], moves["1,1"], moves["2,1"]) == ("east", "south", "south", "east")


COMPASS = {"north": -1, "east": 1j, "south": 1, "west": -1j}  # rows grow to the south, columns to the east
MAP = ["..O.", "G#S.", "..G."]


def test_every_step_on_a_grid_against_a_walk_in_the_complex_plane():
    """Cells are numbers y + ix, and a turn to a side multiplies the step by i or -i."""
    mdp = gridworld(MAP, slip=0.2, step_reward=-0.3, goal_reward=2.0, pit_reward=-5.0)
    letters = {y + 1j * x: letter for y, row in enumerate(MAP) for x, letter in enumerate(row)}
    floor = [cell for cell, letter in letters.items() if letter in ("S", ".")]
    assert mdp.states == (*(f"{cell.real:.0f},{cell.imag:.0f}" for cell in floor), "end")
    assert mdp.actions == tuple(COMPASS)
    assert mdp.start.tolist() == [letters[cell] == "S" for cell in floor] + [0]
    for s, cell in enumerate(floor):
        for a, step in enumerate(COMPASS.values()):
            moves, reward = [0.0] * len(mdp.states), 0.0
            for turn, probability in ((1, 0.8), (1j, 0.1), (-1j, 0.1)):
                letter = letters.get(cell + step * turn, "#")
                after = {"#": s, "G": -1, "O": -1}.get(letter)
                moves[floor.index(cell + step * turn) if after is None else after] += probability
                reward += probability * (-0.3 + {"G": 2.0, "O": -5.0}.get(letter, 0.0))
            assert mdp.transitions[s, a].tolist() == pytest.approx(moves, abs=1e-15)
            assert mdp.rewards[s, a].item() == pytest.approx(reward, abs=1e-15)


def test_a_chain_starts_at_its_left():
    mdp = chain(3, step_reward=-1.0)
    assert mdp.start.tolist() == [1, 0, 0, 0]
    assert mdp.actions == ("left", "right")
    assert mdp.rewards.tolist() == [[-1, -1], [-1, -1], [-1, 0], [0, 0]]


def test_a_slip_goes_to_either_side():
    mdp = gridworld(["SG"], gamma=0.9, slip=0.2)
    north, east = (mdp.transitions[0, mdp.actions.index(name)] for name in ("north", "east"))
    assert north.tolist() == pytest.approx([0.9, 0.1])  # the side step east ends, all others hit a wall
    assert east.tolist() == pytest.approx([0.2, 0.8])
    assert gridworld(["SG"], slip=1.0).transitions[0, :2].tolist() == [[0.5, 0.5], [1.0, 0.0]]  # never straight on


@pytest.mark.parametrize(
    ("rows", "message"), [([], "no row"), (["S", ".."], "same length"), (["G"], "start"), (["SX"], "'X'")]
)
def test_a_map_that_cannot_be_read_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        gridworld(rows)


@pytest.mark.parametrize("timing", ["immediate", "delayed", "sparse"])
def test_the_timing_of_rewards_moves_no_return(timing):
    """Whatever the policy, the same is paid, only earlier or later (gamma 1)."""
    mdp, now = dialogue(timing), dialogue("immediate")
    policy = torch.randn(len(mdp.states), 4, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    if timing != "sparse":
        assert float(expected_return(mdp, policy)) == pytest.approx(float(expected_return(now, policy)))
    _, best = value_iteration(mdp)
    first = mdp.states.index("Hello, I am looking for a place to read.")
    assert mdp.actions[int(best[first].argmax())] == "Do you want to buy a book?"


def test_the_dialogue_has_these_turns():
    """Where the visitor has said what is wanted, and what each of the four replies then earns."""
    mdp, hello = dialogue("immediate", buyers=0.75), "Hello, I am looking for a place to read."
    asked = f"{hello} / Do you want to buy a book?"
    earned = {hello: [0.5, -0.5, -0.2, 0], f"{asked} / Yes.": [1, -1, -1, 0], f"{asked} / No.": [-1, 1, -1, 0]}
    for history, rewards in earned.items():
        assert mdp.rewards[mdp.states.index(history)].tolist() == pytest.approx(rewards, abs=1e-15)
    answers = {
        "Go to the bookshop.": ("Thank you!", "That is not what I wanted."),
        "Go to the library.": ("Thank you!", "That is not what I wanted."),
        "Do you want to buy a book?": ("You asked that already. Goodbye.",),
        "I do not know.": ("Goodbye.",),
    }
    last = [f"{said} / {r} / {a}" for said in earned for r, each in answers.items() for a in each]
    last = [words for words in last if words != f"{asked} / You asked that already. Goodbye."]
    assert set(mdp.states) == {*earned, *last, "end"}
    assert mdp.states[-1] == "end"
    assert mdp.actions == tuple(answers)


@pytest.mark.parametrize("buyers", [0, 1])
def test_all_visitors_may_want_the_same(buyers):
    mdp = dialogue(buyers=buyers)
    assert float(mdp.start @ value_iteration(mdp)[0]) == 1


@pytest.mark.parametrize("bad", [{"timing": "soon"}, {"buyers": 1.5}])
def test_an_impossible_dialogue_is_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is .* expected"):
        dialogue(**bad)


def test_a_clear_wish_makes_asking_back_a_waste():
    mdp = dialogue("immediate", buyers=0.99)
    first = mdp.states.index("Hello, I am looking for a place to read.")
    assert mdp.actions[int(value_iteration(mdp)[1][first].argmax())] == "Go to the bookshop."


# -- bad input --------------------------------------------------------------------------------------------------------
GOOD = {
    "transitions": torch.eye(2)[:, None].repeat(1, 2, 1),
    "rewards": torch.zeros(2, 2),
    "start": torch.tensor([1.0, 0.0]),
    "gamma": 0.9,
}
BAD = {
    "rows that miss 1": ({"transitions": torch.full((2, 2, 2), 0.4)}, r"transitions\[0, 0\] sums to 0.8; expected 1"),
    "a negative probability": ({"start": torch.tensor([1.5, -0.5])}, r"start\[1\] is negative"),
    "a probability that is no number": ({"start": torch.tensor([float("nan"), 1.0])}, r"start\[0\] is negative or not"),
    "a start that misses 1": ({"start": torch.tensor([0.5, 0.25])}, "^start sums to 0.75; expected 1"),
    "no actions": ({"transitions": torch.ones(2, 0, 2)}, r"shape \(2, 0, 2\); expected \[S, A, S\]"),
    "another shape": ({"transitions": torch.ones(2, 2)}, r"shape \(2, 2\); expected \[S, A, S\]"),
    "rewards of another shape": ({"rewards": torch.zeros(2, 3)}, r"rewards has shape \(2, 3\); expected \(2, 2\)"),
    "a reward that is no number": ({"rewards": torch.full((2, 2), float("nan"))}, r"rewards\[0, 0\] is not finite"),
    "gamma above 1": ({"gamma": 1.1}, r"gamma is 1.1; expected .* \[0, 1\]"),
    "no steps": ({"horizon": 0}, "horizon is 0"),
    "half a step": ({"horizon": 2.5}, "horizon is 2.5; expected a whole number"),
    "no end": ({"gamma": 1.0, "rewards": torch.ones(2, 2)}, "no state is absorbing"),
    "too few names": ({"states": ("a",)}, "states holds 1 names; expected 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_impossible_process_is_refused(case):
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        TabularMDP(**(GOOD | change))


def test_a_policy_in_single_precision_is_a_policy():
    policy = torch.softmax(torch.randn(4, 2, generator=torch.Generator().manual_seed(3)), dim=-1)
    exact = expected_return(random_mdp(0, 0.999999), policy.double() / policy.double().sum(1, keepdim=True))
    assert float(expected_return(random_mdp(0, 0.999999), policy)) == pytest.approx(float(exact), rel=1e-12)


def test_numbers_of_any_kind_make_a_process():
    """Lists and integers too; one state and one action are the fewest."""
    for one in (1, 1.0, torch.tensor(1), True):
        mdp = TabularMDP(torch.as_tensor(one).reshape(1, 1, 1), [[2.0]], [one], 0.5)
        assert policy_evaluation(mdp, torch.ones(1, 1)).tolist() == [4.0]


@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy])
def test_laws_in_single_precision_are_laws(kind):
    moves = torch.tensor([[[0.95, 0.05], [0.3, 0.7]]] * 2)
    mdp = TabularMDP(kind(moves), torch.zeros(2, 2), kind(torch.tensor([0.1, 0.9])), 0.9)
    assert (mdp.transitions.sum(2) - 1).abs().max() < 1e-12
    with pytest.raises(ValueError, match=r"sums to 1; expected 1 \(it is off by -1.1e-08\)"):
        TabularMDP(moves.double(), torch.zeros(2, 2), torch.tensor([0.1, 0.9]), 0.9)


def test_a_process_does_not_change_with_what_it_was_made_of():
    rewards = torch.zeros(2, 2, dtype=torch.float64)
    mdp = TabularMDP(**(GOOD | {"rewards": rewards}))
    rewards[0, 0] = 7
    assert mdp.rewards.eq(0).all()


def test_policies_that_have_no_value_are_refused():
    with pytest.raises(ValueError, match="never ends from state 0"):
        policy_evaluation(chain(3), torch.tensor([[1.0, 0.0]] * 4))
    with pytest.raises(ValueError, match=r"policy\[0\] sums to 0.4"):
        policy_evaluation(chain(3), torch.full((4, 2), 0.2))
    with pytest.raises(ValueError, match="length is 0; expected at least 1"):
        chain(0)
    with pytest.raises(ValueError, match=r"slip is 1.5; expected a probability"):
        gridworld(["SG"], slip=1.5)
    with pytest.raises(ValueError, match="start holds 1 numbers; expected 2"):
        from_table({0: {0: []}, 1: {0: []}}, [1.0], 0.9)
    with pytest.raises(ValueError, match="policy has shape"):
        policy_evaluation(chain(3), torch.full((2, 2), 0.5))
    with pytest.raises(ValueError, match="no convergence"):
        value_iteration(chain(3, step_reward=1.0), sweeps=100)
    with pytest.raises(ValueError, match="horizon is 5; expected None"):
        policy_iteration(TabularMDP(**(GOOD | {"horizon": 5})))
