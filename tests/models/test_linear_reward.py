"""A linear reward is a mean of states, a line through it, and files that hold both."""

from dataclasses import replace

import pytest
import torch
from toy_models import PROMPTS, sample, score_model, word_model

from rlhf_lab.models.language_model import ModelError
from rlhf_lab.models.linear_reward import LinearReward, load_linear_reward, mean_states
from rlhf_lab.models.scoring import forward
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.training.folders import OutputError

torch.set_num_threads(1)
TEXTS = ["a b", "c", "d d a", "", "b a c d", "c c"]


@pytest.fixture(scope="module")
def lm():
    return word_model()


@pytest.fixture(scope="module")
def reward(lm):
    width = lm.model.config.hidden_size
    generator = torch.Generator().manual_seed(3)
    centre, weights = torch.randn(2, width, generator=generator, dtype=torch.float64)
    scale = torch.rand(width, generator=generator, dtype=torch.float64) + 0.5
    return LinearReward(lm, centre, scale, weights, torch.eye(width, dtype=torch.float64), 0.3, 2.0)


def test_the_features_are_the_mean_state_after_each_token_of_the_reply(lm, reward):
    batch = reward.batch_of(PROMPTS, TEXTS)
    hidden = forward(lm, batch).hidden.detach().double()
    for row, length in enumerate(batch.response_lengths.tolist()):
        expected = sum(hidden[row, t] for t in range(1, length + 1)) / length  # the end token counts
        torch.testing.assert_close(mean_states(lm, batch, micro_batch=4)[row], expected, rtol=1e-5, atol=1e-6)
        x = (expected - reward.centre) / reward.scale
        torch.testing.assert_close(reward.features(batch)[row], x, rtol=1e-5, atol=1e-5)
        score = (float(x @ reward.weights) - 0.3) / 2
        assert float(reward.score(PROMPTS, TEXTS)[row]) == pytest.approx(score, abs=1e-4)


def test_it_rewards_a_policy_and_neighbours_change_nothing(lm, reward):
    rollout = sample(lm)
    assert torch.equal(reward(rollout), reward.score_batch(rollout.batch))
    alone = torch.cat([reward.score_batch(rollout.batch.select(torch.tensor([i]))) for i in range(len(rollout))])
    torch.testing.assert_close(alone, reward(rollout), rtol=1e-5, atol=1e-5)
    config = RLHFConfig(iterations=1, prompts_per_iteration=6, minibatch_rows=6, max_new_tokens=6)
    assert len(train_rlhf(lm, PROMPTS, reward, config).history) == 1


def test_scores_are_brought_to_mean_0_and_deviation_1(reward):
    raw = torch.tensor([1.0, 2.0, 6.0])
    found = reward.normalised(raw)
    assert (found.score_mean, found.score_std) == (3.0, pytest.approx(7**0.5))
    with pytest.raises(ValueError, match="raw_scores holds 3 numbers"):
        reward.normalised(torch.ones(3))


def test_saved_and_loaded_it_is_the_same(reward, tmp_path):
    for _ in range(2):  # what it wrote itself it may replace
        reward.save(tmp_path / "judge")
    loaded = load_linear_reward(tmp_path / "judge")
    assert torch.equal(loaded.score(PROMPTS, TEXTS), reward.score(PROMPTS, TEXTS))
    assert torch.equal(loaded.covariance, reward.covariance)


def test_files_of_others_and_damage_are_said(lm, reward, tmp_path):
    score_model(lm).save(tmp_path / "network")
    with pytest.raises(OutputError, match="holds a model, and this would be a linear reward"):
        reward.save(tmp_path / "network")
    with pytest.raises(ModelError, match=r"holds no linear_reward\.json"):
        load_linear_reward(tmp_path / "network")
    reward.save(tmp_path / "judge")
    for name in ("linear_reward.json", "linear_reward.safetensors"):
        whole = (tmp_path / "judge" / name).read_bytes()
        for damaged in (whole[:20], whole[:-1] + bytes([whole[-1] ^ 1])):
            (tmp_path / "judge" / name).write_bytes(damaged)
            with pytest.raises(ModelError, match="is damaged"):
                load_linear_reward(tmp_path / "judge")
        (tmp_path / "judge" / name).write_bytes(whole)
    assert load_linear_reward(tmp_path / "judge").score_std == replace(reward).score_std
