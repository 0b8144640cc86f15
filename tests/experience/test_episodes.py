"""Experience: what was played, in rows, against environments whose every step is known."""

import contextlib
import itertools
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TimeLimit
from gymnasium.wrappers.utils import RunningMeanStd
from hypothesis import given, settings, strategies as st
from torch import nn
from toy_envs import Counter, Walk, last_bit

from rlhf_lab.experience.episodes import Runner, collect_episodes, make_envs, play, policy_for, value_for
from rlhf_lab.models.policies import (
    CategoricalPolicy,
    GaussianPolicy,
    TabularPolicy,
    TabularValue,
    ToFloat,
    greedy,
    sampling,
)

torch.set_num_threads(1)
few = settings(max_examples=30, deadline=None)


def walks(count, seed=0, stop=0.25):
    names = itertools.count()
    return make_envs(lambda: Walk(next(names), stop), count, seed)


# -- ends -------------------------------------------------------------------------------------------------------------
class NumberedEnd(Counter):
    """Says with 0 and 1 whether it is over, as some environments do."""

    def step(self, action):
        seen, reward, terminated, truncated, info = super().step(action)
        return seen, reward, int(terminated), int(truncated), info


def test_an_end_may_be_told_by_a_number():
    ends = iter((2, 3))
    episodes = collect_episodes([NumberedEnd(next(ends)) for _ in range(2)], last_bit, gamma=0.5)
    assert episodes.discounts.tolist() == [[0.5, 0, 0], [0.5, 0.5, 0]]


def test_a_terminal_step_has_discount_0_and_a_truncated_one_gamma():
    ends = iter((3, 9, 2))
    envs = make_envs(lambda: TimeLimit(Counter(next(ends)), 4), 3, seed=0)
    episodes = collect_episodes(envs, last_bit, gamma=0.5)
    assert episodes.mask.tolist() == [[True] * 3 + [False], [True] * 4, [True] * 2 + [False] * 2]
    assert episodes.rewards.tolist() == [[1, 2, 3, 0], [1, 2, 3, 4], [1, 2, 0, 0]]
    assert episodes.discounts.tolist() == [[0.5, 0.5, 0, 0], [0.5] * 4, [0.5, 0, 0, 0]]
    assert episodes.observations[..., 0].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert episodes.returns == (6.0, 10.0, 3.0)


def test_a_step_that_terminates_at_the_time_limit_is_terminal():
    episodes = collect_episodes(make_envs(lambda: TimeLimit(Counter(3), 3), 1, seed=0), last_bit, gamma=0.5)
    assert episodes.discounts.tolist() == [[0.5, 0.5, 0.0]]


def test_an_episode_longer_than_max_steps_is_cut_as_by_a_time_limit():
    ends = iter((2, 9))
    envs = make_envs(lambda: Counter(next(ends)), 2, seed=0)
    episodes = collect_episodes(envs, last_bit, gamma=0.5, max_steps=3)
    assert episodes.discounts.tolist() == [[0.5, 0, 0], [0.5] * 3]
    assert episodes.observations[1, :, 0].tolist() == [0, 1, 2, 3]
    assert episodes.returns == (3.0,)  # the other one was not over
    assert collect_episodes(envs, last_bit, gamma=0.5).returns == (3.0, 45.0)


def test_a_fragment_keeps_the_true_last_observation_and_the_whole_return():
    ends = iter((3, 100))
    runner = Runner(make_envs(lambda: TimeLimit(Counter(next(ends)), 5), 2, seed=0))
    first, second = (runner.collect(last_bit, steps=4, gamma=0.5) for _ in range(2))
    # In the order of their ends: the 3 steps that terminate, then what goes on in either environment.
    assert first.observations[..., 0].tolist() == [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0], [0, 1, 2, 3, 4]]
    assert first.discounts.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0, 0, 0], [0.5] * 4]
    assert first.returns == (6.0,)
    # The second environment's 5th step is the time limit: 5 was seen, not the 0 after the reset.
    assert second.observations[..., 0].tolist() == [[4, 5, 0, 0], [1, 2, 3, 0], [0, 1, 2, 0], [0, 1, 2, 3]]
    assert second.discounts.tolist() == [[0.5, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0], [0.5] * 3]
    assert second.returns == (15.0, 6.0)


# -- fragments and episodes -------------------------------------------------------------------------------------------
def steps_of(episodes, name):
    """Each step of one environment: seen, action, reward, discount, seen after it."""
    for b, t in episodes.mask.nonzero().tolist():
        if episodes.observations[b, t, 0] == name:
            seen, after = episodes.observations[b, t : t + 2].tolist()
            numbers = (float(x[b, t]) for x in (episodes.actions, episodes.rewards, episodes.discounts))
            yield tuple(seen), *numbers, tuple(after)


@few
@given(st.integers(0, 10**6), st.integers(1, 3), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_fragments_glued_together_are_whole_episodes(seed, count, fragments):
    runner, envs = Runner(walks(count, seed)), walks(count, seed)
    parts = [runner.collect(last_bit, steps, gamma=0.9) for steps in fragments]
    whole = [collect_episodes(envs, last_bit, gamma=0.9) for _ in range(sum(fragments))]
    for part, steps in zip(parts, fragments, strict=True):
        assert int(part.mask.sum()) == count * steps
    for name in range(count):
        glued = [step for part in parts for step in steps_of(part, name)]
        played = [step for episodes in whole for step in steps_of(episodes, name)]
        assert glued == played[: len(glued)]


@few
@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_returns_are_whole_where_an_episode_spans_fragments(seed, fragments):
    runner, envs = Runner(walks(1, seed)), walks(1, seed)
    returns = [earned for steps in fragments for earned in runner.collect(last_bit, steps, gamma=0.9).returns]
    whole = [collect_episodes(envs, last_bit, gamma=0.9).returns[0] for _ in returns]
    assert returns == pytest.approx(whole)


def first_finished(envs, count):
    """The planted fault: episodes are noted in the order in which they finish, until there are enough."""
    runner, lengths = Runner(envs), []
    while len(lengths) < count:
        rows = runner.collect(last_bit, steps=1, gamma=1.0)
        lengths += rows.observations[: len(rows.returns), 1, 2].tolist()
    return lengths[:count]


def test_episodes_are_not_the_short_ones():
    """Lengths are geometric with mean 4 and deviation sqrt 12: 5 standard errors, one false alarm in 1.7 million."""
    n, bound = 500, 5 * math.sqrt(12 / 500)
    lengths = collect_episodes(walks(n), last_bit, gamma=1.0).mask.sum(1).float()
    assert abs(float(lengths.mean()) - 4) < bound
    assert 4 - np.mean(first_finished(walks(n), n)) > bound


# -- spaces -----------------------------------------------------------------------------------------------------------
class Shifted(gymnasium.Env):
    """States and actions that do not begin at 0; refuses any other."""

    action_space, observation_space = Discrete(2, start=3), Discrete(4, start=-1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = -1
        return self.state, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.state += 1
        return self.state, float(action), self.state == 2, False, {}


def test_spaces_that_do_not_begin_at_0_are_shifted():
    envs = make_envs(Shifted, 2, seed=0)
    episodes = collect_episodes(envs, lambda states: states % 2, gamma=1.0)
    assert episodes.observations.tolist() == [[0, 1, 2, 3]] * 2
    assert episodes.actions.tolist() == [[0, 1, 0]] * 2
    assert episodes.rewards.tolist() == [[3, 4, 3]] * 2
    assert policy_for(envs[0])(episodes.observations).probs.shape == (2, 4, 2)


class Bounded(gymnasium.Env):
    """Pays the sum of the action that it is given, after a check that it is within bounds."""

    action_space = Box(np.float32([[-1.0], [0.0]]), np.float32([[1.0], [0.5]]))
    observation_space = Box(-1, 1, (2, 2), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((2, 2)), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.ones((2, 2)), float(action.sum()), True, False, {}


def test_a_box_clips_what_is_played_and_keeps_what_was_drawn():
    envs = make_envs(Bounded, 2, seed=0, continuous=True)
    drawn = torch.tensor([[-3.0, 0.25], [0.5, 9.0]])
    episodes = collect_episodes(envs, lambda _: drawn, gamma=1.0)
    assert episodes.actions.tolist() == [[[-3.0, 0.25]], [[0.5, 9.0]]]
    assert episodes.rewards.tolist() == [[-0.75], [1.0]]
    assert episodes.observations.tolist() == [[[0.0] * 4, [1.0] * 4]] * 2
    assert episodes.observations.dtype == torch.float32


class Tokens(Counter):
    """Shows token ids."""

    observation_space = Box(0, 9, (4,), np.int64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.arange(4), {}

    def step(self, action):
        _, *rest = super().step(action)
        return np.arange(4) + self.count, *rest


def test_a_box_of_integers_stays_integers():
    episodes = collect_episodes(make_envs(Tokens, 1, seed=0), lambda seen: seen[:, 0] * 0, gamma=1.0)
    assert episodes.observations.dtype == torch.int64
    assert episodes.observations[0, :, 0].tolist() == [0, 1, 2, 3]


def test_a_box_of_integers_can_be_learned_from():
    envs = make_envs(Tokens, 1, seed=0)
    seen = collect_episodes(envs, lambda seen: seen[:, 0] * 0, gamma=1.0).observations
    assert policy_for(envs[0])(seen).probs.shape == (1, 4, 2)
    assert value_for(envs[0])(seen).shape == (1, 4)


class OneBuffer(Counter):
    """Writes every observation into the same array."""

    def reset(self, *, seed=None, options=None):
        self.buffer, info = super().reset(seed=seed)
        return self.buffer, info

    def step(self, action):
        seen, *rest = super().step(action)
        self.buffer[:] = seen
        return self.buffer, *rest


def test_observations_are_copied():
    episodes = collect_episodes(make_envs(OneBuffer, 1, seed=0), lambda seen: seen[:, 0].long() * 0, gamma=1.0)
    assert episodes.observations.flatten().tolist() == [0, 1, 2, 3]


def with_spaces(observations, actions):
    def make():
        env = Counter()
        env.observation_space, env.action_space = observations, actions
        return env

    return make


VECTOR, INTEGER = Box(-1, 1, (3,), np.float32), Discrete(4)
UNSUPPORTED = {
    "several choices at once": (with_spaces(VECTOR, MultiDiscrete([2, 3])), True, r"actions MultiDiscrete.*or a Box"),
    "vectors where only choices": (with_spaces(VECTOR, VECTOR), False, r"actions Box\(.*\); expected Discrete$"),
    "vectors of integers": (with_spaces(VECTOR, Box(0, 3, (2,), np.int64)), True, r"Box\(.*a Box of floats$"),
    "named observations": (with_spaces(Dict({"x": VECTOR}), INTEGER), True, r"observations Dict.*Discrete or Box"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_spaces_that_do_not_fit_are_named(case):
    make, continuous, message = UNSUPPORTED[case]
    with pytest.raises(ValueError, match=message):
        make_envs(make, 1, seed=0, continuous=continuous)


@pytest.mark.parametrize(
    ("observations", "actions", "kind"),
    [
        (INTEGER, INTEGER, TabularPolicy),
        (VECTOR, INTEGER, CategoricalPolicy),
        (VECTOR, Box(-1, 1, (2, 3)), GaussianPolicy),
    ],
)
def test_agents_fit_the_spaces(observations, actions, kind):
    env = with_spaces(observations, actions)()
    policy, value = policy_for(env), value_for(env)
    assert isinstance(policy, kind)
    assert isinstance(value, TabularValue) == (observations is INTEGER)
    seen = torch.zeros(5, dtype=torch.long) if observations is INTEGER else torch.zeros(5, 3)
    assert value(seen).shape == (5,)
    assert sampling(policy, torch.Generator())(seen).shape == ((5, 6) if kind is GaussianPolicy else (5,))


def test_a_table_cannot_hold_vectors_of_actions():
    with pytest.raises(ValueError, match=r"Discrete\(4\) and actions Box.*expected Box observations"):
        policy_for(with_spaces(INTEGER, VECTOR)())


# -- numbers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(reward):
    env = Counter()
    env.step = lambda action: (np.ones(1, np.float32), reward, True, False, {})
    for collect in (
        lambda: collect_episodes([env], last_bit, gamma=1.0),
        lambda: Runner([env]).collect(last_bit, 2, gamma=1.0),
    ):
        with pytest.raises(ValueError, match=f"reward of {reward}; expected finite"):
            collect()


def changed(step=lambda *parts: parts, reset=lambda *parts: parts, **spaces):
    """A maker of a Counter whose answers are passed through `step` and `reset`."""

    class Changed(Counter):
        def reset(self, *, seed=None, options=None):
            return reset(*super().reset(seed=seed))

        def step(self, action):
            return step(*super().step(action))

    for name, space in spaces.items():
        setattr(Changed, name, space)
    return Changed


def table(state):
    return changed(lambda o, *rest: (state, *rest), lambda o, i: (0, i), observation_space=Discrete(4))


def tokens(ids):
    zero = np.zeros(1, np.int64)
    box = Box(0, 8, (1,), np.int64)
    return changed(lambda o, *rest: (ids, *rest), lambda o, i: (zero, i), observation_space=box)


def ends(terminated):
    return changed(lambda o, r, t, u, i: (o, r, terminated, u, i))


def pays(reward):
    return changed(lambda o, r, *rest: (o, reward, *rest))


def shows(observation):
    return changed(lambda o, *rest: (observation, *rest))


BROKEN = {
    "a reset without info": (changed(reset=lambda o, i: o), r"a reset of .*expected \(observation, info\)"),
    "a reset of two numbers": (changed(reset=lambda o, i: [0.0, 1.0]), "a reset of"),
    "a step of four": (changed(lambda o, r, t, u, i: (o, r, t, i)), "a step of .*terminated, truncated"),
    "NaN": (shows(np.array([np.nan], np.float32)), r"an observation of array\(\[nan\].* finite numbers of Box"),
    "infinite in float32": (shows(np.array([1e39])), r"an observation of array\(\[1\.?e\+39\]\)"),
    "another shape": (shows(np.zeros(2, np.float32)), "an observation of .*finite numbers of Box"),
    "no numbers": (shows(None), "an observation of None"),
    "rows of several lengths": (shows([[1.0], [1.0, 2.0]]), "an observation of .*finite numbers"),
    "-1, which is the last row of a table": (
        table(-1),
        r"an observation of -1; expected whole numbers of Discrete\(4\)",
    ),
    "a state too many": (table(4), "an observation of 4; expected whole"),
    "a state in an array": (table(np.array([2])), "an observation of .*expected whole"),
    "a state and a half": (table(1.5), "an observation of 1.5"),
    "a token too many": (tokens(np.array([9])), r"an observation of array\(\[9\]\); expected whole numbers of Box"),
    "tokens as floats": (tokens(np.array([0.5])), r"an observation of array\(\[0.5\]\); expected whole numbers of Box"),
    "a reward in an array": (pays(np.array([1.0])), r"a reward of array\(\[1"),
    "no reward": (pays(None), "a reward of None; expected finite numbers, one a step"),
    "a reward in words": (pays("1"), "a reward of '1'"),
    "no end": (ends(None), "terminated = None; expected True or False"),
    "an end in words": (ends("no"), "terminated = 'no'"),
    "info where truncated should be": (changed(lambda o, r, t, u, i: (o, r, t, i, u)), "truncated = {}"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_rule_that_an_environment_breaks_is_named(case):
    make, message = BROKEN[case]
    act = lambda seen: torch.zeros(len(seen), dtype=torch.int64)  # noqa: E731
    for collect in (
        lambda: collect_episodes(make_envs(make, 2, seed=0), act, gamma=1.0),
        lambda: Runner(make_envs(make, 2, seed=0)).collect(act, 2, gamma=1.0),
    ):
        with pytest.raises(ValueError, match="^env gave " + message) as caught:
            collect()
        assert "\n" not in str(caught.value)


def test_a_float_outside_its_bounds_and_numbers_of_other_kinds_are_played():
    step = lambda o, r, t, u, i: (np.float64(o + 1000), np.array(r, np.float16), np.bool_(t), u, None)  # noqa: E731
    episodes = collect_episodes([changed(step)()], last_bit, gamma=1.0)
    assert episodes.observations.flatten().tolist() == [0, 1001, 1002, 1003]
    assert episodes.returns == (6.0,)


ACTIONS = {
    "one that there is not": (lambda seen: torch.full((len(seen),), 2), r"act chose \[2, 2\]; expected 2 integers"),
    "a negative one": (lambda seen: torch.full((len(seen),), -1), "act chose"),
    "halves": (lambda seen: torch.full((len(seen),), 0.5), "act chose"),
    "too few": (lambda seen: torch.zeros(1, dtype=torch.int64), "act chose"),
    "a column": (lambda seen: torch.zeros(len(seen), 1, dtype=torch.int64), "act chose"),
    "no tensor": (lambda seen: [0, 0], "what act returned is 'list'"),
}


@pytest.mark.parametrize("case", ACTIONS)
def test_an_action_that_cannot_be_played_is_refused_before_it_is(case):
    act, message = ACTIONS[case]
    with pytest.raises(ValueError, match=message):
        play(Counter, act, 2, seed=0)


def test_a_vector_that_is_not_finite_is_not_played():
    with pytest.raises(ValueError, match=r"act chose .*nan.*expected finite numbers of shape"):
        play(Bounded, lambda seen: torch.full((len(seen), 2), math.nan), 2, seed=0)


# -- closing ----------------------------------------------------------------------------------------------------------
class Door(Counter):
    """Knows which of its kind were made and which were closed."""

    made, closed = [], []

    def __init__(self):
        super().__init__()
        Door.made.append(self)

    def close(self):
        Door.closed.append(self)


@pytest.fixture
def doors():
    Door.made, Door.closed = [], []
    return Door


def only_two():
    if len(Door.made) == 2:
        raise OSError("no more of them")
    return Door()


def fails(seen):
    raise KeyboardInterrupt


CLOSED = {
    "played": (lambda: play(Door, last_bit, 3, 0), None),
    "interrupted": (lambda: play(Door, fails, 3, 0), KeyboardInterrupt),
    "a maker that fails": (lambda: make_envs(only_two, 3, 0), OSError),
    "a maker that fails while playing": (lambda: play(only_two, last_bit, 3, 0), OSError),
    "other spaces": (lambda: make_envs(lambda: with_spaces_of(Door()), 2, 0), ValueError),
    "statistics of its own": (lambda: play(lambda: NormalizeObservation(Door()), last_bit, 2, 0), ValueError),
}


def with_spaces_of(env):
    env.action_space = MultiDiscrete([2, 2])
    return env


@pytest.mark.parametrize("case", CLOSED)
def test_what_was_made_is_closed(doors, case):
    call, error = CLOSED[case]
    with pytest.raises(error) if error else contextlib.nullcontext():
        call()
    assert doors.made
    assert doors.closed == doors.made


def test_an_environment_that_cannot_be_closed_takes_nothing_with_it(doors, monkeypatch):
    monkeypatch.setattr(Door, "close", lambda self: 1 / 0)
    with pytest.warns(UserWarning, match="env could not be closed: ZeroDivisionError"):
        assert play(Door, last_bit, 1, seed=0) == [6.0]


# -- wrappers that learn ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward])
def test_play_refuses_a_wrapper_that_has_learned_nothing(wrapper):
    with pytest.raises(ValueError, match=f"a new {wrapper.__name__}, without the statistics of the training"):
        play(lambda: TimeLimit(wrapper(Counter()), 5), last_bit, 2, seed=0)


def test_play_holds_shared_statistics_fixed():
    statistics, seen = RunningMeanStd(shape=(1,)), []

    def make():
        env = NormalizeObservation(Counter())
        env.obs_rms = statistics
        return env

    collect_episodes(make_envs(make, 3, seed=0), last_bit, gamma=1.0)  # the training
    mean, count = statistics.mean.copy(), statistics.count
    play(make, lambda observations: last_bit(observations[seen.append(observations) or slice(None)]), 1, seed=0)
    assert (statistics.mean, statistics.count) == (mean, count)
    expected = (np.arange(3) - mean) / np.sqrt(statistics.var + 1e-8)
    np.testing.assert_allclose(torch.cat(seen).flatten(), expected, rtol=1e-5)


def test_values_and_log_probs_are_those_of_each_step_and_0_at_padding():
    envs = walks(6)
    torch.manual_seed(0)
    policy, value = policy_for(envs[0]), value_for(envs[0])
    episodes = collect_episodes(envs, sampling(policy, torch.Generator().manual_seed(0)), gamma=0.9)
    values, log_probs = episodes.values(value), episodes.log_probs(policy)
    assert values.shape == (6, episodes.mask.shape[1] + 1)
    for b, length in enumerate(episodes.mask.sum(1).tolist()):
        for t in range(episodes.mask.shape[1] + 1):
            expected = value(episodes.observations[b, t]) if t <= length else torch.tensor(0.0)
            torch.testing.assert_close(values[b, t], expected)
        for t in range(episodes.mask.shape[1]):
            law = policy(episodes.observations[b, t])
            expected = law.log_prob(episodes.actions[b, t]) if t < length else torch.tensor(0.0)
            torch.testing.assert_close(log_probs[b, t], expected)
    (values.sum() + log_probs.sum()).backward()
    assert all(p.grad.any() for p in nn.ModuleList([policy, value]).parameters() if p.dim() > 1)


# -- seeds ------------------------------------------------------------------------------------------------------------
def played(seed, count=4):
    act = lambda seen: last_bit(seen[:, 1:])  # noqa: E731
    return collect_episodes(make_envs(Walk, count, seed), act, gamma=0.9)


def test_a_seed_gives_its_episodes_and_each_environment_others():
    first, again, other = played(0), played(0), played(1)
    assert torch.equal(first.rewards, again.rewards)
    assert len(set(first.rewards[:, 0].tolist() + other.rewards[:, 0].tolist())) == 8
    more = played(0, count=6)  # neighbours change nothing
    assert torch.equal(more.rewards[:4, 0], first.rewards[:, 0])


def test_an_episode_without_end_is_not_left_out():
    with pytest.raises(ValueError, match="expected episodes of at most 10,000 steps"):
        play("CliffWalking-v1", lambda observations: torch.zeros_like(observations), 1, seed=0)  # north for ever


ONE = Counter()
WRONG = {
    "an environment in place of its maker": (lambda: make_envs(ONE, 1, 0), "env is .* expected an id, or a function"),
    "one environment for all": (lambda: make_envs(lambda: ONE, 2, 0), "a new environment with every call"),
    "a maker of something else": (lambda: make_envs(lambda: None, 1, 0), "one that makes a gymnasium.Env, not None"),
    "an environment and a half": (lambda: make_envs(Counter, 1.5, 0), "count is 1.5; expected a whole number"),
    "a fractional seed": (lambda: make_envs(Counter, 1, 0.5), "seed is 0.5; expected a whole number"),
    "a step and a half": (lambda: collect_episodes([Counter()], last_bit, 0.9, max_steps=1.5), "max_steps is 1.5"),
    "steps in words": (lambda: Runner([Counter()]).collect(last_bit, "2", 0.9), "steps is '2'"),
    "no environment": (lambda: make_envs(Counter, 0, 0), "count is 0"),
    "no episodes": (lambda: play(Counter, last_bit, 0, 0), "count is 0"),
    "a negative seed": (lambda: make_envs(Counter, 1, -1), "seed is -1"),
    "nothing to collect from": (lambda: collect_episodes([], last_bit, 0.9), "envs is 0"),
    "a discount above 1": (lambda: collect_episodes([Counter()], last_bit, 1.5), "gamma is 1.5"),
    "no steps of an episode": (lambda: collect_episodes([Counter()], last_bit, 0.9, max_steps=0), "max_steps is 0"),
    "no steps of a fragment": (lambda: Runner([Counter()]).collect(last_bit, 0, 0.9), "steps is 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_argument_that_cannot_be_is_named(case):
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_agents_may_compute_in_double_precision():
    (env,) = envs = make_envs(Counter, 1, 0)
    policy, value = policy_for(env).double(), value_for(env).double()
    for body in (policy, value):
        body.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    for module in (*policy.modules(), *value.modules()):
        if isinstance(module, ToFloat):
            module.forward = lambda x: x
    episodes = collect_episodes(envs, last_bit, gamma=0.9)
    assert episodes.values(value).dtype == episodes.log_probs(policy).dtype == torch.float64


def test_play_gives_the_return_of_every_episode():
    policy = policy_for(gymnasium.make("CartPole-v1"))
    returns = play("CartPole-v1", greedy(policy), episodes=5, seed=0)
    assert len(returns) == 5
    assert returns == play("CartPole-v1", greedy(policy), episodes=5, seed=0)
    assert play(Counter, last_bit, episodes=2, seed=0) == [6.0, 6.0]
