"""Every live check passes on a healthy run and fires on the planted fault, naming its cause."""

import pytest
import torch
from toy_models import PROMPTS, sample, word_model

from rlhf_lab.experience import invariants, updates
from rlhf_lab.experience.invariants import InvariantViolation, replies
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.recipes import rlhf

torch.set_num_threads(1)
CONFIG = rlhf.RLHFConfig(
    iterations=1,
    prompts_per_iteration=32,
    minibatch_rows=16,
    max_new_tokens=8,
    temperature=0.7,
    epochs=1,
    value="policy_head",
)


def reward(rollout):
    return 1 + (rollout.batch.response_ids == 5).float().sum(1)


def train(lm=None, config=CONFIG, **options):
    return rlhf.train_rlhf(lm or word_model(), PROMPTS, reward, config, **options)


def violation(name, *phrases, **options):
    """Train with a planted fault and return the message of the violation, which must name check and cause."""
    with pytest.raises(InvariantViolation) as caught:
        train(**options)
    assert caught.value.name == name
    message = str(caught.value)
    for phrase in (*phrases, "Cause:", "Remedy:", "chapter"):
        assert phrase in message, message
    return message


# ---- planted in a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("value", ["policy_head", "reward_model"])
def test_a_healthy_run_passes(architecture, value):
    config = rlhf.RLHFConfig(**(vars(CONFIG) | {"iterations": 12, "value": value}))
    result = train(word_model(architecture), config)
    assert 0 < result.check_cost < 1


def test_scoring_at_another_temperature(monkeypatch):
    def forgotten(logits, response_ids, mask, temperature=1.0):
        return token_log_probs(logits, response_ids, mask)

    monkeypatch.setattr(updates, "token_log_probs", forgotten)
    violation("first_minibatch", "scoring used temperature 1 where 0.7 was meant")


def test_sampling_at_another_temperature(monkeypatch):
    def forgotten(lm, conversations, **options):
        return rlhf_sample(lm, conversations, **(options | {"temperature": 1.0}))

    rlhf_sample = rlhf.sample_responses
    monkeypatch.setattr(rlhf, "sample_responses", forgotten)
    violation("initial_kl", "sampling used temperature 1 where 0.7 was meant")


def test_reference_at_another_temperature(monkeypatch):
    def forgotten(lm, batch, temperature=1.0, micro_batch=64):
        return response_log_probs(lm, batch)

    monkeypatch.setattr(rlhf, "response_log_probs", forgotten)
    violation("initial_kl", "scoring used temperature 1 where 0.7 was meant")


@pytest.mark.parametrize("same_reference", [True, False])
def test_dropout_left_on(same_reference):
    lm = word_model()
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    reference = None if same_reference else lm.copy()
    if reference is not None:  # another model than the policy, so its log-probs may differ
        with torch.no_grad():
            next(reference.model.parameters()).add_(0.01)

    def evaluate(model):  # a callback that trains a little and forgets to switch back
        model.model.train()
        return {}

    name = "initial_kl" if same_reference else "rescored"
    violation(name, "dropout is on", "model.eval()", lm=lm, reference=reference, evaluate=evaluate)


def test_missing_position_ids(monkeypatch):
    def unpositioned(lm, batch):
        right = forward(lm, batch)
        logits = replies._logits_without_positions(lm, batch)
        return type(right)(logits, right.hidden)

    monkeypatch.setattr(updates, "forward", unpositioned)
    violation("first_minibatch", "scoring passed no position_ids")


def test_mask_from_token_values_where_pad_is_end(monkeypatch):
    def masked_by_value(lm, conversations, **options):
        rollout = rlhf_sample(lm, conversations, **options)
        batch = rollout.batch
        ids = batch.response_ids.masked_fill(~batch.mask, lm.end_id)
        batch = type(batch)(batch.prompt_ids, batch.prompt_mask, ids, ids != lm.end_id)
        return type(rollout)(**(vars(rollout) | {"batch": batch}))

    rlhf_sample = rlhf.sample_responses
    monkeypatch.setattr(rlhf, "sample_responses", masked_by_value)
    violation("mask", "comparing token ids with the pad id", "true end token")


def test_score_counted_twice(monkeypatch):
    def twice(scores, kl_penalty, mask):
        once = rlhf_rewards(scores, kl_penalty, mask)
        return rlhf_rewards(scores, once, mask)

    rlhf_rewards = rlhf.token_rewards
    monkeypatch.setattr(rlhf, "token_rewards", twice)
    violation("score_counted_once", "the score was counted 2 times")


def test_score_written_to_padding(monkeypatch):
    def last_column(scores, kl_penalty, mask):
        rewards = kl_penalty.clone()
        rewards[:, -1] += scores
        return rewards

    monkeypatch.setattr(rlhf, "token_rewards", last_column)
    violation("score_counted_once", "add up to 0", "written to padding")


def test_capped_reply_that_bootstraps(monkeypatch):
    monkeypatch.setattr(rlhf, "reply_discounts", lambda mask: mask.float())
    violation("discounts", "a discount of 1", "its last step", "second copy of the score")


def test_reference_that_is_no_copy(monkeypatch):
    monkeypatch.setattr(LanguageModel, "copy", lambda self: self)
    violation("reference_apart", "is the policy itself and not a copy")


def test_checks_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(rlhf, "reply_discounts", lambda mask: mask.float())
    config = rlhf.RLHFConfig(**(vars(CONFIG) | {"check_invariants": False}))
    assert train(config=config).check_cost == 0


# ---- one by one -------------------------------------------------------------------------------------------

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_tolerances_grow_with_the_rounding_error():
    tolerances = [invariants.tolerance_for(t) for t in (torch.float64, torch.float32, torch.bfloat16)]
    assert tolerances == sorted(tolerances)
    with pytest.raises(ValueError, match="dtype"):
        invariants.tolerance_for(torch.int64)


@pytest.mark.parametrize("check", ["first_minibatch", "rescored", "initial_kl"])
def test_mean_worst_and_nan_are_held_under_the_mask_only(check):
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, 30:] = False

    def run(*places):
        first = torch.zeros(2, 40)
        second = first.clone()
        for row, columns, difference in places:
            second[row, columns] = difference
        if check == "first_minibatch":
            invariants.check_first_minibatch(second, first, mask, 0.2, 1e-3)
        elif check == "rescored":
            invariants.check_rescored(second, first, mask, 1e-3)
        else:
            invariants.check_initial_kl(second, first, mask, 1e-3)

    run((0, 35, 7.0), (0, slice(30), 9e-4), (1, slice(40), -9e-4))  # the 7 is padding
    for fault in ((1, slice(40), -2.5e-3), (1, 3, -0.02), (0, 0, float("nan"))):
        with pytest.raises(InvariantViolation, match=check):
            run(fault)


def test_mask_check():
    invariants.check_mask(MASK, torch.tensor([2, 3]))
    for lengths in ([2, 2], [3, 3]):
        with pytest.raises(InvariantViolation, match="row"):
            invariants.check_mask(MASK, torch.tensor(lengths))
    with pytest.raises(InvariantViolation):  # right count, wrong place
        invariants.check_mask(torch.tensor([[False, True, True]]), torch.tensor([2]))
    with pytest.raises(ValueError, match="bool"):
        invariants.check_mask(MASK.float(), torch.tensor([2, 3]))


def test_check_padding_compares_with_rows_alone():
    lm = word_model("llama")
    rollout = sample(lm)
    invariants.check_padding(lm, rollout.batch, rollout.log_probs, 1.0, 1e-4)
    with pytest.raises(InvariantViolation, match=r"sampling used temperature 1 where 1\.5"):
        invariants.check_padding(lm, rollout.batch, rollout.log_probs, 1.5, 1e-4)


def test_diagnose_does_not_guess():
    lm = word_model()
    rollout = sample(lm)
    noisy = rollout.log_probs + 0.3 * torch.randn(rollout.log_probs.shape)
    assert invariants.diagnose(lm, rollout.batch, rollout.log_probs, noisy, 1.0) == invariants.MISMATCH_CAUSES


def test_score_check_with_a_score_of_zero():
    mask = torch.tensor([[True, True]])
    zero = torch.zeros(1, 2)
    invariants.check_score_counted_once(zero, torch.zeros(1), zero, mask, 1e-4)
    with pytest.raises(InvariantViolation, match="score_counted_once"):
        invariants.check_score_counted_once(zero + 1, torch.zeros(1), zero, mask, 1e-4)


def test_finite_check_names_quantity_and_step():
    invariants.check_finite("values", torch.ones(3), 4)
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(FloatingPointError, match="values at step 4"):
            invariants.check_finite("values", torch.tensor([1.0, bad]), 4)
