"""RLOO, GRPO and Dr. GRPO: the first gradient is that of the definition, they learn, and planted faults are named."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from toy_models import PROMPTS, WORDS, word_model
from toy_runs import check_it_goes_on

from rlhf_lab.experience import rollouts, updates
from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.experience.updates import Experience, weigh_tokens
from rlhf_lab.maths.kl import kl_k1, kl_k2, kl_k3
from rlhf_lab.models.language_model import LanguageModel
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
    config = replace(FAST["grpo"], iterations=4, evaluate_every=1)
    check_it_goes_on(partial(train_group, word_model(), PROMPTS, share_of_c, config), tmp_path / "run.pt")


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
healthy = {name: getattr(group, name) for name in ("sample_responses", "response_log_probs", "group_losses")}
draw, copy = rollouts._draw, LanguageModel.copy


def sampled_at(other):
    """Replies of another temperature, with the log-probs that were kept, or scored again so that both agree."""

    def sample(policy, asked, *, again, temperature, **options):
        rollout = healthy["sample_responses"](policy, asked, temperature=other, **options)
        scored = healthy["response_log_probs"](policy, rollout.batch, temperature)
        return replace(rollout, log_probs=scored) if again else rollout

    return lambda again: partial(sample, again=again)


def top_two(logits, uniform, temperature):
    token, _ = draw(logits.where(logits >= logits.topk(2).values[:, -1:], -torch.inf), uniform, temperature)
    return token, (logits / temperature).log_softmax(-1).gather(-1, token[:, None]).squeeze(1)


def in_training_mode(policy, config, part, count):
    policy.model.train()  # and nobody turns it back
    return healthy["group_losses"](policy, config, part, count)


def with_dropout(lm):
    lm = copy(lm)
    lm.model.train()
    return lm


def at_temperature_1(logits, ids, mask, temperature):
    return token_log_probs(logits, ids, mask)


def reference_at_1(lm, batch, temperature, micro_batch):
    return healthy["response_log_probs"](lm, batch, 1.0, micro_batch)


def mask_from_ids(prompts, replies, pad_id, device):
    batch = make_batch(prompts, replies, pad_id, device)
    return replace(batch, mask=batch.response_ids != pad_id)


def score_at(column):
    def token_rewards(scores, kl_penalty, mask):
        rewards = torch.cat([kl_penalty, torch.zeros(len(mask), 1)], dim=1)
        rewards[torch.arange(len(mask)), column(mask)] += scores
        return rewards[:, :-1]

    return token_rewards


def leashed(change):
    def losses(policy, config, part, count):
        found = healthy["group_losses"](policy, config, part, count)
        return replace(found, leash=change(found.leash))

    return losses


def leash_in_both(policy, config, part, count):
    return healthy["group_losses"](policy, replace(config, leash="k3"), part, count)


class MovingReference:
    """Scores the reference's replies by the policy of now."""

    def sample(self, policy, asked, **options):
        self.policy = policy
        return healthy["sample_responses"](policy, asked, **options)

    def score(self, lm, *rest):
        return healthy["response_log_probs"](self.policy, *rest)


LONG = {"max_new_tokens": 24}  # the bets need tokens: 4 replies an iteration
FAULTS = {  # what is replaced -> by what; recipe and settings; the name and words of the cause
    "another temperature": (
        {"sample_responses": sampled_at(1.4)(False)}, "rloo", {}, "initial_kl: .*sampling used temperature 1.4 where"),
    "hotter, scored again": (
        {"sample_responses": sampled_at(1.4)(True)}, "rloo", LONG, "sampled_law: .*temperature (1.5|2) explains"),
    "cooler, scored again": (
        {"sample_responses": sampled_at(0.35)(True)}, "grpo", LONG, "sampled_law: .*temperature 0.[57].* explains"),
    "top-k, scored again": ({"_draw": top_two}, "rloo", LONG, "sampled_law: .*top-k 2 explains"),
    "training pass at 1": (
        {"token_log_probs": at_temperature_1}, "grpo", {}, "first_minibatch: .*scoring used temperature 1 where 0.7"),
    "reference at 1": (
        {"response_log_probs": reference_at_1}, "grpo", {}, "initial_kl: .*scoring used temperature 1 where 0.7"),
    "dropout in training": ({"group_losses": in_training_mode}, "rloo", {}, "first_minibatch: .*dropout is on"),
    "dropout in scoring": ({"copy": with_dropout}, "rloo", {}, "initial_kl: .*dropout is on"),
    "pad is end": ({"make_batch": mask_from_ids}, "rloo", {}, "mask: .*comparing token ids with the pad id"),
    "score at the limit": (
        {"token_rewards": score_at(lambda mask: torch.full((len(mask),), mask.shape[1] - 1))}, "rloo", {},
        "score_counted_once: .*written to padding"),
    "score behind the mask": (
        {"token_rewards": score_at(lambda mask: mask.sum(1))}, "grpo", {}, "score_counted_once: .*lost under the mask"),
    "score one token early": (
        {"token_rewards": score_at(lambda mask: (mask.sum(1) - 2).clamp(min=0))}, "rloo", {},
        "score_place: .*written too early"),
    "k1 where k3 was declared": ({"k3": kl_k1}, "grpo", {}, "leash_in_loss: .*k1 in the loss"),
    "no leash in the loss": ({"group_losses": leashed(lambda leash: None)}, "grpo", {}, "leash_in_loss: .*is absent"),
    "no leash in the reward": ({"kl_k1": lambda p, q: torch.zeros_like(p)}, "rloo", {}, "leash: .*is absent"),
    "wrong sign in the loss": ({"group_losses": leashed(torch.neg)}, "grpo", {}, "leash_in_loss: .*Cause: the sign"),
    "wrong sign in the reward": ({"kl_k1": lambda p, q: q - p}, "rloo", {}, "leash: .*wrong way round"),
    "twice in the loss": (
        {"group_losses": leashed(lambda leash: 2 * leash)}, "dr_grpo", {}, "leash_in_loss: .*counts 2 times"),
    "twice in the reward": ({"kl_k1": lambda p, q: 2 * (p - q)}, "rloo", {}, "leash: .*coefficient is 0.2, 0.1 was"),
    "in the reward and in the loss": ({"group_losses": leash_in_both}, "rloo", {}, "leash_in_loss: .*counts twice"),
    "the reference is the policy": ({"copy": lambda lm: lm}, "rloo", {}, "reference_apart: .*is the policy itself"),
    "the reference moves along": (
        {"sample_responses": (moving := MovingReference()).sample, "response_log_probs": moving.score}, "grpo", {},
        "reference_still: .*follows the policy"),
}  # fmt: skip
PLACES = {"_draw": rollouts, "make_batch": rollouts, "token_log_probs": updates, "copy": LanguageModel}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stops_the_run_and_is_named(fault, monkeypatch):
    planted, name, changes, words = FAULTS[fault]
    for part, instead in planted.items():
        if part in group.ESTIMATORS:
            monkeypatch.setitem(group.ESTIMATORS, part, instead)
        else:
            monkeypatch.setattr(PLACES.get(part, group), part, instead)
    lm = word_model(spread=0.3)
    if fault == "pad is end":
        lm.pad_id = lm.end_id
    config = replace(FAST[name], iterations=3, **changes)
    with pytest.raises(InvariantViolation, match=rf"(?s)^{words}"):
        train_group(lm, PROMPTS, lambda rollout: 1 + share_of_c(rollout), config)


def test_without_a_fault_nothing_fires_on_the_same_replies():
    """The statistical checks err once in 1,000 runs; these are three."""
    for name in FAST:
        lm = word_model(spread=0.3)
        lm.pad_id = lm.end_id
        config = replace(FAST[name], iterations=3, **LONG)
        assert train_group(lm, PROMPTS, lambda rollout: 1 + share_of_c(rollout), config).unchecked == {}


def test_a_leash_in_the_rewards_beside_one_in_the_loss_is_named():
    lm = word_model()
    checks = group.new_checks(lm.copy(), lm, {}, FAST["grpo"])
    zero = torch.zeros(1, 2)
    with pytest.raises(InvariantViolation, match="counted twice, in the reward and in the loss"):
        checks.rewards(zero, zero[:, 0], zero, zero, zero, zero == 0, kl_coef=0.04)
    checks.rewards(zero, zero[:, 0], zero, zero, zero, zero == 0, kl_coef=0.0)


def test_a_leash_of_0_may_be_left_out(monkeypatch):
    monkeypatch.setattr(group, "group_losses", leashed(lambda leash: None))
    train_group(word_model(), PROMPTS, share_of_c, replace(FAST["grpo"], iterations=2, kl_coef=0.0))


def test_dropout_in_a_reference_is_named_as_such():
    lm = word_model()
    reference = with_dropout(lm)
    with pytest.raises(InvariantViolation, match=r"(?s)initial_kl: .*in the reference dropout is on"):
        train_group(lm, PROMPTS, share_of_c, FAST["rloo"], reference=reference)


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
