"""Faults planted in the loop of `train_rlhf`, one at a time: each is named by the live check that looks at it."""

import dataclasses
import signal

import pytest
import torch
from toy_models import PROMPTS, score_model, word_model

from rlhf_lab.experience import invariants, rollouts, updates
from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.experience.live import LiveChecks
from rlhf_lab.maths.objectives import clipped_surrogate_objective, clipped_value_loss, reinforce_objective
from rlhf_lab.models import tokens
from rlhf_lab.models.foreign import render_chat
from rlhf_lab.models.scoring import token_log_probs
from rlhf_lab.recipes import ppo, reinforce, rlhf
from rlhf_lab.training.files import load_checkpoint
from rlhf_lab.training.optimisers import OptimiserConfig

torch.set_num_threads(1)
CONFIG = {
    "iterations": 2, "prompts_per_iteration": 24, "minibatch_rows": 12, "micro_batch": 12, "max_new_tokens": 8,
    "epochs": 2, "value": "policy_head", "learning_rate": 3e-2, "kl_coef": 0.1,
}  # fmt: skip


def reward(rollout):  # the word d is common, so that scores differ
    return 1 + (rollout.batch.response_ids == 5).float().sum(1)


def train(reward=reward, **changes):
    options = {name: changes.pop(name) for name in ("reference", "evaluate", "checkpoint") if name in changes}
    return rlhf.train_rlhf(word_model(), PROMPTS, reward, rlhf.RLHFConfig(**(CONFIG | changes)), **options)


def top_two(logits, uniform, temperature):
    """Top-k, and the log-probs scored again with all tokens: the commonest fault of teaching codes."""
    least = logits.topk(2).values[:, -1:]
    token, _ = rollouts_draw(logits.where(logits >= least, -torch.inf), uniform, temperature)
    return token, (logits / temperature).log_softmax(-1).gather(-1, token[:, None]).squeeze(1)


def early(scores, kl_penalty, mask):
    rewards = kl_penalty.clone()
    rewards[torch.arange(len(mask)), (mask.sum(1) - 2).clamp(min=0)] += scores
    return rewards


def no_next_value(rewards, values, discounts, mask, lam):
    return invariants.rewards._gae(rewards, torch.zeros_like(values), discounts, mask, lam).float() - values[:, :-1]


def to_itself(log_probs, old, advantages, epsilon):
    return clipped_surrogate_objective(log_probs, log_probs.detach(), advantages, epsilon)


def with_kl(log_probs, old, advantages, epsilon):
    return clipped_surrogate_objective(log_probs, old, advantages, epsilon) - 0.1 * log_probs


def over_padding(advantages, mask):
    return (advantages - advantages.mean()) / advantages.std()


def shifted(logits, ids, mask, temperature=1.0):
    return token_log_probs(logits.roll(1, dims=1), ids, mask, temperature)


rollouts_draw = rollouts._draw
FAULTS = {
    "top-k, scored again": ("sampled_law", rollouts, "_draw", top_two, {"iterations": 30, "learning_rate": 1e-3}),
    "score one token early": ("score_place", rlhf, "token_rewards", early, {"kl_coef": 0.0}),
    "no leash": ("leash", rlhf, "kl_k1", lambda p, q: torch.zeros_like(p), {}),
    "k1 the wrong way round": ("leash", rlhf, "kl_k1", lambda p, q: q - p, {}),
    "k3 in the reward": ("leash", rlhf, "kl_k1", lambda p, q: (q - p).exp() - 1 - (q - p), {}),
    "no next value": ("advantages", rlhf, "gae", no_next_value, {}),
    "whitened over padding": ("whitening", rlhf, "masked_whiten", over_padding, {}),
    "climbs the loss": ("surrogate", updates, "clipped_surrogate_objective",
                        lambda *a: -clipped_surrogate_objective(*a), {}),
    "no gradient": ("surrogate", updates, "clipped_surrogate_objective",
                    lambda p, *a: clipped_surrogate_objective(p.detach(), *a) + 0 * p, {}),
    "ratio to itself": ("surrogate", updates, "clipped_surrogate_objective", to_itself, {}),
    "nothing is clipped": ("surrogate", updates, "clipped_surrogate_objective",
                           lambda p, old, a, e: (p - old).exp() * a, {"learning_rate": 0.1, "clip_epsilon": 0.05}),
    "an undeclared KL": ("surrogate", updates, "clipped_surrogate_objective", with_kl, {}),
    "mean over the padding": ("surrogate", updates, "masked_mean", lambda x, mask, count: x.mean(), {}),
    "entropy, the wrong sign": ("bonus", updates, "entropy",
                                lambda z: (z.softmax(-1) * z.log_softmax(-1)).sum(-1), {"entropy_coef": 0.1}),
    "values pushed away": ("value_loss", updates, "clipped_value_loss", lambda *a: -clipped_value_loss(*a), {}),
    "logits off by one": ("first_minibatch", updates, "token_log_probs", shifted, {}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault, monkeypatch):
    name, place, part, planted, changes = FAULTS[fault]
    monkeypatch.setattr(place, part, planted)
    with pytest.raises(InvariantViolation) as caught:
        train(**changes)
    assert caught.value.name == name, caught.value


@pytest.mark.parametrize("changes", [{}, {"entropy_coef": 0.1}, {"kl_coef": 0.0}, {"value": "reward_model"}], ids=str)
def test_without_a_fault_nothing_fires(changes):
    """Statistical checks err once in 1,000 runs; these are four."""
    result = train(**(changes | {"iterations": 12}))
    assert 0 < result.check_cost < 1
    assert result.unchecked == {}


def test_a_reference_that_moves():
    reference = word_model().copy()

    def evaluate(model):  # a moving average of the policy, as some codes keep one
        with torch.no_grad():
            for ours, theirs in zip(model.model.parameters(), reference.model.parameters(), strict=True):
                theirs.lerp_(ours, 0.5)
        return {}

    with pytest.raises(InvariantViolation, match="reference_still"):
        train(reference=reference, evaluate=evaluate, evaluate_every=1)


def test_scores_of_other_rows(monkeypatch):
    right = rlhf.scores_of
    monkeypatch.setattr(rlhf, "scores_of", lambda reward, rollout: right(reward, rollout).roll(1))
    with pytest.raises(InvariantViolation, match="scores:"):
        train(score_model(word_model()))


def test_a_random_reward_is_said():
    generator = torch.Generator().manual_seed(0)
    noisy = train(lambda rollout: torch.randn(len(rollout), generator=generator))
    assert "whenever it is asked" in noisy.unchecked["scores"]


def test_scores_cached_by_prompt(monkeypatch):
    known = {}

    def cached(scores, rollout, state):
        return torch.stack([known.setdefault(p, s) for p, s in zip(rollout.conversations, scores, strict=True)])

    monkeypatch.setattr(rlhf, "remembered", cached)
    with pytest.raises(InvariantViolation, match="scores:"):
        train()


def test_gradients_that_pile_up(monkeypatch):
    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=True: None)
    with pytest.raises(InvariantViolation, match="fresh_gradient"):
        train()


def test_the_bets_go_on_after_a_pause(tmp_path):
    calls, file = [], tmp_path / "run.pt"

    def evaluate(model):
        calls.append(model)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return {}

    def rounds():
        train(iterations=4, checkpoint=file, evaluate=evaluate, evaluate_every=1)
        return load_checkpoint(file)["extra"]["sampled_law"]["rounds"]

    assert (rounds(), rounds()) == (2, 4)


def test_logits_that_were_not_kept_are_said():
    lm = word_model()
    rollout = rollouts.sample_responses(lm, PROMPTS[:2], max_new_tokens=3, generator=torch.Generator().manual_seed(0))
    checks = LiveChecks(lm, lm.copy(), 1.0, 3, {})
    checks.rollout(0, rollout, torch.zeros(2), rollout.log_probs, rollout.log_probs)
    assert "not kept" in checks.unchecked["sampled_law"]


def test_kept_logits_are_those_that_sampled():
    lm = word_model()
    options = {"max_new_tokens": 6, "temperature": 0.7, "batch_size": 2, "keep_logits": 3}
    rollout = rollouts.sample_responses(lm, PROMPTS, generator=torch.Generator().manual_seed(0), **options)
    few = rollout.batch.select(torch.arange(3))
    width = few.mask.shape[1]
    assert rollout.logits.shape[:2] == (3, rollout.batch.mask.shape[1])
    again = token_log_probs(rollout.logits[:, :width], few.response_ids, few.mask, 0.7)
    assert torch.equal(again, rollout.log_probs[:3, :width])


def test_gradients_that_are_lost_between_micro_batches(monkeypatch):
    healthy = rlhf.clipped_losses

    def forgetful(policy, *rest, **options):
        policy.model.zero_grad()
        return healthy(policy, *rest, **options)

    monkeypatch.setattr(rlhf, "clipped_losses", forgetful)
    with pytest.raises(InvariantViolation, match="kept_gradient"):
        train(micro_batch=4)


def test_a_prompt_without_its_header(monkeypatch):
    lm = word_model()
    lm.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}d{% endif %}"
    )
    monkeypatch.setattr(
        tokens, "render_chat", lambda tokenizer, conversation: render_chat(tokenizer, conversation, False)
    )
    with pytest.raises(InvariantViolation, match="prompts: got prompt 0"):
        rlhf.train_rlhf(lm, PROMPTS, reward, rlhf.RLHFConfig(**CONFIG))
    monkeypatch.undo()
    rlhf.train_rlhf(lm, PROMPTS, reward, rlhf.RLHFConfig(**CONFIG))


def test_advantages_that_were_not_shuffled(monkeypatch):
    class Unshuffled(updates.Experience):
        def select(self, rows):
            part = super().select(rows)
            return dataclasses.replace(part, advantages=self.advantages[: len(rows), : part.advantages.shape[1]])

    monkeypatch.setattr(rlhf, "Experience", Unshuffled)
    with pytest.raises(InvariantViolation, match="minibatch: got advantages"):
        train()


def test_ends_that_were_misread(monkeypatch):
    healthy = rlhf.sample_responses

    def misread(*arguments, **options):
        return dataclasses.replace(rollout := healthy(*arguments, **options), ended=~rollout.ended)

    monkeypatch.setattr(rlhf, "sample_responses", misread)
    with pytest.raises(InvariantViolation, match="mask:"):
        train()


def test_a_ppo_agent_that_climbs_its_loss_is_named(monkeypatch):
    monkeypatch.setattr(ppo, "clipped_surrogate_objective", lambda *a: -clipped_surrogate_objective(*a))
    config = ppo.PPOConfig(total_steps=64, environments=2, steps=32, minibatch=32)
    with pytest.raises(InvariantViolation, match="surrogate"):
        ppo.train_ppo("CartPole-v1", config)


def test_a_reinforce_agent_that_climbs_its_loss_is_named(monkeypatch):
    monkeypatch.setattr(reinforce, "reinforce_objective", lambda *a: -reinforce_objective(*a))
    config = reinforce.ReinforceConfig(iterations=1, episodes=2, max_steps=20)
    with pytest.raises(InvariantViolation, match="surrogate"):
        reinforce.train_reinforce("CartPole-v1", config)


def test_rates_that_throw_the_policy_off_stop_the_run_with_a_remedy():
    limited = OptimiserConfig(kl_limit=0.18)
    with pytest.raises(InvariantViolation, match=r"(?s)first_updates: got .* nats a token.*--rates 0\.1"):
        train(learning_rate=1.0, optimiser=limited)
    train(learning_rate=1.0)
    train(learning_rate=1e-3, optimiser=limited)


def test_an_update_that_goes_far_later_on_is_the_runs_own_business(monkeypatch):
    seen = []
    monkeypatch.setattr(invariants, "check_first_updates", lambda kl, limit: seen.append(limit))
    train(iterations=5, optimiser=OptimiserConfig(kl_limit=0.1))
    assert seen == [0.1] * 3 * 4  # three iterations of two epochs of two minibatches
