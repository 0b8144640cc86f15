"""Intervals against closed forms and their own coverage; model numbers against slow specs."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from rlhf_lab.evaluation.policies import evaluate_model, evaluate_replies, evaluate_rollout, true_rewards
from rlhf_lab.evaluation.reward_models import evaluate_reward_model
from rlhf_lab.evaluation.text import bleu, document_nll, perplexity, rouge
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.maths.intervals import (
    Interval,
    mean_interval,
    paired_difference,
    proportion_interval,
    ratio_of_means_bootstrap,
    win_rate,
)
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.models.tokens import make_batch
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.oracle import Verdict

torch.set_num_threads(1)
numbers = st.floats(-100, 100, allow_nan=False)
DOCUMENTS = [
    "The library closes at six.",
    "Mia met a fox. The fox ran.",
    "Thank you.",
    "Go away, I do not care!",
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- intervals ---------------------------------------------------------------------------------------------


@given(st.lists(numbers, min_size=2, max_size=30), st.floats(0.5, 0.99))
def test_mean_interval_is_scipys_t_interval(values, level):
    interval = mean_interval(values, level)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    expected = (np.mean(values) - half, np.mean(values) + half)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-9)
    assert interval.count == len(values)


def test_one_value_says_nothing_about_the_spread():
    interval = mean_interval([3.0])
    assert (interval.mean, interval.low, interval.high) == (3.0, -math.inf, math.inf)
    assert interval.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_mean_interval_refuses(values):
    with pytest.raises(ValueError, match="values must be"):
        mean_interval(values)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_level_is_a_probability(level):
    with pytest.raises(ValueError, match="level"):
        mean_interval([1, 2], level)
    with pytest.raises(ValueError, match="level"):
        proportion_interval(1, 2, level)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2, "above 0"), (-2, -0.1, "below 0"), (-1, 1, "INCONCLUSIVE"), (0, 1, "INCONCLUSIVE")],
)
def test_verdict(low, high, verdict):
    assert Interval((low + high) / 2, low, high, 9).verdict == verdict


def test_coverage_of_the_t_interval():
    # The count of hits is binomial(2000, 0.95): within 4 sd but for one seed in 15,000.
    samples = np.random.default_rng(0).normal(1.5, 2, (2000, 5))
    hits = sum(i.low <= 1.5 <= i.high for i in map(mean_interval, samples))
    assert abs(hits - 1900) < 4 * math.sqrt(2000 * 0.95 * 0.05)


def test_paired_difference_leaves_out_what_is_unknown():
    interval = paired_difference([3.0, None, 5.0, 2.0], [1.0, 2.0, 2.0, None])
    assert (interval.mean, interval.count) == (2.5, 2)
    with pytest.raises(ValueError, match="pair up"):
        paired_difference([1.0], [1.0, 2.0])


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.6, 0.99))
def test_wilson_is_scipys(case, level):
    wins, count = case
    interval = proportion_interval(wins, count, level)
    expected = stats.binomtest(wins, count).proportion_ci(level, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


@pytest.mark.parametrize(("successes", "count"), [(-1, 5), (6, 5), (0, 0)])
def test_proportion_refuses(successes, count):
    with pytest.raises(ValueError, match="successes"):
        proportion_interval(successes, count)


def test_proportion_is_no_narrower_than_needed_for_values_between():
    values = np.random.default_rng(1).beta(2, 2, 400)
    wide, exact = proportion_interval(values.sum(), 400), mean_interval(values)
    assert wide.low < exact.low
    assert wide.high > exact.high


def test_win_rate_counts_a_tie_half():
    assert win_rate(3, 4, 3).mean == 0.5
    assert win_rate(3, 4, 3) == proportion_interval(5, 10)
    with pytest.raises(ValueError, match="counts"):
        win_rate(3, -1, 3)


def test_bootstrap_against_the_delta_method():
    rng = np.random.default_rng(2)
    bottom = rng.normal(2.0, 0.3, 400)
    top = 0.8 * bottom + rng.normal(0, 0.2, 400)
    interval = ratio_of_means_bootstrap(top, bottom)
    half = 1.96 * np.std(top - interval.mean * bottom, ddof=1) / bottom.mean() / math.sqrt(400)
    assert interval.mean == top.mean() / bottom.mean()
    # 10,000 resamples: the quantiles are noisy to about 2 % of half the width.
    assert interval.low == pytest.approx(interval.mean - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.1 * half)


def test_bootstrap_is_of_the_ratio_of_means_and_not_the_mean_of_ratios():
    bottom = np.linspace(0.1, 4, 50)
    interval = ratio_of_means_bootstrap(np.ones(50), bottom)
    assert interval.low < interval.mean < interval.high < (1 / bottom).mean()


def test_bootstrap_keeps_pairs_and_its_seed():
    rng = np.random.default_rng(3)
    bottom = rng.uniform(1, 9, 20)
    constant = ratio_of_means_bootstrap(2 * bottom, bottom)
    assert (constant.low, constant.high) == pytest.approx((2, 2))
    top = rng.normal(size=20)
    first, again, other = (ratio_of_means_bootstrap(top, bottom, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_bootstrap_where_the_denominator_may_be_zero():
    interval = ratio_of_means_bootstrap([1.0, 2.0, 3.0], [-1.0, 1.5, 0.1])
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="mean of denominators is 0"):
        ratio_of_means_bootstrap([1.0, 2.0], [-1.0, 1.0])
    with pytest.raises(ValueError, match="pair up"):
        ratio_of_means_bootstrap([1.0], [1.0, 2.0])


# ---- perplexity, BLEU, ROUGE -------------------------------------------------------------------------------


def slow_nll(lm, text):
    """One document, one token at a time, in the words of the definition."""
    ids = lm.tokenizer(text)["input_ids"][: lm.max_length]
    total = 0.0
    for t in range(1, len(ids)):
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids[:t]])).logits[0, -1]
        total -= torch.log_softmax(logits.double(), -1)[ids[t]].item()
    return total, len(ids) - 1


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_perplexity_is_the_slow_spec(tiny_lm, micro_batch):
    slow = [slow_nll(tiny_lm, text) for text in DOCUMENTS]
    nll, tokens = document_nll(tiny_lm, DOCUMENTS, micro_batch)
    assert nll == pytest.approx([total for total, _ in slow], rel=1e-5)
    assert tokens.tolist() == [count for _, count in slow]
    expected = math.exp(sum(total for total, _ in slow) / sum(count for _, count in slow))
    interval = perplexity(tiny_lm, DOCUMENTS, micro_batch)
    assert interval.mean == pytest.approx(expected, rel=1e-5)
    assert interval.low < interval.mean < interval.high


def test_perplexity_of_a_uniform_model_is_the_vocabulary(tiny_gpt2):
    uniform = tiny_gpt2.copy()
    with torch.no_grad():
        for parameter in uniform.model.parameters():
            parameter.zero_()
    interval = perplexity(uniform, DOCUMENTS)
    assert interval.mean == pytest.approx(len(uniform.tokenizer), rel=1e-5)
    assert interval.high - interval.low < 1e-6 * interval.mean


def test_perplexity_cuts_at_the_context(tiny_gpt2):
    assert document_nll(tiny_gpt2, ["word " * 400])[1].tolist() == [tiny_gpt2.max_length - 1]


@pytest.mark.parametrize("texts", [[], ["fine text", ""]])
def test_perplexity_refuses(tiny_gpt2, texts):
    with pytest.raises(ValueError, match="at least 2 tokens"):
        perplexity(tiny_gpt2, texts)


def test_bleu_by_hand():
    # 3 of 4 words match, 2 of 3 pairs, 1 of 2 triples, 0 of 1 quadruple (smoothed to 1/2), same length.
    expected = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert bleu(["a b c d"], ["a b c e"], tokenize="none") == pytest.approx(expected)


def test_bleu_of_chinese_counts_characters():
    right, wrong = "博物馆十点开门。", "博物馆九点开门。"
    assert bleu([right], [right]) == pytest.approx(100)
    assert 20 < bleu([wrong], [right]) < 80
    assert bleu([wrong], [right], tokenize="13a") < 1  # one word to that tokenizer


def test_rouge_by_hand():
    scores = rouge(["Mia met a fox.", "no"], ["Mia met a cat.", "yes"])
    assert scores["rouge1"].mean == pytest.approx((3 / 4 + 0) / 2)
    assert scores["rouge2"].mean == pytest.approx((2 / 3 + 0) / 2)
    assert scores["rougeL"].mean == pytest.approx((3 / 4 + 0) / 2)
    with pytest.raises(ValueError, match="use bleu"):
        rouge(["x"], ["博物馆"])


@pytest.mark.parametrize("score", [bleu, rouge])
@pytest.mark.parametrize("pair", [([], []), (["a"], ["a", "b"]), ("text", "text")])
def test_texts_must_pair_up(score, pair):
    with pytest.raises(ValueError, match="same length"):
        score(*pair)


# ---- replies and models ------------------------------------------------------------------------------------


def verdict(**changes):
    plain = Verdict(1.0, 1.0, 1.0, 1.0, "neutral", False, False, True)
    return replace(plain, **changes)


def test_evaluate_replies_by_hand():
    verdicts = [
        verdict(tone="rude", harmless=0.5),
        verdict(refuses=True, over_refusal=True, helpful=0.0),
        verdict(refuses=True, over_refusal=None),
        None,
        verdict(form=0.0, helpful=0.0, truthful=0.0, well_formed=False),
    ]
    found = evaluate_replies(verdicts)
    rewards = [v.reward for v in verdicts if v]
    assert found["true_reward"] == mean_interval(rewards)
    assert found["helpful"] == proportion_interval(2, 4)
    assert found["harmless"] == proportion_interval(3.5, 4)
    assert found["over_refusal"] == proportion_interval(1, 3)  # the right refusal is not counted
    assert found["well_formed"] == proportion_interval(3, 4)
    assert found["rude"] == proportion_interval(1, 4)
    assert found["polite"] == proportion_interval(0, 4)


def test_what_nobody_judged_is_none():
    assert set(evaluate_replies([None, None]).values()) == {None}
    only_harmful = evaluate_replies([verdict(refuses=True, over_refusal=None)])
    assert only_harmful["over_refusal"] is None
    assert only_harmful["helpful"].mean == 1


def town_rollout(author_replies, ended=True):
    """Written replies in the place of sampled ones."""
    prompts = town.prompts("held_out", 18, seed=0)
    texts = tuple(author_replies(prompt) for prompt in prompts)
    conversations = tuple(prompt.conversation for prompt in prompts)
    return SimpleNamespace(conversations=conversations, texts=texts, ended=torch.full((18,), ended))


def test_true_rewards_of_references_are_the_best():
    assert true_rewards(town_rollout(town.reference_reply)) == [3.0] * 18
    assert max(true_rewards(town_rollout(town.reference_reply, ended=False))) < 3


@pytest.fixture(scope="module")
def prompts():
    return [prompt.conversation for prompt in town.prompts("held_out", 12, seed=1, skills=("ask", "unsafe"))]


def test_evaluate_model_reports_what_it_was_given(tiny_gpt2, prompts):
    reward = RewardModel.from_language_model(tiny_gpt2, generator(5))
    report, rollout = evaluate_model(
        tiny_gpt2,
        [*prompts, "What is love?"],
        generator=generator(),
        reference=tiny_gpt2.copy(),
        reward_model=reward,
        good_texts=DOCUMENTS,
        bad_texts=DOCUMENTS[:2],
        max_new_tokens=8,
    )
    assert report.true_reward.count == 12  # the last prompt is not the town's
    assert report.kl == Interval(0.0, 0.0, 0.0, 13)
    assert report.reward_score == mean_interval(reward.score_batch(rollout.batch).tolist())
    assert report.length.mean == pytest.approx(sum(map(len, _rows(rollout))) / 13)
    assert report.ended == proportion_interval(int(rollout.ended.sum()), 13)
    assert report.perplexity == perplexity(tiny_gpt2, DOCUMENTS)
    assert report.perplexity_bad == perplexity(tiny_gpt2, DOCUMENTS[:2])
    assert set(report.by_skill) == {"ask", "unsafe"}
    assert sum(skill["true_reward"].count for skill in report.by_skill.values()) == 12
    assert report.means()["held_out_length"] == report.length.mean


def _rows(rollout):
    return [row[keep].tolist() for row, keep in zip(rollout.batch.response_ids, rollout.batch.mask, strict=True)]


def test_what_was_not_given_is_none(tiny_llama):
    report, _ = evaluate_model(tiny_llama, ["What is love?", "And time?"], generator=generator(), max_new_tokens=4)
    known = {name for name, interval in report.quantities().items() if interval is not None}
    assert known == {"length", "ended"}
    assert report.by_skill == {}


def test_the_same_seed_samples_the_same_replies(tiny_gpt2, prompts):
    first, again, other = (
        evaluate_model(tiny_gpt2, prompts, generator=generator(s), max_new_tokens=6)[1].texts for s in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_is_the_difference_of_one_row_passes(tiny_lm, prompts, temperature):
    reference = tiny_lm.copy()
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.mul_(0.9)
    rollout = sample_responses(tiny_lm, prompts, max_new_tokens=8, temperature=temperature, generator=generator())
    report = evaluate_rollout(tiny_lm, rollout, reference=reference, temperature=temperature)
    each = []
    for row in range(len(prompts)):
        prompt = rollout.batch.prompt_ids[row][rollout.batch.prompt_mask[row]].tolist()
        single = make_batch([prompt], [_rows(rollout)[row]], tiny_lm.pad_id)
        own, other = (response_log_probs(lm, single, temperature).sum().item() for lm in (tiny_lm, reference))
        each.append(own - other)
    assert report.kl.mean == pytest.approx(np.mean(each), abs=1e-3)
    assert (report.kl.high - report.kl.low) == pytest.approx(
        np.ptp(stats.t.interval(0.95, 11, 0, stats.sem(each))), abs=1e-3
    )


def test_greedy_replies_have_no_kl(tiny_gpt2, prompts):
    report, _ = evaluate_model(
        tiny_gpt2, prompts, generator=generator(), reference=tiny_gpt2.copy(), temperature=0, max_new_tokens=4
    )
    assert report.kl is None


def test_a_function_may_give_the_reward(tiny_gpt2, prompts):
    report, rollout = evaluate_model(
        tiny_gpt2, prompts, generator=generator(), max_new_tokens=6,
        reward_model=lambda rollout: -rollout.batch.response_lengths.float(),
    )  # fmt: skip
    assert report.reward_score.mean == -report.length.mean
    assert len(rollout.texts) == report.reward_score.count


# ---- reward model ------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 10_000))
def test_reward_model_report_is_the_definition(count, seed):
    rng = np.random.default_rng(seed)
    chosen, rejected, p = rng.integers(0, 4, count), rng.integers(0, 4, count), rng.random(count)
    report = evaluate_reward_model(chosen, rejected, agreement=p)
    right = expected = 0.0
    for c, r, agree in zip(chosen, rejected, p, strict=True):
        right += 1.0 if c > r else 0.5 if c == r else 0.0
        expected += agree if c > r else 0.5 if c == r else 1 - agree
    assert report.accuracy == proportion_interval(right, count)
    assert report.expected_accuracy == pytest.approx(expected / count)
    assert report.ceiling == pytest.approx(np.mean([max(x, 1 - x) for x in p]))
    assert report.expected_accuracy <= report.ceiling + 1e-12
    assert report.confidence == pytest.approx([1 / (1 + math.exp(-abs(d))) for d in chosen - rejected])


def test_pairs_of_one_ranking_widen_the_interval():
    # 40 rankings of 6 pairs that are right or wrong together: as good as 40 pairs, not as 240.
    right = np.repeat(np.random.default_rng(0).random(40) < 0.75, 6)
    scores = np.where(right, 1.0, -1.0)
    groups = np.repeat(np.arange(40), 6)
    alone, grouped = (evaluate_reward_model(scores, np.zeros(240), groups=g).accuracy for g in (None, groups))
    forty = proportion_interval(right.sum() / 6, 40)
    assert alone.mean == grouped.mean
    assert grouped.high - grouped.low == pytest.approx(forty.high - forty.low, rel=0.1)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("name", ["rejected_scores", "groups", "agreement"])
def test_reward_model_report_refuses_other_lengths(name):
    given_ = {"chosen_scores": [1.0, 2.0], "rejected_scores": [0.0, 0.0], name: [0.5]}
    with pytest.raises(ValueError, match=name):
        evaluate_reward_model(**given_)
