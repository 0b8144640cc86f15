"""DPO: the gradient is that of the definition, the start is the reference, and preferences are learned."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from toy_models import PROMPTS, word_model
from toy_runs import check_it_goes_on

from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.maths.objectives import dpo_loss
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.models.tokens import encode_prompts, encode_responses, make_batch
from rlhf_lab.recipes import direct
from rlhf_lab.recipes.direct import DPOConfig, preference_gradient, reference_log_probs, train_dpo
from rlhf_lab.recipes.reward_data import prepare_feedback
from rlhf_lab.records import Comparison, Ranking, Rating

torch.set_num_threads(1)
CONFIG = DPOConfig(records_per_step=4, micro_batch=2, max_new_tokens=8, evaluate_every=100, warmup=0)
RANKINGS = [
    Ranking(PROMPTS[0], ("a", "c c", "b"), ((1,), (0, 2)), "done"),
    Ranking(PROMPTS[1], ("c", "d d d"), ((0,), (1,)), "done"),
]
FEEDBACK = [*RANKINGS, Comparison(PROMPTS[2], "c c", "a b")]


def changed(lm, by=0.05):
    lm, generator = lm.copy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return lm


def gradient(lm):
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()])


def prepared(lm, weights=None):
    return prepare_feedback(lm, FEEDBACK, "bradley_terry", CONFIG.max_new_tokens, weights=weights).judged


def by_the_definition(policy, reference, temperature=0.7, beta=0.1, weights=(1, 1, 1)):
    """Loss and gradient in float64, a token at a time: records alike, pairs of a record alike."""
    policy.model.double(), reference.model.double()

    def log_prob(model, prompt, reply):
        total = 0.0
        for t, token in enumerate(reply):
            logits = model(torch.tensor([prompt + reply[:t]])).logits[0, -1] / temperature
            total = total + torch.log_softmax(logits, -1)[token]
        return total

    said = [(0, [(1, 0), (1, 2)]), (1, [(0, 1)]), (2, [(0, 1)])]
    loss = 0.0
    for (row, pairs), weight in zip(said, weights, strict=True):
        record = FEEDBACK[row]
        texts = (record.chosen, record.rejected) if isinstance(record, Comparison) else record.replies
        [prompt] = encode_prompts(policy, [record.prompt])
        replies = encode_responses(policy, texts, CONFIG.max_new_tokens)
        ratio = [log_prob(policy.model, prompt, r) - log_prob(reference.model, prompt, r).detach() for r in replies]
        for b, w in pairs:
            loss = loss - weight * torch.nn.functional.logsigmoid(beta * (ratio[b] - ratio[w])) / len(pairs) / len(said)
    parts = torch.autograd.grad(loss, list(policy.model.parameters()))
    return float(loss.detach()), torch.cat([g.flatten() for g in parts])


@pytest.mark.parametrize("weights", [None, (2.0, 0.5, 0.5)])
def test_the_gradient_is_that_of_the_definition(weights):
    reference, policy = word_model(), changed(word_model())
    judged = prepared(policy, weights)
    known = reference_log_probs(reference, judged, CONFIG.temperature)
    policy.model.requires_grad_(True)
    numbers = preference_gradient(policy, judged, known, CONFIG)
    got = gradient(policy)
    loss, expected = by_the_definition(policy.copy(), reference.copy(), weights=weights or (1, 1, 1))
    assert numbers["loss"] == pytest.approx(loss, abs=1e-5)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-3)


def test_order_and_micro_batches_change_nothing():
    results = []
    for order, micro_batch in (([0, 1, 2], 3), ([0, 1, 2], 1), ([2, 0, 1], 2)):
        policy = changed(word_model())
        policy.model.requires_grad_(True)
        judged = [prepared(policy)[i] for i in order]
        known = reference_log_probs(word_model(), judged, 0.7)
        numbers = preference_gradient(policy, judged, known, replace(CONFIG, micro_batch=micro_batch))
        results.append((list(numbers.values()), gradient(policy)))
    for numbers, found in results[1:]:
        assert numbers == pytest.approx(results[0][0], abs=1e-5)
        torch.testing.assert_close(found, results[0][1], atol=1e-6, rtol=1e-4)


def test_it_starts_at_the_reference_and_learns_what_was_preferred():
    lm = word_model()
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    result = train_dpo(lm, FEEDBACK, replace(CONFIG, epochs=30, learning_rate=1e-2))
    first, last = result.history.rows[0], result.history.rows[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["chosen"] == pytest.approx(0, abs=1e-5) == pytest.approx(first["rejected"], abs=1e-5)
    assert last["loss"] < 0.5
    assert last["accuracy"] == 1
    assert all(torch.equal(before[name], weight) for name, weight in lm.model.state_dict().items())
    prompts, (c, a) = encode_prompts(lm, [PROMPTS[2]] * 2), encode_responses(lm, ["c c", "a b"], 8)
    batch = make_batch(prompts, [c, a], lm.pad_id)
    gain = (response_log_probs(result.model, batch, 0.7) - response_log_probs(lm, batch, 0.7)).sum(1)
    assert gain[0] > gain[1] + 3


def test_another_reference_is_another_loss():
    lm = word_model()
    result = train_dpo(lm, FEEDBACK, CONFIG, reference=changed(lm))
    assert result.history.rows[0]["loss"] != pytest.approx(math.log(2), abs=1e-4)


def test_what_forms_no_pair_is_counted_and_nothing_at_all_is_refused(capsys):
    rating = Rating(PROMPTS[0], "a", 3.0, 1.0, 5.0)
    assert train_dpo(word_model(), [*FEEDBACK, rating], CONFIG).reasons == {"Rating": 1}
    with pytest.raises(ValueError, match="without a pair"):
        train_dpo(word_model(), [rating], CONFIG)
    with pytest.raises(ValueError, match="beta"):
        DPOConfig(beta=0.0)


def test_a_reply_is_scored_once_however_many_pairs_it_is_in(monkeypatch):
    rows = []
    monkeypatch.setattr(
        direct, "forward", lambda lm, batch, of=direct.forward: rows.append(len(batch)) or of(lm, batch)
    )
    train_dpo(word_model(), RANKINGS[:1], CONFIG)
    assert rows == [3]  # of two pairs


def test_it_resumes_bit_for_bit(tmp_path):
    config = replace(CONFIG, epochs=4, evaluate_every=1)
    check_it_goes_on(partial(train_dpo, word_model(), FEEDBACK, config), tmp_path / "run.pt")


# -- planted faults ---------------------------------------------------------------------------------------------------
healthy, log_probs_of = direct.reference_log_probs, direct.token_log_probs


def with_dropout(lm):
    lm = lm.copy()
    lm.model.train()
    return lm


def of_the_next_reply(lm, judged, temperature):
    return [known.roll(1) for known in healthy(lm, judged, temperature)]


FAULTS = {  # what is replaced -> by what; the name and words of the cause
    "reference at 1": (
        {"reference_log_probs": lambda lm, judged, at: healthy(lm, judged, 1.0)},
        "rescored: .*the reference's pass used temperature 1 where 0.7",
    ),
    "policy at 1": (
        {"token_log_probs": lambda logits, ids, mask, at: log_probs_of(logits, ids, mask)},
        "rescored: .*the training pass used temperature 1 where 0.7",
    ),
    "no reference in the loss": (
        {"dpo_loss": lambda c, r, ref_c, ref_r, beta: dpo_loss(c, r, 0 * ref_c, 0 * ref_r, beta)},
        "initial_loss: .*the reference is missing",
    ),
    "reference of other replies": ({"reference_log_probs": of_the_next_reply}, "rescored: .*the reference's pass"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stops_the_run_and_is_named(fault, monkeypatch):
    planted, words = FAULTS[fault]
    for part, instead in planted.items():
        monkeypatch.setattr(direct, part, instead)
    with pytest.raises(InvariantViolation, match=rf"(?s)^{words}"):
        train_dpo(word_model(), FEEDBACK, CONFIG)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_dropout_is_named_in_policy_and_reference_and_nothing_without(precision):
    lm = replace(word_model(), precision=precision)
    with pytest.raises(InvariantViolation, match=r"(?s)rescored: got .* the training pass .*dropout is on"):
        train_dpo(with_dropout(lm), FEEDBACK, CONFIG, reference=lm)
    with pytest.raises(InvariantViolation, match=r"(?s)rescored: got .* the reference's pass .*dropout is on"):
        train_dpo(lm, FEEDBACK, CONFIG, reference=with_dropout(lm))
    for reference in (None, changed(lm)):
        train_dpo(lm, FEEDBACK, CONFIG, reference=reference)


def test_the_check_is_made_once_before_the_first_step(monkeypatch):
    losses, check = [], direct.check_start

    def keep(lm, reference, config, batch, log_probs, known, of_pairs):
        losses.append(of_pairs)
        check(lm, reference, config, batch, log_probs, known, of_pairs)

    monkeypatch.setattr(direct, "check_start", keep)
    train_dpo(word_model(), FEEDBACK, replace(CONFIG, epochs=3))
    [first] = losses
    torch.testing.assert_close(first, torch.full_like(first, math.log(2)))
