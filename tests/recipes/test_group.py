"""RLOO, GRPO and Dr. GRPO: the first gradient is that of the definition, they learn, and planted faults are named."""

import signal
from dataclasses import replace

import pytest
import torch
from toy_models import PROMPTS, WORDS, word_model

from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.experience.updates import Experience, weigh_tokens
from rlhf_lab.maths.kl import kl_k1, kl_k2, kl_k3
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import make_batch
from rlhf_lab.recipes import group
from rlhf_lab.recipes.group import DR_GRPO, GRPO, RLOO, GroupConfig, train_group

torch.set_num_threads(1)
SMALL = {"iterations": 16, "prompts_per_iteration": 12, "max_new_tokens": 6, "learning_rate": 1e-2}
SMALL |= {"missing_end_penalty": 0.0, "evaluate_every": 100}
FAST = {"rloo": replace(RLOO, **SMALL), "grpo": replace(GRPO, **SMALL), "dr_grpo": replace(DR_GRPO, **SMALL)}
KL = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def share_of_c(rollout):
    batch = rollout.batch
    return ((batch.response_ids == WORDS.index("c")) & batch.mask).float().sum(1) / batch.response_lengths


def moved(lm, by=0.1):
    lm, generator = lm.copy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return lm


def loss_by_the_definition(lm, reference, batch, scores, config):
    """A reply and a token at a time, on the first step, where the ratio is 1 and its gradient that of log pi."""
    log_probs = token_log_probs(forward(lm, batch).logits, batch.response_ids, batch.mask, config.temperature)
    with torch.no_grad():
        ref_log_probs = response_log_probs(reference, batch, config.temperature)
    lengths, size = batch.response_lengths, config.replies
    rewards = scores.clone()
    if config.leash == "reward":
        rewards -= config.kl_coef * (log_probs - ref_log_probs).sum(1).detach()
    loss, tokens = 0.0, int(lengths.sum())
    for row in range(len(batch)):
        first = row // size * size
        mine, group_of = rewards[row], rewards[first : first + size]
        advantage = mine - (group_of.sum() - mine) / (size - 1)
        if config.baseline == "group":
            advantage = (mine - group_of.mean()) / (group_of.std() + 1e-4 if config.scale else 1)
        over = {
            "tokens": tokens,
            "replies": len(batch) * int(lengths[row]),
            "limit": len(batch) * config.max_new_tokens,
        }
        for t in range(int(lengths[row])):
            term = -advantage * log_probs[row, t]
            if config.leash != "reward":
                term = term + config.kl_coef * KL[config.leash](log_probs[row, t], ref_log_probs[row, t])
            loss = loss + term / over[config.mean]
    return loss


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("rloo", {}),
        ("rloo", {"mean": "tokens", "kl_coef": 1.0}),
        ("grpo", {"kl_coef": 0.5}),
        ("grpo", {"kl_coef": 0.5, "leash": "k2"}),
        ("grpo", {"kl_coef": 0.5, "leash": "k1", "check_invariants": False}),
        ("dr_grpo", {"kl_coef": 0.5}),
        ("dr_grpo", {"mean": "tokens"}),
    ],
)
def test_the_first_gradient_is_that_of_the_definition(name, changed, monkeypatch):
    taken, accumulate = [], group.accumulate_gradient

    def keep(losses, part, micro_batch, **options):
        result = accumulate(losses, part, micro_batch, **options)
        gradient = torch.cat([p.grad.flatten() for p in losses.args[0].model.parameters()])
        taken.append((part.batch, gradient))
        return result

    monkeypatch.setattr(group, "accumulate_gradient", keep)
    sizes = {"iterations": 1, "epochs": 1, "prompts_per_iteration": 4, "minibatch_rows": 16, "micro_batch": 3}
    config = replace(FAST[name], **sizes | changed)
    policy, reference = moved(word_model()), word_model()
    monkeypatch.setattr(group, "minibatches", lambda count, *given: [torch.arange(count)])  # in order
    train_group(policy, PROMPTS, share_of_c, config, reference=reference)
    [(batch, gradient)] = taken
    scores = share_of_c(type("Replies", (), {"batch": batch}))
    lm = policy.copy()
    lm.model.requires_grad_(True)
    loss = loss_by_the_definition(lm, reference, batch, scores, config)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(lm.model.parameters()))])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("name", FAST)
def test_it_learns_and_the_leash_holds_it(name):
    free = train_group(word_model(), PROMPTS, share_of_c, replace(FAST[name], kl_coef=0.0))
    held = train_group(word_model(), PROMPTS, share_of_c, replace(FAST[name], kl_coef=2.0))
    scores = free.history.column("score")[1]
    assert scores[0] < 0.25
    assert scores[-3:].mean() > 0.6
    assert held.history.last("kl") < 0.5 * free.history.last("kl")
    assert abs(free.history.rows[1]["policy_loss"]) < 1e-2 or FAST[name].epochs > 1


def test_equal_rewards_teach_nothing_and_are_counted():
    before = word_model()
    result = train_group(before, PROMPTS, lambda rollout: torch.ones(len(rollout)), replace(
        FAST["grpo"], iterations=2, kl_coef=0.0
    ))  # fmt: skip
    assert result.history.column("equal_groups")[1].tolist() == [1, 1]
    pairs = zip(before.model.parameters(), result.model.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_resumes_bit_for_bit(tmp_path):
    def run(checkpoint, stop_after=None):
        calls = []

        def evaluate(model):
            calls.append(model)
            if len(calls) - 1 == stop_after:
                signal.raise_signal(signal.SIGINT)
            return {"norm": float(sum(p.detach().norm() for p in model.model.parameters()))}

        config = replace(FAST["grpo"], iterations=4, evaluate_every=1)
        return train_group(word_model(), PROMPTS, share_of_c, config, evaluate=evaluate, checkpoint=checkpoint)

    whole = run(None)
    assert run(tmp_path / "run.pt", stop_after=2).interrupted
    assert run(tmp_path / "run.pt").history == whole.history


@pytest.mark.parametrize("mean", ["tokens", "replies", "limit"])
def test_weights_make_the_other_means(mean):
    batch = make_batch([[5], [6, 7], [8]], [[1, 2, 3], [4], [5, 6]], 0)
    values = torch.arange(9.0).view(3, 3) + 1
    part = weigh_tokens(Experience(batch, torch.zeros(3, 3), values), mean, limit=10)
    rows = [[1, 2, 3], [4], [7, 8]]
    expected = {
        "tokens": sum(map(sum, rows)) / 6,
        "replies": sum(sum(row) / len(row) for row in rows) / 3,
        "limit": sum(map(sum, rows)) / 30,
    }
    assert float((part.advantages * batch.mask).sum() / 6) == pytest.approx(expected[mean])


# -- planted faults ---------------------------------------------------------------------------------------------------
def test_k1_in_the_loss_is_no_leash_and_is_named():
    with pytest.raises(InvariantViolation, match=r"(?s)leash_in_loss.*k1 in the loss"):
        train_group(word_model(), PROMPTS, share_of_c, replace(FAST["grpo"], leash="k1"))


def test_another_estimate_than_declared_is_named(monkeypatch):
    monkeypatch.setitem(group.ESTIMATORS, "k3", kl_k2)
    with pytest.raises(InvariantViolation, match=r"(?s)leash_in_loss.*another estimate \(k2\)"):
        train_group(moved(word_model()), PROMPTS, share_of_c, FAST["grpo"], reference=word_model())


def test_a_baseline_over_the_whole_batch_is_named(monkeypatch):
    monkeypatch.setattr(group, "advantages_of", lambda groups, config: groups - groups.mean())
    with pytest.raises(InvariantViolation, match=r"(?s)groups.*along the other axis"):
        train_group(word_model(), PROMPTS, share_of_c, FAST["rloo"])


def test_prompts_in_turn_are_named(monkeypatch):
    sample = group.sample_responses

    def in_turn(policy, asked, **options):
        return sample(policy, [*asked[::4], *asked[::4], *asked[::4], *asked[::4]], **options)

    monkeypatch.setattr(group, "sample_responses", in_turn)
    with pytest.raises(InvariantViolation, match=r"(?s)groups.*repeated in turn"):
        train_group(word_model(), PROMPTS, share_of_c, FAST["rloo"])


@pytest.mark.parametrize(
    ("bad", "name"),
    [({"replies": 1}, "replies"), ({"baseline": "mean"}, "baseline"), ({"scale": True}, "scale"),
     ({"leash": "k4"}, "leash"), ({"mean": "rows"}, "mean"), ({"minibatch_rows": 97}, "minibatch_rows")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(bad, name):
    with pytest.raises(ValueError, match=name):
        GroupConfig(**bad)
