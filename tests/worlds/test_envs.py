"""Environments that any library can train on: clean by gymnasium's checker, right by exact answers."""

import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.mdp import TIMINGS, TabularMDP, chain, expected_return, gridworld, occupancy, policy_gradient
from rlhf_lab.models.tokens import decode_responses, make_batch
from rlhf_lab.records import as_conversation
from rlhf_lab.worlds import town
from rlhf_lab.worlds.envs import BEST, KINDS, DialogueEnv, TabularEnv, TokenEnv, token_world_mdp, town_reward

QUESTION = as_conversation("When does the library close?")
ANSWER = "The library closes at six."
MADE = {
    "rlhf_lab/Tabular-v0": {"mdp": gridworld(["S.", ".G"], slip=0.2)},
    "rlhf_lab/Token-v0": {"prompts": [QUESTION], "max_new_tokens": 4},
    "rlhf_lab/Dialogue-v0": {},
}


def walk(env, actions, seed=0):
    """(rewards, last info) of one episode; actions are repeated until it is over."""
    env.reset(seed=seed)
    rewards, over, info, actions = [], False, {}, itertools.cycle(actions)
    while not over:
        _, reward, over, truncated, info = env.step(next(actions))
        assert not truncated
        rewards.append(reward)
    return rewards, info


@pytest.mark.parametrize("name", MADE)
def test_the_registered_environments_are_clean(name):
    check_env(gymnasium.make(name, **MADE[name]).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", MADE)
def test_a_seed_decides_the_episode(name):
    seen = []
    for seed in (3, 3, 4, 5, 6):
        env = gymnasium.make(name, **MADE[name])
        first = env.reset(seed=seed)[0]
        steps = [env.step(a) for a in (0, 1)[: 1 if name.endswith("Dialogue-v0") else 2]]
        seen.append(repr((first, [(s[0], s[1]) for s in steps])))
    assert seen[0] == seen[1]
    assert len(set(seen)) > 1 or "Token" in name  # there one prompt and two tokens leave nothing to chance


# -- tables -----------------------------------------------------------------------------------------------------------
def test_sampled_visits_are_those_of_the_process():
    """Seed fixed; one of 7 means is off by more than 5 standard errors once in 200,000 sound samplers."""
    mdp = gridworld(["S.#", "..O", "..G"], gamma=1.0, slip=0.3)
    env, law = TabularEnv(mdp), [0.05, 0.5, 0.4, 0.05]  # mostly east and south, so that a slip shows
    random, visits = np.random.default_rng(0), np.zeros((3000, len(mdp.start)))
    for episode in range(3000):
        state, over = env.reset(seed=1 if episode == 0 else None)[0], False
        while not over:
            visits[episode, state] += 1
            state, _, over, _, _ = env.step(int(random.choice(4, p=law)))
    errors = 5 * visits.std(axis=0) / 3000**0.5

    def far(slip):
        other = gridworld(["S.#", "..O", "..G"], gamma=1.0, slip=slip)
        exact = occupancy(other, torch.tensor(law, dtype=torch.float64).expand_as(other.rewards)).numpy()
        return (np.abs(visits.mean(axis=0) - exact) > errors).any()

    assert not far(0.3)
    assert far(0.2)
    assert far(0.4)


def test_a_horizon_ends_the_episode():
    rewards, _ = walk(TabularEnv(TabularMDP(torch.ones(1, 2, 1), [[1.0, 2.0]], [1.0], 1.0, horizon=3)), [1])
    assert rewards == [2.0, 2.0, 2.0]


def test_the_end_of_a_chain_is_paid_and_terminal():
    rewards, _ = walk(TabularEnv(chain(3, step_reward=-0.5)), [1])
    assert rewards == [-0.5, -0.5, 0.5]


def test_a_world_too_large_for_a_table_is_refused():
    with pytest.raises(ValueError, match="1365 prefixes and 64 tokens"):
        token_world_mdp(TokenWorld(64, 2, torch.zeros(64**2), prompts=21))


@pytest.mark.parametrize("eos", [None, 1])
def test_a_token_world_is_a_decision_process(eos):
    """Expected reward and gradient are the same by sums over sequences and by linear systems."""
    world = TokenWorld(3, 3, lambda prompt, tokens: (prompt + 1) * float(sum(tokens)), prompts=2, eos=eos)
    mdp = token_world_mdp(world)
    shape, generator = (2, world.num_prefixes, 3), torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    rows = torch.cat([logits.flatten(0, 1), torch.zeros(1, 3, dtype=torch.float64)])
    expected = world.expected_reward(world.law(logits)).mean()
    torch.testing.assert_close(expected_return(mdp, rows.softmax(-1)), expected, rtol=0, atol=1e-10)
    gradient = world.reward_gradient(logits).flatten(0, 1) / 2  # the mean over two prompts
    torch.testing.assert_close(policy_gradient(mdp, rows)[:-1], gradient, rtol=0, atol=1e-10)


# -- tokens -----------------------------------------------------------------------------------------------------------
def test_a_reply_earns_its_true_reward_however_it_is_paid():
    sums = {}
    for timing in TIMINGS:
        env = TokenEnv(prompts=[QUESTION], timing=timing)
        rewards, info = walk(env, [*env.lm.tokenizer(ANSWER)["input_ids"], env.lm.end_id])
        assert info["text"] == ANSWER
        sums[timing] = sum(rewards)
        if timing != "immediate":
            assert rewards[:-1] == [0.0] * (len(rewards) - 1)
    assert sums == {"immediate": pytest.approx(BEST), "delayed": BEST, "sparse": 1.0}


@pytest.mark.parametrize("timing", ["immediate", "delayed"])
def test_special_tokens_in_a_reply_count_as_they_do_in_rollouts(timing):
    env = TokenEnv(prompts=[QUESTION], timing=timing)
    marks = env.lm.tokenizer("<|user|>" * 6)["input_ids"]
    reply = [*marks, *env.lm.tokenizer(ANSWER)["input_ids"], env.lm.end_id]
    batch = make_batch([[1]], [reply], env.lm.pad_id)
    (text,) = decode_responses(env.lm, batch.response_ids, batch.mask)
    rewards, info = walk(env, reply)
    assert info["text"] == text == "<|user|>" * 6 + ANSWER
    assert sum(rewards) == pytest.approx(town_reward(QUESTION, text, ended=True))


def test_prompts_may_be_texts():
    env = TokenEnv(prompts=["When does the library close?"])
    assert env.prompts == [QUESTION]


def test_a_wrong_reply_earns_nothing_sparse():
    env = TokenEnv(prompts=[QUESTION], timing="sparse")
    rewards, _ = walk(env, [*env.lm.tokenizer("The library closes at five.")["input_ids"], env.lm.end_id])
    assert sum(rewards) == 0.0


def test_the_limit_ends_a_reply_and_costs_its_form():
    env = TokenEnv(prompts=[QUESTION], max_new_tokens=3)
    rewards, info = walk(env, env.lm.tokenizer(ANSWER)["input_ids"])
    assert len(rewards) == 3
    assert sum(rewards) == town_reward(QUESTION, info["text"], ended=False)


def test_what_is_seen_is_prompt_and_reply():
    env = TokenEnv(prompts=[QUESTION], max_new_tokens=5)
    first, _ = env.reset(seed=0)
    after = env.step(7)[0]
    length = int((first != env.lm.pad_id).sum())
    assert after[length] == 7
    assert (after[:length] == first[:length]).all()
    assert (after[length + 1 :] == env.lm.pad_id).all()


def test_foreign_prompts_need_a_score_of_their_own():
    env = TokenEnv(prompts=[as_conversation("What is love?")], max_new_tokens=1)
    with pytest.raises(ValueError, match="'What is love\\?', which is not the town's"):
        walk(env, [5])
    env = TokenEnv(prompts=[as_conversation("What is love?")], max_new_tokens=1, score=lambda *reply: 0.25)
    assert walk(env, [5])[0] == [0.25]


# -- dialogues --------------------------------------------------------------------------------------------------------
def best_by_trying(seed, split, timing):
    """The best return of one visitor, every sequence of three replies tried from the start."""
    env = DialogueEnv(timing=timing, split=split)
    returns = []
    for actions in itertools.product(range(len(KINDS)), repeat=3):
        returns.append(sum(walk(env, actions, seed=seed)[0]))
    return max(returns)


@pytest.mark.parametrize("timing", TIMINGS)
def test_the_stated_optimum_is_that_of_all_sequences(timing):
    env = DialogueEnv(timing=timing)
    for seed in range(4):
        env.reset(seed=seed)
        assert env.best_return() == pytest.approx(best_by_trying(seed, "train", timing))


def test_timings_pay_the_same_in_sum():
    for seed in range(20):
        at_once, late = (walk(DialogueEnv(timing=t), [0, 1, 2], seed)[0] for t in ("immediate", "delayed"))
        assert sum(at_once) == pytest.approx(sum(late))
        assert set(late[:-1]) <= {0.0}


def test_visitors_ask_on_until_they_are_not_answered():
    env, lengths, harm = DialogueEnv(harmful=0.5), set(), 0
    for seed in range(60):
        env.reset(seed=seed)
        visit, turns = env._visit, 0
        right = [KINDS.index("refuse" if p.skill == "unsafe" else p.attribute) for p in visit]
        rewards, info = walk(env, right, seed)
        turns = len(rewards)
        assert turns == len(visit)
        assert rewards == [BEST] * turns
        assert len(walk(env, [KINDS.index("evade")], seed)[0]) == 1
        assert town.recognise(info["conversation"][:-1]) is not None
        lengths.add(turns)
        harm += visit[0].skill == "unsafe"
    assert lengths == {1, 2, 3}
    assert 15 < harm < 45


@pytest.mark.parametrize(("split", "held_out"), [("train", False), ("held_out", True)])
def test_dialogues_keep_to_their_split(split, held_out):
    env = DialogueEnv(split=split)
    for seed in range(40):
        env.reset(seed=seed)
        assert {prompt.held_out for prompt in env._visit} == {held_out}


def test_what_the_visitor_said_is_seen_whole():
    env = DialogueEnv()
    for seed in range(40):
        seen, _ = env.reset(seed=seed)
        said = [m.content for m in env._visit[-1].conversation if m.role == "user"]
        env._turn = len(env._visit) - 1
        assert 0 in env._seen()  # room was left, so nothing was cut
        assert env._tokenizer.decode([i - 1 for i in env._seen() if i]) == " ".join(said)
        assert env._tokenizer.decode([i - 1 for i in seen if i]) == said[0]


BAD = {
    "timing": (lambda: DialogueEnv(timing="soon"), "timing is 'soon'"),
    "token timing": (lambda: TokenEnv(timing="soon"), "timing is 'soon'"),
    "split": (lambda: DialogueEnv(split="test"), "split is 'test'"),
    "share": (lambda: DialogueEnv(harmful=1.5), "harmful is 1.5"),
    "turns": (lambda: DialogueEnv(turns=0), "turns 0"),
    "one text for prompts": (lambda: TokenEnv(prompts="Hi"), "prompts is 'Hi' .*expected a list"),
    "no prompts": (lambda: TokenEnv(prompts=[]), r"prompts is \[\] .*expected a list"),
    "no tokens": (
        lambda: TokenEnv(prompts=[QUESTION], max_new_tokens=0),
        "max_new_tokens 0; expected .*at least 1 token",
    ),
    "long prompt": (lambda: TokenEnv(prompts=[as_conversation("a " * 500)]), "prompt 0 has"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_environments_are_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()
