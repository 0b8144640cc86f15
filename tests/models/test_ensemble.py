"""An ensemble is its members: mean, spread, pessimism, saved and loaded whole, and the reward of a policy."""

import json
from dataclasses import replace

import pytest
import torch
from toy_models import PROMPTS, sample, score_model, word_model
from transformers import AutoModelForSequenceClassification

from rlhf_lab.models.ensemble import RewardEnsemble, load_reward_ensemble, reward_model_of
from rlhf_lab.models.language_model import ModelError
from rlhf_lab.models.reward_model import RewardModel, load_reward_model
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.training.files import CheckpointError, SaveError
from rlhf_lab.training.folders import OutputError

torch.set_num_threads(1)
TEXTS = ["a b", "c", "d d a", "", "b a c d", "c c"]
RLHF = RLHFConfig(iterations=2, prompts_per_iteration=6, minibatch_rows=6, max_new_tokens=6)


@pytest.fixture(scope="module")
def lm():
    return word_model()


@pytest.fixture(scope="module")
def ensemble(lm):
    members = tuple(score_model(lm, seed) for seed in (1, 2, 3))
    members[1].score_std = 0.5
    return RewardEnsemble(members, pessimism=0.7)


# ---- the score -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pessimism", [0.0, 0.7, 5.0])
def test_the_score_is_the_mean_less_what_disagreement_costs(lm, ensemble, pessimism):
    ensemble = replace(ensemble, pessimism=pessimism)
    by_member = [member.score(PROMPTS, TEXTS).tolist() for member in ensemble.members]
    expected = []
    for scores in zip(*by_member, strict=True):
        mean = sum(scores) / 3
        spread = (sum((s - mean) ** 2 for s in scores) / 2) ** 0.5
        expected.append(mean - pessimism * spread)
    assert ensemble.score(PROMPTS, TEXTS).tolist() == pytest.approx(expected, abs=1e-5)
    batch = ensemble.batch_of(PROMPTS, TEXTS)
    torch.testing.assert_close(ensemble.score_batch(batch, micro_batch=2), ensemble.score(PROMPTS, TEXTS))
    torch.testing.assert_close(ensemble.member_scores(batch), torch.tensor(by_member))
    torch.testing.assert_close(ensemble.spread(batch), torch.tensor(by_member).std(0))
    rollout = sample(lm)
    assert torch.equal(ensemble(rollout), ensemble.score_batch(rollout.batch))


def test_members_that_agree_and_a_single_member_are_not_feared(lm):
    one = score_model(lm)
    plain = one.score(PROMPTS, TEXTS)
    for members in ((one,), (one, one.copy())):
        ensemble = RewardEnsemble(members, pessimism=3.0)
        torch.testing.assert_close(ensemble.score(PROMPTS, TEXTS), plain)
        assert float(ensemble.spread(ensemble.batch_of(PROMPTS, TEXTS)).abs().max()) < 1e-6


def test_long_replies_are_cut_as_in_a_reward_model(lm, ensemble):
    cut = ensemble.score(PROMPTS, ["a b c d"] * 6, max_new_tokens=2)
    by_hand = torch.stack([m.score(PROMPTS, ["a b c d"] * 6, max_new_tokens=2) for m in ensemble.members])
    torch.testing.assert_close(cut, by_hand.mean(0) - 0.7 * by_hand.std(0))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": ()}, "members is .*; expected a tuple of reward models, at least one"),
        ({"members": ("a",)}, "members is .*; expected a tuple of reward models"),
        ({"pessimism": -0.1}, "pessimism is -0.1; expected a number from 0 on"),
        ({"pessimism": "much"}, "pessimism is 'much'"),
    ],
)
def test_what_is_no_ensemble_is_refused(ensemble, change, words):
    with pytest.raises(ValueError, match=words):
        replace(ensemble, **change)


def test_members_read_the_same_tokens(ensemble):
    other = score_model(word_model(words=("<|pad|>", "<|end|>", "b", "a", "c", "d")))
    with pytest.raises(ValueError, match=r"members\[1\]"):
        RewardEnsemble((ensemble.members[0], other))


# ---- files ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(ensemble, tmp_path):
    for _ in range(2):  # what it wrote itself it may replace
        ensemble.save(tmp_path / "judges")
    loaded = load_reward_ensemble(tmp_path / "judges")
    assert torch.equal(loaded.score(PROMPTS, TEXTS), ensemble.score(PROMPTS, TEXTS))
    assert (len(loaded), loaded.pessimism, loaded.score_std) == (3, 0.7, ensemble.score_std)
    for i in range(3):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "judges" / f"member_{i}")
        load_reward_model(tmp_path / "judges" / f"member_{i}")


def test_it_is_saved_whole_or_not_at_all(ensemble, tmp_path, monkeypatch):
    ensemble.save(tmp_path / "judges")
    save, calls = RewardModel.save, []

    def fails_at_the_second(self, folder, half=False):
        calls.append(1)
        if len(calls) == 2:
            raise SaveError("no space left")
        save(self, folder, half)

    monkeypatch.setattr(RewardModel, "save", fails_at_the_second)
    with pytest.raises(SaveError):
        replace(ensemble, members=ensemble.members[::-1]).save(tmp_path / "judges")
    assert torch.equal(load_reward_ensemble(tmp_path / "judges").members[0].model.score.weight,
                       ensemble.members[0].model.score.weight)  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["judges"]


def test_folders_of_others_are_left_alone(ensemble, tmp_path):
    ensemble.members[0].save(tmp_path / "single")
    with pytest.raises(OutputError, match="holds a model, and this would be a reward ensemble"):
        ensemble.save(tmp_path / "single")
    with pytest.raises(ModelError, match=r"holds no ensemble\.json; give a folder that RewardEnsemble\.save wrote"):
        load_reward_ensemble(tmp_path / "single")
    ensemble.save(tmp_path / "judges")
    note = tmp_path / "judges" / "ensemble.json"
    for text in ("{", json.dumps({"members": 2, "pessimism": 0.0}), "[]"):
        note.write_text(text)
        with pytest.raises(ModelError, match=r"ensemble\.json is damaged"):
            load_reward_ensemble(tmp_path / "judges")


def test_a_copy_is_independent(ensemble):
    copy = ensemble.copy()
    with torch.no_grad():
        copy.members[0].model.score.weight += 1
    assert not torch.equal(copy.score(PROMPTS, TEXTS), ensemble.score(PROMPTS, TEXTS))
    assert copy.pessimism == ensemble.pessimism


# ---- the reward of a policy ----------------------------------------------------------------------------------------


def test_a_policy_learns_from_it_with_a_value_model_from_its_first_member(lm, ensemble):
    run = train_rlhf(lm, PROMPTS, ensemble, RLHF)
    assert isinstance(run.value, RewardModel)
    as_function = train_rlhf(lm, PROMPTS, lambda rollout: ensemble(rollout), RLHF, value_init=ensemble.members[0])
    assert run.history == as_function.history
    other = train_rlhf(lm, PROMPTS, lambda rollout: ensemble(rollout), RLHF, value_init=ensemble.members[1])
    assert run.history != other.history
    assert reward_model_of(ensemble) is ensemble.members[0]
    assert reward_model_of(lambda rollout: 0) is None


def test_a_run_goes_on_with_the_ensemble_it_began_with_and_no_other(lm, ensemble, tmp_path):
    file = tmp_path / "run.pt"
    train_rlhf(lm, PROMPTS, ensemble, RLHF, checkpoint=file)
    train_rlhf(lm, PROMPTS, ensemble, RLHF, checkpoint=file)
    with pytest.raises(CheckpointError, match="the input reward differs"):
        train_rlhf(lm, PROMPTS, replace(ensemble, members=ensemble.members[:2]), RLHF, checkpoint=file)
    with pytest.raises(CheckpointError, match="the input reward differs"):
        train_rlhf(lm, PROMPTS, replace(ensemble, pessimism=0.0), RLHF, checkpoint=file)


def test_an_ensemble_of_other_tokens_is_refused(ensemble):
    policy = word_model(words=("<|pad|>", "<|end|>", "b", "a", "c", "d"))
    with pytest.raises(ValueError, match="the reward model"):
        train_rlhf(policy, PROMPTS, ensemble, RLHF)
