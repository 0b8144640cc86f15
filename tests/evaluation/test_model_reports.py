"""The report of a model against slow specs: the oracle's means, scores, KL, perplexity, length."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from rlhf_lab.evaluation.policies import evaluate_model, evaluate_replies, evaluate_rollout, true_rewards
from rlhf_lab.evaluation.text import perplexity
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.maths.intervals import Interval, mean_interval, outcome_interval, proportion_interval
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.models.tokens import make_batch
from rlhf_lab.worlds import town
from rlhf_lab.worlds.town.oracle import Verdict

torch.set_num_threads(1)
DOCUMENTS = [
    "The library closes at six.",
    "Mia met a fox. The fox ran.",
    "Thank you.",
    "Go away, I do not care!",
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


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
    assert found["harmless"] == outcome_interval([0.5, 1, 1, 1])
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5; expected a whole number"),
        ({"temperature": "1"}, "temperature is '1'; expected a number"),
        ({"reward_model": lambda rollout: torch.zeros(3)}, r"what reward returned is \[3\]; expected a tensor of 2 "),
        ({"reward_model": lambda rollout: [1.0, 2.0]}, "what reward returned is 'list'"),
        ({"good_texts": "one text"}, "texts is 'one text'; expected a list of texts"),
    ],
)
def test_evaluate_model_names_what_cannot_be(tiny_gpt2, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_model(tiny_gpt2, ["When?"] * 2, generator=generator(), **({"max_new_tokens": 2} | options))
