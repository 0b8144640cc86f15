"""A reward model learns what it should from each form of feedback, and ends on one scale."""

import math

import pytest
import torch

from rlhf_lab.models.reward_model import load_reward_model
from rlhf_lab.recipes import reward
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.records import Choice, Comparison, Rating

torch.set_num_threads(1)
PLACES, HOURS = ("library", "museum", "zoo", "bank", "bridge", "wood"), ("six", "seven", "nine", "ten")


def config(loss, **options):
    defaults = {"epochs": 4, "rankings_per_step": 8, "warmup": 2, "learning_rate": 3e-3}
    return RewardConfig(**defaults | {"loss": loss} | options)


def asked(i):
    return f"When does the {PLACES[i % 6]} close? ({i})", f"The {PLACES[i % 6]} closes at {HOURS[i % 4]}."


def ratings(count, start=0):
    """A kind reply gets 5, a rude one 1, one without a tone 3."""
    found = []
    for i in range(start, start + count):
        prompt, fact = asked(i)
        text, score = ((f"{fact} Thank you!", 5), (f"Go away! {fact}", 1), (fact, 3))[
            i // 6 % 3
        ]  # apart from the place
        found.append(Rating(prompt, text, score, rater="ann"))
    return found


def choices(count, share_of_ties=0.5):
    """Kind before rude; two kind ones are a tie."""
    found = []
    for i in range(count):
        prompt, fact = asked(i)
        tie = i % 10 < 10 * share_of_ties
        other = f"Thank you! {fact}" if tie else f"Go away! {fact}"
        found.append(Choice(prompt, f"{fact} Thank you!", other, 0 if tie else 1))
    return found


def scores(rm, records):
    return rm.score([r.prompt for r in records], [r.reply for r in records])


def test_regression_predicts_the_rating_and_ends_on_the_common_scale(tiny_gpt2):
    train, tests = ratings(288), ratings(36, start=300)
    result = train_reward_model(tiny_gpt2, train, config("regression"), held_out=tests)
    rm = result.model
    found = scores(rm, train)
    assert float(found.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.std()) == pytest.approx(1, abs=1e-4)
    raw = scores(rm, tests) * rm.score_std + rm.score_mean
    units = torch.tensor([{1: 0.11, 3: 0.5, 5: 0.89}[r.score] for r in tests])  # Phi of -1.22, 0 and 1.22
    assert float((raw - units).abs().mean()) < 0.12
    assert result.history.last("held_out_loss") < 0.02 < 0.5 * float(units.var())
    assert "accuracy" not in result.history.names()


def test_classification_gives_the_log_odds_and_ends_on_the_common_scale(tiny_gpt2):
    train, tests = ratings(288), [r for r in ratings(54, start=300) if r.score != 3]
    result = train_reward_model(tiny_gpt2, train, config("classification"), held_out=tests)
    rm = result.model
    assert result.history.last("accuracy") >= 0.95
    raw = scores(rm, tests) * rm.score_std + rm.score_mean
    labels = torch.tensor([r.score > 3 for r in tests])
    assert float(((raw > 0) == labels).float().mean()) == pytest.approx(result.history.last("accuracy"))
    used = [r for r in train if r.score != 3]
    assert float(scores(rm, used).std()) == pytest.approx(1, abs=1e-4)
    assert result.reasons == {"Rating in the middle of its scale": 96}


def test_davidson_learns_how_often_raters_tie_and_saves_it(tiny_gpt2, tmp_path):
    found = {}
    for share in (0.2, 0.8):
        result = train_reward_model(tiny_gpt2, choices(60, share), config("davidson"))
        found[share] = result.log_nu
        assert result.log_nu == result.model.log_nu == pytest.approx(result.history.last("log_nu"))
        assert result.history.last("loss") < math.log(3)
        _, path = result.history.column("log_nu")
        ties = round(60 * share)
        assert path[0] == pytest.approx(math.log(2 * (ties + 1) / (61 - ties)), abs=0.06)  # one step from its start
        assert abs(path[-1] - path[0]) > 0.1  # and then learned
    assert found[0.2] < found[0.8]
    result.model.save(tmp_path / "rm")
    assert load_reward_model(tmp_path / "rm").log_nu == pytest.approx(result.log_nu)
    assert result.model.copy().log_nu == result.log_nu
    plain = train_reward_model(tiny_gpt2, choices(10), config("bradley_terry", epochs=1))
    assert plain.log_nu is plain.model.log_nu is None
    plain.model.save(tmp_path / "rm")
    assert load_reward_model(tmp_path / "rm").log_nu is None


def test_a_resumed_davidson_run_goes_on_with_its_log_nu(tiny_gpt2, tmp_path, monkeypatch):
    settings = config("davidson", epochs=1, validation_share=0.3, evaluate_every=2)
    straight = train_reward_model(tiny_gpt2, choices(30), settings)
    step, calls = reward.clipped_step, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise FloatingPointError("planted")
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reward, "clipped_step", failing)
        with pytest.raises(FloatingPointError):
            train_reward_model(tiny_gpt2, choices(30), settings, checkpoint=tmp_path / "run.pt")
    rest = train_reward_model(tiny_gpt2, choices(30), settings, checkpoint=tmp_path / "run.pt")
    assert rest.log_nu == straight.log_nu
    assert rest.history == straight.history


def test_a_margin_widens_the_lead(tiny_gpt2):
    feedback = [Comparison(c.prompt, c.left, c.right) for c in choices(40, share_of_ties=0.0)]
    leads = []
    for margin in (0.0, 3.0):
        rm = train_reward_model(tiny_gpt2, feedback, config("bradley_terry", margin=margin)).model
        sides = [
            rm.score([c.prompt for c in feedback], [getattr(c, n) for c in feedback]) for n in ("chosen", "rejected")
        ]
        leads.append(float((sides[0] - sides[1]).mean()) * rm.score_std)
    assert leads[1] > leads[0] + 1


@pytest.mark.parametrize("loss", ["plackett_luce", "davidson", "regression", "classification"])
def test_a_margin_is_refused_where_it_means_nothing(loss):
    with pytest.raises(ValueError, match=f"margin is 0.5; expected 0 with loss='{loss}'"):
        RewardConfig(loss=loss, margin=0.5)
    with pytest.raises(ValueError, match="margin is -1"):
        RewardConfig(margin=-1.0)
