"""Rewards from choices between segments: losses by definition, what is recovered, what is refused."""

import gymnasium
import numpy as np
import pytest
import torch

from rlhf_lab.experience.episodes import collect_episodes, open_envs, play
from rlhf_lab.experience.segments import cut_segments, pair_segments
from rlhf_lab.models.policies import greedy
from rlhf_lab.recipes.ppo import PPOConfig, train_ppo
from rlhf_lab.recipes.segment_reward import (
    LearnedReward,
    SegmentReward,
    SegmentRewardConfig,
    _Pairs,
    bootstrap_weights,
    choice_losses,
    choice_probabilities,
    simulate_choices,
    train_segment_reward,
)
from rlhf_lab.records import Segment, SegmentChoice, as_conversation
from rlhf_lab.worlds.puck import PuckEnv, puck_reward

ASKED = as_conversation("Which one is better?")


def toy_segments(count, steps=4, seed=0):
    """{segment: its return}: two numbers are seen and one of three actions is done; r = x - 2 [action = 1]."""
    random = np.random.default_rng(seed)
    found = {}
    for _ in range(count):
        seen, done = random.normal(size=(steps + 1, 2)), random.integers(3, size=(steps, 1))
        segment = Segment("Toy", tuple(map(tuple, seen.tolist())), tuple(map(tuple, done.tolist())))
        found[segment] = float(seen[:-1, 0].sum() - 2 * (done == 1).sum())
    return found


def toy_choices(count, noise=0.2, seed=0, ties=0):
    returns = toy_segments(60, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    choices = simulate_choices(pair_segments(list(returns), count, generator), returns, noise, generator)
    return [SegmentChoice(ASKED, c.left, c.right, 0) for c in choices[:ties]] + choices[ties:]


def test_the_losses_are_those_of_the_definition():
    """-log P with P from sums over the steps, one pair and one member at a time."""
    choices = toy_choices(9, ties=3)
    for ties in ("half", "davidson"):
        config = SegmentRewardConfig(members=2, ties=ties)
        model = SegmentReward(2, 3, config=config)
        model.seen_mean, model.seen_std = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.5])
        if model.log_nu is not None:
            model.log_nu.data.fill_(0.3)
        losses = choice_losses(model, _Pairs.of(choices, 3))
        assert losses.shape == (9, 2)
        for row, choice in enumerate(choices):
            for member, network in enumerate(model.networks):
                left, right = 0.0, 0.0
                for t in range(4):
                    for side, segment in enumerate((choice.left, choice.right)):
                        seen = (torch.tensor(segment.observations[t]) - model.seen_mean) / model.seen_std
                        done = torch.eye(3)[int(segment.actions[t][0])]
                        r = float(network(torch.cat([seen, done])).detach())
                        left, right = (left + r, right) if side == 0 else (left, right + r)
                if ties == "half":
                    p = 1 / (1 + np.exp(right - left))
                    expected = -(np.log(p) if choice.outcome == 1 else np.log(1 - p))
                    expected = -(np.log(p) + np.log(1 - p)) / 2 if choice.outcome == 0 else expected
                else:
                    weights = {1: np.exp(left), 0: np.exp(0.3 + (left + right) / 2), -1: np.exp(right)}
                    expected = -np.log(weights[choice.outcome] / sum(weights.values()))
                assert float(losses[row, member].detach()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("ties", "members"), [("half", 1), ("davidson", 1), ("half", 2)])
def test_enough_choices_recover_the_reward(ties, members):
    """Of steps that nobody compared, up to offset and scale: correlation above 0.95 (0.977 to 0.995 on 5 seeds)."""
    config = SegmentRewardConfig(ties=ties, members=members, steps=250, weight_decay=0.01)
    held_out = toy_choices(200, seed=1)
    result = train_segment_reward(toy_choices(600, ties=20), config, actions=3, held_out=held_out)
    seen, done = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)), torch.arange(500) % 3
    learned = result.model(seen, done)
    assert float(np.corrcoef(learned, seen[:, 0] - 2 * (done == 1))[0, 1]) > 0.95
    assert result.history.last("accuracy") > 0.9
    assert result.history.last("held_out_loss") < 0.4
    fresh = toy_segments(60, seed=2)
    returns = result.model.returns(list(fresh))
    assert float(np.corrcoef(returns, list(fresh.values()))[0, 1]) > 0.95


def test_ties_teach_how_easily_they_are_called():
    """Of equal segments a third are ties where nu is 1: log_nu comes to 0, within 0.35 for 400 choices (3 sd)."""
    segment, other = list(toy_segments(2))
    outcomes = [0] * 134 + [1] * 133 + [-1] * 133
    choices = [SegmentChoice(ASKED, segment, other, outcome) for outcome in outcomes]
    config = SegmentRewardConfig(ties="davidson", members=1, steps=150, batch=400, weight_decay=0.0, learning_rate=3e-2)
    model = train_segment_reward(choices, config, actions=3).model
    assert float(model.log_nu) == pytest.approx(np.log(134 / 133), abs=0.05)
    rare = train_segment_reward(choices[120:], config, actions=3).model
    assert float(rare.log_nu) == pytest.approx(np.log(14 / 133), abs=0.15)


def test_the_reward_is_standardised_on_what_was_compared():
    choices = toy_choices(50)
    model = train_segment_reward(choices, SegmentRewardConfig(steps=20, members=2), actions=3).model
    pairs = _Pairs.of(choices, 3)
    each = ((model.raw(pairs.observations, pairs.actions) - model.shift) / model.scale).flatten(0, -2)
    torch.testing.assert_close(each.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(each.std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_constant_changes_no_choice():
    choices, config = toy_choices(20), SegmentRewardConfig(ties="davidson", members=1)
    model = SegmentReward(2, 3, config=config)
    before = choice_losses(model, _Pairs.of(choices, 3))
    model.networks[0][-1].bias.data += 5.0
    torch.testing.assert_close(choice_losses(model, _Pairs.of(choices, 3)), before, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_reward_and_another_seed_another():
    choices = toy_choices(30)
    seen = torch.ones(1, 2)
    found = [
        float(
            train_segment_reward(choices, SegmentRewardConfig(steps=10, seed=s), actions=3).model(seen, torch.ones(1))
        )
        for s in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


def test_bootstrap_samples_have_the_size_of_the_data():
    weights = bootstrap_weights(50, 3, torch.Generator().manual_seed(0))
    assert weights.sum(0).tolist() == [50.0] * 3
    assert not torch.equal(weights[:, 0], weights[:, 1])
    assert torch.equal(bootstrap_weights(5, 1, torch.Generator()), torch.ones(5, 1))


def test_vectors_of_actions():
    one, other = (Segment("Toy", ((0.0,), (0.0,)), ((x, 0.5),)) for x in (1.0, -1.0))
    model = train_segment_reward([SegmentChoice(ASKED, one, other, 1)], SegmentRewardConfig(steps=30)).model
    assert float(model(torch.zeros(1), torch.tensor([1.0, 0.5]))) > float(
        model(torch.zeros(1), torch.tensor([-1.0, 0.5]))
    )


def test_what_cannot_be_learned_from_is_refused():
    choices = toy_choices(4)
    short = list(toy_segments(2, steps=3))
    uneven = [SegmentChoice(ASKED, choices[0].left, short[0], 1)]
    elsewhere = SegmentChoice(ASKED, *(Segment("Other", s.observations, s.actions) for s in short), 1)
    for given, more, message in (
        (choices + uneven, {}, r"segments of \[3, 4\] steps"),
        ([SegmentChoice(ASKED, c.left, c.right, 0) for c in choices], {}, "4 without a preference"),
        ([], {}, "0 without a preference"),
        (choices, {"actions": 1}, "actions is 1"),
        ([SegmentChoice(ASKED, *short, 1), elsewhere], {}, "one environment"),
        (choices, {"held_out": choices, "agreement": [1.0]}, "agreement is"),
    ):
        with pytest.raises(ValueError, match=message):
            train_segment_reward(given, **({"actions": 3} | more))
    for wrong in ({"ties": "none"}, {"steps": 0}, {"members": 0}, {"hidden": (0,)}, {"hidden": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SegmentRewardConfig(**wrong)


# -- simulated people -------------------------------------------------------------------------------------------------
def test_simulated_choices_follow_the_returns():
    """Share of left of 4,000 answers to one pair; a right one is missed once in 15,000 times (4 sd)."""
    returns = toy_segments(2)
    left, right = returns
    p = float(1 / (1 + np.exp((returns[right] - returns[left]) / 5.0)))
    pairs = [(left, right)] * 4000
    choices = simulate_choices(pairs, returns, 5.0, torch.Generator().manual_seed(0))
    share = np.mean([choice.outcome == 1 for choice in choices])
    assert 0.1 < p < 0.9
    assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 4000))
    assert all(choice.simulated for choice in choices)
    assert float(choice_probabilities(pairs[:1], returns, 5.0)) == pytest.approx(p)
    with pytest.raises(ValueError, match="noise is 0"):
        simulate_choices(pairs, returns, 0, torch.Generator())


# -- an agent paid by it ----------------------------------------------------------------------------------------------
class Exact(torch.nn.Module):
    """x of what was seen before the step plus 10 times the action."""

    actions, discrete = 5, True

    def forward(self, observations, actions):
        return observations[:, 0] + 10 * actions


def test_the_learned_reward_is_of_the_state_before_the_step():
    env, plain = LearnedReward(PuckEnv(), Exact()), PuckEnv()
    before, _ = env.reset(seed=3)
    plain.reset(seed=3)
    for action in (2, 4, 0, 1):
        seen, reward, _, _, info = env.step(action)
        same, true, *_ = plain.step(action)
        assert reward == pytest.approx(before[0] + 10 * action, abs=1e-6)
        assert info["true_reward"] == true
        np.testing.assert_array_equal(seen, same)
        before = seen
    with pytest.raises(ValueError, match="model is 'for 5 actions'"):
        LearnedReward(gymnasium.make("CartPole-v1"), Exact())


def test_an_agent_learns_from_choices_what_it_was_never_told():
    """600 choices between random pieces, then 8 short iterations: the true return rises well above that of the start
    (by 32 to 41 on 3 seeds), and the learned reward follows the true one over the whole square (correlation 0.72 to
    0.81)."""
    with open_envs("rlhf_lab/Puck-v0", 40, seed=0) as envs:
        generator = torch.Generator().manual_seed(0)
        act = lambda seen: torch.randint(5, (len(seen),), generator=generator)  # noqa: E731
        returns = cut_segments(collect_episodes(envs, act, gamma=1.0), "rlhf_lab/Puck-v0", 10)
    choices = simulate_choices(pair_segments(list(returns), 600, generator), returns, 0.5, generator)
    model = train_segment_reward(choices, SegmentRewardConfig(members=1), actions=5).model
    places = torch.rand(1000, 4, generator=generator) * 2 - 1
    told = model(places, torch.zeros(1000))
    assert float(np.corrcoef(told, puck_reward(places[:, :2].numpy().astype(float)))[0, 1]) > 0.4
    config = PPOConfig(
        total_steps=6400, environments=16, steps=50, epochs=6, minibatch=200, learning_rate=5e-3, gamma=0.9,
        evaluate_every=8,
    )  # fmt: skip
    look = lambda policy: {"true": float(np.mean(play(PuckEnv, greedy(policy), 20, 5)))}  # noqa: E731
    earned = train_ppo(lambda: LearnedReward(PuckEnv(), model), config, evaluate=look).history.column("true")[1]
    assert earned[-1] > earned[0] + 15
