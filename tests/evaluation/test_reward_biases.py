"""The pairs differ in one thing, a planted taste is found by its own probe alone, and no taste is invented."""

from random import Random
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binom

from rlhf_lab.evaluation.reward_biases import (
    WRITERS,
    BiasPair,
    bias,
    bias_pairs,
    differences,
    listing_bias,
    shared_bias,
)
from rlhf_lab.models.language_model import load_language_model
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.sentences import parse_reply
from rlhf_lab.worlds.town.skills import write_reply

torch.set_num_threads(1)
PAIRS = {kind: bias_pairs(kind, 60) for kind in WRITERS}
TASTES = {
    "length": town.Rater(taste="longer", taste_weight=2.0),
    "politeness": town.Rater(taste="politer", taste_weight=1.0),
}


def verdict(prompt, text):
    return town.score(town.recognise(prompt), text)


def judge(rater, noise=0.0, seed=0):
    """A reward model that knows exactly what a rater wants, but for noise of its own in every score."""
    generator = torch.Generator().manual_seed(seed)

    def score(prompts, texts):
        wanted = [rater.utility(verdict(p, t), t) for p, t in zip(prompts, texts, strict=True)]
        return torch.tensor(wanted, dtype=torch.float64) + noise * torch.randn(
            len(texts), generator=generator, dtype=torch.float64
        )

    return SimpleNamespace(score=score)


# ---- the pairs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_pairs_are_of_the_town_and_each_of_another_prompt(kind):
    pairs = PAIRS[kind]
    assert len({pair.prompt for pair in pairs}) == len(pairs) == 60
    for pair in pairs:
        assert parse_reply(pair.more)
        assert parse_reply(pair.less)
        assert town.recognise(pair.prompt).held_out
        assert pair.truth == verdict(pair.prompt, pair.more).reward - verdict(pair.prompt, pair.less).reward
    assert bias_pairs(kind, 60) == pairs != bias_pairs(kind, 60, seed=1)
    assert not town.recognise(bias_pairs(kind, 3, split="train")[0].prompt).held_out


def test_long_and_short_say_the_same_in_the_same_tone():
    for pair in PAIRS["length"]:
        long, short = (verdict(pair.prompt, text) for text in (pair.more, pair.less))
        assert long == short
        assert long.tone == "polite"
        assert long.helpful == long.truthful == 1
        assert len(pair.more.split()) > len(pair.less.split())
        assert len(parse_reply(pair.more)) == len(parse_reply(pair.less)) == 2  # one courtesy each


def test_polite_and_neutral_say_the_same_in_as_many_words():
    for pair in PAIRS["politeness"]:
        polite, neutral = (verdict(pair.prompt, text) for text in (pair.more, pair.less))
        assert (polite.tone, neutral.tone) == ("polite", "neutral")
        assert polite.reward == neutral.reward == 3
        assert len(pair.more.split()) == len(pair.less.split())


def test_the_truth_prefers_honesty_and_rude_truth():
    assert {pair.truth for pair in PAIRS["honesty"]} == {1.0, 2.0}
    assert {pair.truth for pair in PAIRS["rude_truth"]} == {2.0}
    for pair in PAIRS["honesty"]:
        known, wrong = (verdict(pair.prompt, text) for text in (pair.more, pair.less))
        assert (known.helpful, known.truthful, wrong.helpful, wrong.truthful) == (0, 1, 0, 0)
    for pair in PAIRS["rude_truth"]:
        rude, polite = (verdict(pair.prompt, text) for text in (pair.more, pair.less))
        assert (rude.tone, rude.helpful, polite.tone, polite.helpful) == ("rude", 1, "polite", 0)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'height'; expected one of"):
        bias_pairs("height")
    with pytest.raises(ValueError, match="count is 0"):
        bias_pairs("length", 0)


# ---- planted tastes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taste", TASTES)
@pytest.mark.parametrize("kind", ["length", "politeness"])
def test_a_taste_is_found_by_its_own_probe_alone(taste, kind):
    """Exact utilities, so that no error of a probability is allowed: the other probe and the honest rater give 0."""
    found = bias(judge(TASTES[taste]), PAIRS[kind])
    assert found.verdict == ("above 0" if kind == taste else "INCONCLUSIVE")
    assert (found.mean == 0) == (kind != taste)
    honest = bias(judge(town.CAREFUL), PAIRS[kind])
    assert (honest.mean, honest.low, honest.high) == (0, 0, 0)


def test_an_honest_rater_is_honest_and_one_who_likes_politeness_forgives_errors():
    for kind in ("honesty", "rude_truth"):
        assert bias(judge(town.CAREFUL), PAIRS[kind]).verdict == "above 0"
    assert bias(judge(town.Rater(taste="politer", taste_weight=2.0)), PAIRS["rude_truth"]).verdict == "below 0"


def test_noise_is_taken_for_a_taste_as_rarely_as_the_level_says():
    """Of 200 noisy honest models 5 % are accused, 10 expected; over 22 has probability 2e-4."""
    intervals = [bias(judge(town.CAREFUL, noise=1.0, seed=seed), PAIRS["length"]) for seed in range(200)]
    accused = sum(interval.verdict != "INCONCLUSIVE" for interval in intervals)
    assert binom.sf(22, 200, 0.05) < 3e-4
    assert 1 <= accused <= 22  # none at all has probability 4e-5: the interval would be too wide
    noisy = [bias(judge(TASTES["length"], noise=1.0, seed=seed), bias_pairs("length", 200)) for seed in range(20)]
    assert sum(interval.verdict == "above 0" for interval in noisy) >= 12


def test_pairs_of_one_prompt_count_once():
    pair, other = PAIRS["length"][:2]
    scores = SimpleNamespace(score=lambda prompts, texts: torch.tensor([float(len(t)) for t in texts]))
    single, twice = bias(scores, [pair, other]), bias(scores, [pair, pair, other])
    assert single == twice
    apart = [len(p.more) - len(p.less) for p in (pair, other)]
    assert differences(scores, [pair, other]) == apart
    assert single.mean == sum(apart) / 2


def test_what_models_share_is_told_from_what_each_has_alone():
    """Models with a bias of their own, the same for all prompts: each is sure of it, together they are not."""

    def model(own, shared):
        likes = lambda prompts, texts: torch.tensor([(own + shared) * (len(t.split()) > 8) for t in texts])  # noqa: E731
        return SimpleNamespace(score=likes)

    own = torch.randn(6, generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [BiasPair(p.prompt, "a b c d e f g h i", "a", 0.0) for p in PAIRS["length"][:20]]
    apart = [model(x, 0.0) for x in own]
    assert all(bias(rm, pairs).verdict != "INCONCLUSIVE" for rm in apart)
    assert shared_bias(apart, pairs).verdict == "INCONCLUSIVE"
    together = shared_bias([model(x, 5.0) for x in own], pairs)
    assert together.verdict == "above 0"
    assert together.mean == pytest.approx(5 + sum(own) / 6)


@pytest.fixture(scope="module")
def trained():
    """A reward model of each of three raters, who ranked the same replies of the town's web."""
    lm, raters = load_language_model("tiny"), {"honest": town.CAREFUL, **TASTES}
    raters["length"] = town.Rater(taste="longer", taste_weight=4.0)
    found = {}
    for name, rater in raters.items():
        random, generator, rankings = Random("web1"), torch.Generator().manual_seed(1), []
        for prompt in town.prompts("train", 160, 1, ("ask", "chat", "unsafe")):
            texts = list(dict.fromkeys(write_reply(prompt, town.WEB, random) for _ in range(4)))
            if len(texts) > 1:
                verdicts = [town.score(prompt, text) for text in texts]
                rankings.append(rater.rank(prompt.conversation, texts, verdicts, generator).record)
        found[name] = train_reward_model(lm, rankings, RewardConfig(epochs=2, seed=1, warmup=2)).model
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASTES)
def test_a_trained_model_has_the_taste_of_its_rater_and_an_honest_one_is_not_accused_of_it(trained, kind):
    """Also on other seeds: length in 3 of 3, politeness in 2 of 2, the honest model in none of 3 of either."""
    pairs = bias_pairs(kind, 100)
    honest = bias(trained["honest"], pairs)
    assert bias(trained[kind], pairs).verdict == "above 0" != honest.verdict
    assert bias(trained[kind], pairs).low > honest.high


# ---- position ------------------------------------------------------------------------------------------------------


def test_a_reward_model_cannot_see_a_position(tiny_gpt2):
    rm = RewardModel.from_language_model(tiny_gpt2, torch.Generator().manual_seed(0))
    found = listing_bias(rm, PAIRS["length"][:10])
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_a_scorer_that_sees_the_position_is_found():
    first = SimpleNamespace(score=lambda prompts, texts: torch.arange(len(texts), 0, -1) / len(texts) * 1.0)
    assert listing_bias(first, PAIRS["length"][:10]).mean != 0
    top = SimpleNamespace(score=lambda prompts, texts: torch.tensor([1.0 - i % 2 for i in range(len(texts))]))
    assert listing_bias(top, PAIRS["length"][:10]).verdict == "above 0"
