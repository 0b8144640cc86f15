"""The settings of a run follow the size of the model, and a run whose rates are too high stops with the remedy."""

import pytest

from rlhf_lab.__main__ import main
from rlhf_lab.demo.first_words import opening
from rlhf_lab.demo.settings import SCALES, recipes_for, scale_for, sft_steps
from rlhf_lab.maths.intervals import Share
from rlhf_lab.recipes.reward import RewardConfig
from rlhf_lab.recipes.rlhf import RLHFConfig
from rlhf_lab.recipes.sft import SFTConfig
from rlhf_lab.training.optimisers import OptimiserConfig


def test_the_shipped_model_keeps_the_defaults_of_the_recipes():
    sft, reward, rlhf = recipes_for(scale_for(948_992))
    assert (sft, reward) == (SFTConfig(), RewardConfig())
    assert rlhf == RLHFConfig(optimiser=OptimiserConfig(kl_limit=rlhf.optimiser.kl_limit))
    assert 0.05 < rlhf.optimiser.kl_limit < 1.0  # between what is healthy and what was seen to destroy a model


@pytest.mark.parametrize("parameters", [9_999_999, 10_000_000, 99_999_999, 100_000_000, 10**12])
def test_rates_fall_as_the_model_grows(parameters):
    smaller, larger = scale_for(parameters // 100), scale_for(parameters)
    for name in ("sft_rate", "reward_rate", "policy_rate", "value_rate"):
        assert getattr(larger, name) <= getattr(smaller, name)
    assert larger is [scale for scale in SCALES if scale.parameters <= parameters][-1]


def test_a_factor_of_all_rates():
    whole, tenth = (recipes_for(SCALES[-1], rates=factor) for factor in (1.0, 0.1))
    for one, other in zip(whole, tenth, strict=True):
        assert other.learning_rate == pytest.approx(one.learning_rate / 10)
    assert tenth[2].value_learning_rate == pytest.approx(whole[2].value_learning_rate / 10)


@pytest.mark.parametrize(
    ("most", "demonstrations", "rows", "epochs", "steps"),
    [(100, 54, 16, 3, 11), (5, 54, 16, 3, 5), (100, 1, 16, 3, 1), (100, 4000, 128, None, 100)],
)
def test_few_demonstrations_are_not_passed_over_without_end(most, demonstrations, rows, epochs, steps):
    assert sft_steps(most, demonstrations, rows, epochs) == steps


@pytest.mark.parametrize("loss", [0.69, 0.70, 2.0, None])
def test_a_reward_model_that_is_too_sure_is_said(loss):
    first = opening(900, False, Share(0.7, 0.6, 0.8, 90), loss)
    assert ("do not suffice" in first) == (loss is not None and loss > 0.693)


def test_rates_that_are_too_high_stop_the_demo_with_the_remedy(tmp_path, capsys):
    small = "--labels 20 --sft-steps 1 --iterations 2 --prompts 8 --reply-tokens 8 --evaluation-prompts 8 --texts 4"
    assert main(["demo", *small.split(), "--rates", "300", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr()
    assert "948,992 parameters: learning rates" in said.out
    assert "--rates 0.1" in said.err
