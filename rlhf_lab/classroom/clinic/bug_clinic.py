"""The bug clinic of chapter 06: one tiny PPO, a drawer of faults to put into it, and an exact oracle for each repair.

    run = run_case("A", seed=0)            train with the fault of patient A; run.history, run.samples, run.fired
    diagnose({"A": "mask"})                score a guess, and name the sign that one should have seen
    reveal("A")                            the faulty lines
    grade("A", repair)                     compare a repair with the exact answer; an AssertionError says what is wrong
    outcome("A")                           what the fault costs, over five seeds

The world is a `TokenWorld` of two prompts and 364 songs each, so the policy is a table and every expectation a sum. One
iteration of PPO is made of `Parts`: small functions with healthy defaults. A case replaces one or two of them.
At the end of the file: `TutorialPPO`, a dialogue agent with six faults, and the six repairs.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from random import Random

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rlhf_lab.classroom.checks.compare import changed, compare, exercise, odd_tensors, same_tensors
from rlhf_lab.experience import invariants
from rlhf_lab.experience.episodes import Episodes, Runner, make_envs
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.intervals import Interval, mean_interval
from rlhf_lab.maths.kl import kl_k1, kl_k3
from rlhf_lab.maths.objectives import entropy, explained_variance
from rlhf_lab.maths.returns import gae, lambda_returns, leave_one_out_advantages, td_errors
from rlhf_lab.maths.tensors import check_data, length_mask, masked_mean, masked_sum, masked_whiten
from rlhf_lab.models.policies import draw, greedy, gru_agent
from rlhf_lab.training.history import History
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town
from rlhf_lab.worlds.envs import KINDS, DialogueEnv, write_kind

# -- the world --------------------------------------------------------------------------------------------------------
WORDS = (".", "la", "li", "lo")  # token 0 ends a song
PROMPTS = ("short, please", "a long one")
WANTED = ((1, 2, 0), (3, 2, 1, 0))
EOS, LENGTH = 0, 5
KL_COEF, ENTROPY_COEF, CLIP, LAM = 0.25, 0.03, 0.2, 0.95
ITERATIONS, EPOCHS, REPLIES, GROUP, FRAGMENT = 30, 3, 32, 4, 2
SEEDS = range(5)


def score(prompt: int, tokens: tuple[int, ...]) -> float:
    """The true reward: half a point for each right token in its place, minus a quarter for each token too many or too
    few, minus one for a song without an end."""
    wanted = WANTED[prompt]
    right = sum(a == b for a, b in zip(tokens, wanted, strict=False))
    return right / 2 - abs(len(tokens) - len(wanted)) / 4 - (tokens[-1] != EOS)


@cache
def world() -> TokenWorld:
    """Two prompts, 364 songs of at most five tokens, 121 prefixes."""
    return TokenWorld(len(WORDS), LENGTH, score, prompts=len(PROMPTS), eos=EOS)


@cache
def reference_logits() -> Tensor:
    """[2, 121, 4] the singer before training: it knows no tune, and it rarely ends a song."""
    shape = (len(PROMPTS), world().num_prefixes, len(WORDS))
    noise = torch.randn(shape, generator=generator_for(0, "singer"), dtype=torch.float64)
    return 0.5 * noise - torch.tensor([0.5, 0.0, 0.0, 0.0], dtype=torch.float64)


def song(tokens: tuple[int, ...]) -> str:
    """The words of a song, for people."""
    return " ".join(WORDS[token] for token in tokens)


@dataclass(frozen=True)
class Replies:
    """B sampled songs.

    Attributes:
        prompts, numbers: [B] which prompt, and which of the world's sequences.
        tokens: [B, T], 0 at padding (and 0 is also the end: only the lengths tell them apart).
        lengths: [B] as the sampler counted them. ended: [B] bool. scores: [B]. prefixes: [B, T].
        log_probs: [B, T] nats, of the law that sampled; 0 at padding.
    """

    prompts: Tensor
    numbers: Tensor
    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    scores: Tensor
    prefixes: Tensor
    log_probs: Tensor


def replies_of(prompts: Tensor, numbers: Tensor, logits: Tensor) -> Replies:
    """Look up everything about songs with these numbers; `logits` [2, 121, 4] are those of the sampling law."""
    w = world()
    tokens, prefixes = w.sequences[numbers], w.prefix_ids[numbers]
    found = w.lengths[numbers], w.ended[numbers], w.scores[prompts, numbers], prefixes
    return Replies(prompts, numbers, tokens, *found, _score_tokens(logits, prompts, prefixes, tokens, w.mask[numbers]))


def sample(logits: Tensor, count: int, generator: torch.Generator) -> Replies:
    """`count` songs for each prompt from the law of these logits."""
    law = world().law(logits.detach())
    numbers = torch.multinomial(law, count, replacement=True, generator=generator).flatten()
    return replies_of(torch.arange(len(law)).repeat_interleave(count), numbers, logits.detach())


def every_reply(logits: Tensor) -> tuple[Replies, Tensor]:
    """All songs for all prompts, and the probability of each under these logits."""
    law = world().law(logits)
    prompts = torch.arange(len(law)).repeat_interleave(law.shape[1])
    return replies_of(prompts, torch.arange(law.shape[1]).repeat(len(law)), logits), law.flatten()


def _score_tokens(logits, prompts, prefixes, tokens, mask) -> Tensor:
    """[B, T] log-probs of tokens; 0 where mask is False. Differentiable."""
    rows = logits[prompts[:, None], prefixes].log_softmax(-1)  # [B, T, V]
    return torch.where(mask, rows.gather(-1, tokens[..., None]).squeeze(-1), 0)


# -- the parts of one iteration, healthy ------------------------------------------------------------------------------
def same_law(logits: Tensor) -> Tensor:
    return logits


def keep_sampled(sampled: Tensor, rescored: Tensor) -> Tensor:
    return sampled


def mask_from_lengths(tokens: Tensor, lengths: Tensor) -> Tensor:
    return length_mask(lengths, tokens.shape[1])


def leash(log_ratio: Tensor) -> Tensor:
    return -KL_COEF * log_ratio


def no_kl_loss(log_ratio: Tensor) -> Tensor:
    return torch.zeros_like(log_ratio)


def score_at_last_token(scores: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    last = one_hot((mask.sum(1) - 1).clamp(min=0), mask.shape[1])
    return penalty + scores[:, None] * last


def end_at_last_token(mask: Tensor, ended: Tensor) -> Tensor:
    last = one_hot((mask.sum(1) - 1).clamp(min=0), mask.shape[1]).bool()
    return (mask & ~last).double()


def gae_of_rows(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    return gae(rewards, values, discounts, mask, LAM)


def ratio_to_sampler(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return torch.exp(log_probs - old_log_probs)


def clipped(ratio: Tensor, advantages: Tensor) -> Tensor:
    return torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


def entropy_bonus(logits: Tensor) -> Tensor:
    return ENTROPY_COEF * entropy(logits)


def token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    return masked_mean(loss, mask)


@dataclass(frozen=True)
class Parts:
    """One iteration of PPO, part by part. Each is healthy unless a case replaces it.

    Attributes:
        sampling: logits of the policy -> logits of the law that samples.
        old_log_probs: (kept from sampling, scored again) -> what the ratio is taken to.
        mask: (tokens [B, T], lengths [B]) -> [B, T] bool.
        log_ratio: (log_probs, ref_log_probs) -> [B, T], the KL sample of each token.
        penalty: log_ratio -> [B, T], the leash in the reward. kl_loss: log_ratio -> [B, T], a leash in the loss.
        rewards: (scores [B], penalty, mask) -> [B, T].
        discounts: (mask, ended [B]) -> [B, T], 0 at the end.
        advantages: (rewards, values [B, T + 1], discounts, mask) -> [B, T].
        baseline: if there is one, (totals [G, K]) -> [G, K] takes the place of advantages: no value function.
        ratio: (log_probs, old_log_probs) -> [B, T]. surrogate: (ratio, advantages) -> [B, T], to be maximised.
        bonus: logits [B, T, V] -> [B, T], to be maximised too.
        reduction: ([B, T], mask) -> a number.
    """

    sampling: Callable = same_law
    old_log_probs: Callable = keep_sampled
    mask: Callable = mask_from_lengths
    log_ratio: Callable = kl_k1
    penalty: Callable = leash
    kl_loss: Callable = no_kl_loss
    rewards: Callable = score_at_last_token
    discounts: Callable = end_at_last_token
    advantages: Callable = gae_of_rows
    baseline: Callable | None = None
    ratio: Callable = ratio_to_sampler
    surrogate: Callable = clipped
    bonus: Callable = entropy_bonus
    reduction: Callable = token_mean


@dataclass(frozen=True)
class Prepared:
    """What an iteration learns from: [B, T] each; advantages and targets should be data."""

    mask: Tensor
    old_log_probs: Tensor
    ref_log_probs: Tensor
    penalty: Tensor
    rewards: Tensor
    discounts: Tensor
    advantages: Tensor
    targets: Tensor


def prepare(parts: Parts, replies: Replies, logits: Tensor, table: Tensor) -> Prepared:
    """From replies to advantages. `table` [2, 121] holds the value of every prefix; it may require grad."""
    true_mask = length_mask(replies.lengths, LENGTH)
    mask = parts.mask(replies.tokens, replies.lengths)
    where = replies.prompts, replies.prefixes, replies.tokens, true_mask
    rescored, ref = _score_tokens(logits.detach(), *where), _score_tokens(reference_logits(), *where)
    old = parts.old_log_probs(replies.log_probs, rescored)
    penalty = torch.where(mask, parts.penalty(parts.log_ratio(old, ref)), 0)
    rewards = parts.rewards(replies.scores, penalty, mask)
    discounts = parts.discounts(mask, replies.ended)
    values = values_of(replies, table)
    if parts.baseline is None:
        advantages = parts.advantages(rewards, values, discounts, mask)
    else:
        totals = torch.where(mask, rewards, 0).sum(1).view(-1, GROUP)
        advantages = torch.where(mask, parts.baseline(totals).view(-1, 1), 0)
    targets = torch.where(mask, advantages.detach() + values[:, :-1].detach(), 0)
    return Prepared(mask, old, ref, penalty, rewards, discounts, advantages, targets)


def values_of(replies: Replies, table: Tensor) -> Tensor:
    """[B, T + 1] values; where a song is over, a value head goes on saying something, here its last value."""
    last = (replies.lengths - 1)[:, None]
    columns = torch.minimum(torch.arange(LENGTH + 1).expand(len(last), -1), last)
    return table[replies.prompts[:, None], replies.prefixes.gather(1, columns)]


def gain(parts: Parts, replies: Replies, data: Prepared, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the policy's step climbs, [B, T]; and the log-probs and ratios on the way."""
    rows = logits[replies.prompts[:, None], replies.prefixes]  # [B, T, V]
    log_probs = rows.log_softmax(-1).gather(-1, replies.tokens[..., None]).squeeze(-1)
    log_probs = torch.where(length_mask(replies.lengths, LENGTH), log_probs, 0)
    ratio = parts.ratio(log_probs, data.old_log_probs)
    leash_in_loss = parts.kl_loss(parts.log_ratio(log_probs, data.ref_log_probs))
    return parts.surrogate(ratio, data.advantages) - leash_in_loss + parts.bonus(rows), log_probs, ratio


# -- a run ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        history: a row an iteration, every number as the (faulty) code would log it.
        samples: six of the last songs, in words.
        fired: name of a live check -> (iterations in which it was violated, first message).
        logits: [2, 121, 4] the policy at the end.
        reward, kl: exact, of the policy at the end: expected score, nats from the reference.
    """

    history: History
    samples: tuple[str, ...]
    fired: dict[str, tuple[int, str]]
    logits: Tensor
    reward: float
    kl: float

    @property
    def objective(self) -> float:
        """What the run should have made as large as it can: expected score - KL_COEF KL."""
        return self.reward - KL_COEF * self.kl


def train(parts: Parts, seed: int = 0, iterations: int = ITERATIONS, epochs: int = EPOCHS) -> Run:
    """PPO on the world of songs, with these parts."""
    logits = nn.Parameter(reference_logits().clone())
    table = nn.Parameter(torch.zeros(logits.shape[:2], dtype=torch.float64))
    optimiser = torch.optim.Adam([{"params": [logits], "lr": 0.1}, {"params": [table], "lr": 0.1}], eps=1e-5)
    generator, history, fired = generator_for(seed, "clinic"), History(), {}
    for step in range(1, iterations + 1):
        replies = sample(parts.sampling(logits), REPLIES, generator)
        data = prepare(parts, replies, logits, table)
        ratios = []
        for epoch in range(epochs):
            gains, log_probs, ratio = gain(parts, replies, data, logits)
            if epoch == 0:
                for name, message in violations(replies, data, log_probs.detach(), step):
                    fired[name] = (fired.get(name, (0, ""))[0] + 1, fired.get(name, (0, message))[1])
            errors = (values_of(replies, table)[:, :-1] - data.targets).square() / 2
            loss = parts.reduction(errors / 2 - gains, data.mask)
            optimiser.zero_grad()
            loss.backward(retain_graph=data.advantages.requires_grad)  # a fault may leave a graph behind
            optimiser.step()
            ratios.append(ratio.detach())
        history.add(step=step, **vital_signs(parts, replies, data, logits.detach(), table.detach(), ratios))
    law, ref_law = world().law(logits.detach()), world().law(reference_logits())
    songs = [f"{PROMPTS[p]}: {song(world().tokens(n))}" for p, n in zip(*_few(replies), strict=True)]
    reward, kl = world().expected_reward(law).mean(), world().kl(law, ref_law).mean()
    return Run(history, tuple(songs), fired, logits.detach(), float(reward), float(kl))


def _few(replies: Replies) -> tuple[list[int], list[int]]:
    rows = [*range(3), *range(REPLIES, REPLIES + 3)]
    return replies.prompts[rows].tolist(), replies.numbers[rows].tolist()


@torch.no_grad()
def vital_signs(parts, replies: Replies, data: Prepared, logits, table, ratios) -> dict[str, float]:
    """The numbers of one iteration; over the mask that the code believes in, where a mask is needed."""
    mask = data.mask
    rows = logits[replies.prompts[:, None], replies.prefixes]
    now = _score_tokens(logits, replies.prompts, replies.prefixes, replies.tokens, length_mask(replies.lengths, LENGTH))
    before = replies.log_probs
    outside = torch.stack([((ratio - 1).abs() > CLIP).double() for ratio in ratios]).mean(0)
    values = values_of(replies, table)[:, :-1]
    return {
        "score": float(replies.scores.mean()),
        "kl": float(masked_sum(parts.log_ratio(data.old_log_probs, data.ref_log_probs), mask, dim=1).mean()),
        "entropy": float(masked_mean(entropy(rows), mask)),
        "length": float(replies.lengths.double().mean()),
        "clip_fraction": float(masked_mean(outside, mask)),
        "step_kl": float(masked_mean(kl_k3(before, now), mask)),
        "value": float(masked_mean(values, mask)),
        "explained_variance": float(explained_variance(values, data.targets, mask)),
    }


def violations(replies: Replies, data: Prepared, log_probs: Tensor, step: int):
    """(name, message) of each live check of the library that this iteration violates."""
    mask, tolerance = data.mask, invariants.tolerance_for(log_probs.dtype)
    checks = {
        "mask": lambda: invariants.check_mask(mask, replies.lengths),
        "score_counted_once": lambda: invariants.check_score_counted_once(
            data.rewards, replies.scores, data.penalty, mask, tolerance, data.discounts
        ),
        "first_minibatch": lambda: invariants.check_first_minibatch(
            log_probs, data.old_log_probs, mask, CLIP, tolerance
        ),
        "data": lambda: check_data(advantages=data.advantages),
    }
    if step == 1:
        checks["initial_kl"] = lambda: invariants.check_initial_kl(log_probs, data.ref_log_probs, mask, tolerance)
    for name, check in checks.items():
        try:
            check()
        except (invariants.InvariantViolation, ValueError) as violation:
            yield name, str(violation)


# -- exact oracles ----------------------------------------------------------------------------------------------------
@cache
def probe_logits() -> Tensor:
    """[2, 121, 4] logits at which gradients are compared: the reference, moved."""
    noise = torch.randn(reference_logits().shape, generator=generator_for(1, "probe"), dtype=torch.float64)
    return reference_logits() + 0.7 * noise


def token_gradient(replies: Replies, weights: Tensor, logits: Tensor) -> Tensor:
    """sum over tokens of weight * grad log pi(token), [2, 121, 4], from onehot - pi and without autograd."""
    w = torch.where(length_mask(replies.lengths, LENGTH), weights, 0)
    rows = (replies.prompts[:, None] * logits.shape[1] + replies.prefixes).flatten()
    flat = torch.zeros(logits.shape[0] * logits.shape[1], logits.shape[2], dtype=torch.float64)
    probabilities = logits.softmax(-1).flatten(0, 1)
    steps = (one_hot(replies.tokens, len(WORDS)).double().flatten(0, 1) - probabilities[rows]) * w.flatten()[:, None]
    return flat.index_add(0, rows, steps).view_as(logits)


def exact_values(logits: Tensor) -> Tensor:
    """[2, 121] V(prefix) under these logits: expected score and leash from there on (0 where nobody comes)."""
    replies, weights = every_reply(logits)
    mask = length_mask(replies.lengths, LENGTH)
    policy = _score_tokens(probe_logits(), replies.prompts, replies.prefixes, replies.tokens, mask)
    ref = _score_tokens(reference_logits(), replies.prompts, replies.prefixes, replies.tokens, mask)
    rewards = score_at_last_token(replies.scores, leash(policy - ref), mask)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    cells = (replies.prompts[:, None] * logits.shape[1] + replies.prefixes)[mask]
    total = lambda x: torch.zeros(logits[..., 0].numel()).double().index_add(0, cells, x[mask])  # noqa: E731
    visits, sums = total(weights[:, None].expand_as(to_go)), total(weights[:, None] * to_go)
    return torch.where(visits > 0, sums / visits.clamp(min=1e-300), 0).view(logits.shape[:2])


@cache
def true_gradient() -> Tensor:
    """Exact gradient of expected score - KL_COEF KL at the probe, plus that of the bonus of visited prefixes."""
    logits, ref_law = probe_logits(), world().law(reference_logits())
    policy, log_policy = logits.softmax(-1), logits.log_softmax(-1)
    visits = torch.zeros(logits[..., 0].numel()).double()
    replies, weights = every_reply(logits)
    mask = length_mask(replies.lengths, LENGTH)
    cells = (replies.prompts[:, None] * logits.shape[1] + replies.prefixes)[mask]
    visits = visits.index_add(0, cells, weights[:, None].expand_as(mask)[mask]).view(logits.shape[:2])
    bonus = -policy * (log_policy + entropy(logits)[..., None])  # gradient of the entropy of a softmax
    climb = world().reward_gradient(logits) - KL_COEF * world().kl_gradient(logits, ref_law)
    return climb + ENTROPY_COEF * visits[..., None] * bonus


def used_gradient(parts: Parts) -> Tensor:
    """What the first step of an iteration climbs, in the mean over all songs: [2, 121, 5].

    The last column is what the policy's objective does to the value of the prefix, and should be 0. The values are
    exact for the law that samples, so every lambda is unbiased and any difference is the fault's.
    """
    logits, table = probe_logits().clone().requires_grad_(True), exact_values(parts.sampling(probe_logits()))
    table.requires_grad_(True)
    replies, weights = every_reply(parts.sampling(probe_logits()))
    data = prepare(parts, replies, logits, table)
    gains = gain(parts, replies, data, logits)[0]
    total = (weights[:, None] * torch.where(data.mask, gains, 0)).sum()
    policy, value = torch.autograd.grad(total, (logits, table), allow_unused=True, materialize_grads=True)
    return torch.cat([policy, value[..., None]], dim=-1)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two gradients; 0 if one of them is 0."""
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-300))


# Each oracle takes parts and gives what is compared with the truth, which it gives for parts=None.
def gradient_oracle(parts: Parts | None) -> Tensor:
    """The expected gradient of the first step, by enumeration."""
    if parts is None:
        return torch.cat([true_gradient(), torch.zeros(*true_gradient().shape[:2], 1).double()], dim=-1)
    return used_gradient(parts)


def moved_oracle(parts: Parts | None) -> Tensor:
    """The expected gradient of a later step: the songs are of the probe, the policy has moved on."""
    noise = torch.randn(probe_logits().shape, generator=generator_for(2, "moved"), dtype=torch.float64)
    moved, table = (probe_logits() + 0.4 * noise).requires_grad_(True), exact_values(probe_logits())
    replies, weights = every_reply(probe_logits())
    data = prepare(parts or Parts(), replies, probe_logits(), table)
    if parts is not None:
        gains = gain(parts, replies, data, moved)[0] - gain(_only_bonus(parts), replies, data, moved)[0]
        return torch.autograd.grad((weights[:, None] * torch.where(data.mask, gains, 0)).sum(), moved)[0]
    now = _score_tokens(moved.detach(), replies.prompts, replies.prefixes, replies.tokens, data.mask)
    ratio, a = torch.exp(now - data.old_log_probs), data.advantages
    stopped = ((ratio > 1 + CLIP) & (a > 0)) | ((ratio < 1 - CLIP) & (a < 0))
    return token_gradient(replies, weights[:, None] * torch.where(stopped, 0, ratio * a), moved.detach())


def _only_bonus(parts: Parts) -> Parts:
    return Parts(surrogate=lambda ratio, advantages: torch.zeros_like(ratio), bonus=parts.bonus, kl_loss=parts.kl_loss)


def pairs_oracle(parts: Parts | None) -> Tensor:
    """The expected gradient with groups of two songs, over all pairs of songs; and constant groups, which give 0."""
    logits = probe_logits()
    law, ref_law = world().law(logits), world().law(reference_logits())
    totals = world().scores - KL_COEF * (law.log() - ref_law.log())  # [2, N]
    if parts is None:
        return torch.cat([world().score_gradient(logits, law * totals).flatten(), torch.zeros(4 + 2 * GROUP).double()])
    count = totals.shape[1]
    weights = []
    for prompt in range(len(law)):
        pairs = torch.cartesian_prod(totals[prompt], totals[prompt])  # [N * N, 2]
        advantages = torch.as_tensor(parts.baseline(pairs)).double()
        both = law[prompt].outer(law[prompt])
        first, second = (advantages[:, k].view(count, count) * both for k in range(2))
        weights.append((first.sum(1) + second.sum(0)) / 2)
    ones_and_twos = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    constant = [parts.baseline(ones_and_twos.expand(2, size).clone()).double().flatten() for size in (2, GROUP)]
    return torch.cat([world().score_gradient(logits, torch.stack(weights)).flatten(), *constant])


def rows_oracle(parts: Parts | None) -> Tensor:
    """Advantages of a random batch; the truth computes each row alone."""
    generator = generator_for(3, "rows")
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    lengths = torch.tensor([3, 1, 5, 2, 4, 5])
    mask, ended = length_mask(lengths, LENGTH), torch.tensor([True] * 5 + [False])
    rewards, values = torch.where(mask, draw(6, LENGTH), 0), draw(6, LENGTH + 1)
    discounts = end_at_last_token(mask, ended)
    if parts is not None:
        return torch.where(mask, parts.advantages(rewards, values, discounts, mask), 0)
    alone = [gae(*(x[b : b + 1] for x in (rewards, values, discounts, mask)), LAM) for b in range(6)]
    return torch.cat(alone)


def reduction_oracle(parts: Parts | None) -> Tensor:
    """The weight of every token of a batch of 24 rows in the reduced loss, which should be 1 / tokens of the batch."""
    lengths = torch.randint(1, LENGTH + 1, (24,), generator=generator_for(4, "lengths"))
    mask = length_mask(lengths, LENGTH)
    if parts is None:
        return mask.double() / mask.sum()
    loss = torch.randn(mask.shape, generator=generator_for(5, "loss"), dtype=torch.float64).requires_grad_(True)
    return torch.autograd.grad(parts.reduction(loss, mask), loss)[0]


# -- the faults -------------------------------------------------------------------------------------------------------
def descend(ratio, advantages):
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


def mask_from_tokens(tokens, lengths):
    return tokens != EOS


def score_everywhere(scores, penalty, mask):
    return penalty + scores[:, None] * mask


def score_one_early(scores, penalty, mask):
    place = one_hot((mask.sum(1) - 2).clamp(min=0), mask.shape[1])
    return penalty + scores[:, None] * place


def capped_goes_on(mask, ended):
    last = one_hot(mask.sum(1) - 1, mask.shape[1]).bool()
    return (mask & ~(last & ended[:, None])).double()


def no_next_value(rewards, values, discounts, mask):
    surprise, advantage, columns = rewards - values[:, :-1].detach(), 0.0, []
    for t in reversed(range(rewards.shape[1])):
        advantage = torch.where(mask[:, t], surprise[:, t] + LAM * discounts[:, t] * advantage, 0.0)
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


def full_buffer_is_an_end(mask, ended):
    last = one_hot(mask.sum(1) - 1, mask.shape[1]).bool()
    discounts = (mask & ~last).double()
    discounts[:, FRAGMENT - 1] = 0.0
    return discounts


def one_long_stream(rewards, values, discounts, mask):
    count = int(mask.sum())
    stream = torch.cat([values.detach()[:, :-1][mask], torch.zeros(1).double()])
    going_on, everything = torch.ones(1, count).double(), torch.ones(1, count, dtype=torch.bool)
    flat = gae(rewards[mask][None], stream[None], going_on, everything, LAM)
    return torch.zeros(mask.shape).double().masked_scatter(mask, flat)


def live_baseline(rewards, values, discounts, mask):
    targets = lambda_returns(rewards, values.detach(), discounts, mask, LAM)
    return torch.where(mask, targets - values[:, :-1], 0.0)


def cooler(logits):
    return logits / 0.6


def only_the_top_two(logits):
    least = logits.topk(2).values[..., -1:]
    return torch.where(logits >= least, logits, -torch.inf)


def ratio_to_itself(log_probs, old_log_probs):
    return torch.exp(log_probs - log_probs.detach())


def entropy_with_a_minus(logits):
    return -ENTROPY_COEF * entropy(logits)


def nothing_in_the_reward(log_ratio):
    return torch.zeros_like(log_ratio)


def k1_in_the_loss(log_ratio):
    return KL_COEF * log_ratio


def reference_over_policy(log_probs, ref_log_probs):
    return ref_log_probs - log_probs


def minus_the_group_mean(totals):
    return totals - totals.mean(dim=1, keepdim=True)


def mean_of_micro_batches(loss, mask):
    chunks = mask.sum(1).argsort(stable=True).split(8)  # rows of one length together, to save padding
    return sum(masked_mean(loss[rows], mask[rows]) for rows in chunks) / len(chunks)


# Settings in which some of the faults live.
def score_again(sampled: Tensor, rescored: Tensor) -> Tensor:
    """The log-probs kept from sampling are thrown away."""
    return rescored


def gae_of_fragments(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    """The buffer holds FRAGMENT tokens of a song; what follows is a row of its own, and the value bridges the cut."""
    pieces = []
    for start in range(0, LENGTH, FRAGMENT):
        part = slice(start, min(start + FRAGMENT, LENGTH))
        longer = slice(start, part.stop + 1)
        pieces.append(gae(rewards[:, part], values[:, longer], discounts[:, part], mask[:, part], LAM))
    return torch.cat(pieces, dim=1)


@dataclass(frozen=True)
class Case:
    """A patient.

    Attributes:
        suspect: key of `SUSPECTS`.
        part: what the repair replaces. faults: parts as they are; all of them go with the repair.
        setting: parts that stay as they are.
        cure: a healthy part.
        oracle: what a repair is graded by. means: what passing it says.
        hint: what usually causes a wrong repair; mistakes: cause -> a wrong repair.
        sign: where the fault shows in the dashboard.
    """

    suspect: str
    part: str
    faults: Mapping[str, Callable]
    cure: Callable
    oracle: Callable[[Parts | None], Tensor]
    means: str
    hint: str
    mistakes: Mapping[str, Callable]
    sign: str
    setting: Mapping[str, Callable] = field(default_factory=dict)

    def parts(self, repair: Callable | None = None) -> Parts:
        """Sick without a repair, and with it whatever the repair makes of it."""
        return Parts(**self.setting, **({self.part: repair} if repair else self.faults))


SUSPECTS = {
    "sign": "the loss has the wrong sign",
    "mask": "the mask is read off the tokens; pad and end are one id",
    "score twice": "the score is written at every token",
    "score early": "the score is written one token too early",
    "capped": "a song that hit the limit bootstraps from a value",
    "next value": "the TD error lacks the value of the next state",
    "cut is end": "a row that was cut counts as one that ended",
    "neighbours": "GAE runs across the end of a row into the next one",
    "live advantage": "advantages carry a gradient into the values",
    "temperature": "songs are sampled at 0.6 and scored at 1",
    "top-k": "songs are sampled from the two best tokens, scored with all",
    "ratio 1": "the ratio is taken to the policy itself",
    "entropy": "the entropy bonus has the wrong sign",
    "k1 in loss": "the leash is k1 in the loss",
    "log-ratio": "the log-ratio of the leash is the wrong way round",
    "group mean": "the mean of the group includes the song itself",
    "micro-batch": "the loss is averaged per micro-batch",
}
STEP = "the expected first step, over all 728 songs"
LATER = "the expected later step, over all 728 songs"
PAIRS = "the expected step of groups of two, over all pairs of songs"
ADVANTAGES = "the advantages of six random rows"
WEIGHTS = "the weight of every token in the loss"
WHAT = {
    gradient_oracle: STEP,
    moved_oracle: LATER,
    pairs_oracle: PAIRS,
    rows_oracle: ADVANTAGES,
    reduction_oracle: WEIGHTS,
}


def _place(column: Callable[[Tensor], Tensor]) -> Callable:
    """A reward part that writes the score at another column."""
    return lambda scores, penalty, mask: penalty + scores[:, None] * one_hot(column(mask), mask.shape[1])


def _advantages(errors: Callable, lam: float = LAM) -> Callable:
    """An advantage part with other TD errors or another lambda."""

    def part(rewards, values, discounts, mask):
        surprise, running, columns = errors(rewards, values.detach(), discounts), 0.0, []
        for t in reversed(range(rewards.shape[1])):
            running = torch.where(mask[:, t], surprise[:, t] + lam * discounts[:, t] * running, 0.0)
            columns.append(running)
        return torch.stack(columns[::-1], dim=1)

    return part


def _td(rewards, values, discounts):
    return rewards + discounts * values[:, 1:] - values[:, :-1]


def _chain_across(rewards, values, discounts, mask):
    """The TD errors know where a row ends; their sum does not."""
    surprise = td_errors(rewards, values, discounts, mask)[mask]
    running, stream = 0.0, []
    for error in reversed(surprise.tolist()):
        running = error + LAM * running
        stream.append(running)
    flat = torch.tensor(stream[::-1], dtype=torch.float64)
    return torch.zeros(mask.shape).double().masked_scatter(mask, flat)


MISPLACED = {
    "the score stands at every token, so a long song is paid several times": score_everywhere,
    "the score stands one token before the last, so the token that ends the song earns nothing": score_one_early,
    "the score stands in the last column, also where the song is over; there the mask removes it": _place(
        lambda mask: torch.full((len(mask),), LENGTH - 1)
    ),
    "the score stands at the first token, so all later tokens earn nothing": _place(
        lambda mask: torch.zeros(len(mask), dtype=torch.long)
    ),
    "the score is divided over the tokens; what is paid before a token does not count for it": lambda s, p, m: (
        p + s[:, None] * m / m.sum(1, keepdim=True)
    ),
    "the leash is gone: the penalty belongs to the reward of every token": lambda s, p, m: score_at_last_token(
        s, torch.zeros_like(p), m
    ),
}
ENDS = {
    "every discount is 1, so the last token bootstraps from a value beyond the song": lambda mask, ended: mask.double(),
    "every discount is 0, so no token hears of the score that comes later": lambda mask, ended: 0.0 * mask.double(),
    "a song that hit the limit goes on: its value counts as a second score": capped_goes_on,
    "a full buffer still counts as an end, so the first tokens never hear of the score": full_buffer_is_an_end,
}
GAE = {
    "the value of the next state is missing from the TD error": no_next_value,
    "the value of the state itself is missing from the TD error": _advantages(lambda r, v, d: r + d * v[:, 1:]),
    "the next value counts behind the end too: multiply it by the discount": _advantages(
        lambda r, v, d: r + v[:, 1:] - v[:, :-1]
    ),
    "the TD errors alone: nothing is accumulated": _advantages(_td, lam=0.0),
    "lambda is forgotten: the errors are added up in full": _advantages(_td, lam=1.0),
    "the sum still runs from one row into the next": one_long_stream,
    "the TD errors stop at the end of a row, their sum does not": _chain_across,
    "the sign: it is what came minus what was expected": lambda *inputs: -gae_of_rows(*inputs),
}
CASES: dict[str, Case] = {
    "0": Case(
        suspect="sign",
        part="surrogate",
        faults={"surrogate": descend},
        cure=clipped,
        oracle=moved_oracle,
        means="the objective that is maximised is the lower of the plain and the clipped product",
        hint="min(ratio A, clip(ratio, 1 - CLIP, 1 + CLIP) A), to be maximised",
        mistakes={
            "the sign: this part is maximised, the loop puts the minus": descend,
            "the higher of the two products; the clipped surrogate is the lower one": lambda r, a: torch.maximum(
                r * a, r.clamp(1 - CLIP, 1 + CLIP) * a
            ),
            "nothing is clipped": lambda r, a: r * a,
            "the clipped product alone; where the ratio went the wrong way it must still pull back": lambda r, a: (
                r.clamp(1 - CLIP, 1 + CLIP) * a
            ),
        },
        sign="the score falls from the first iteration on, and everything else looks alive",
    ),
    "A": Case(
        suspect="mask",
        part="mask",
        faults={"mask": mask_from_tokens},
        cure=mask_from_lengths,
        oracle=gradient_oracle,
        means="every token that was sampled is trained, the end token too",
        hint="the mask is True on the first lengths[b] columns of row b, whatever the tokens are",
        mistakes={
            "the end token is still masked out: token 0 is also the padding": mask_from_tokens,
            "one token too few": lambda tokens, lengths: length_mask(lengths - 1, LENGTH),
            "one token too many: a column of padding counts": lambda tokens, lengths: length_mask(
                (lengths + 1).clamp(max=LENGTH), LENGTH
            ),
            "no mask at all: padding counts as tokens": lambda tokens, lengths: torch.ones_like(tokens).bool(),
        },
        sign="the score stalls at once and songs end no sooner: nobody teaches the end",
    ),
    "B": Case(
        suspect="score twice",
        part="rewards",
        faults={"rewards": score_everywhere},
        cure=score_at_last_token,
        oracle=gradient_oracle,
        means="each song is paid once, after its last token",
        hint="penalty everywhere, plus the score in column mask.sum(1) - 1",
        mistakes=MISPLACED,
        sign="songs too long, values above any score: somebody is paid several times",
    ),
    "C": Case(
        suspect="score early",
        part="rewards",
        faults={"rewards": score_one_early},
        cure=score_at_last_token,
        oracle=gradient_oracle,
        means="the last token earns what it brings",
        hint="penalty everywhere, plus the score in column mask.sum(1) - 1",
        mistakes=MISPLACED,
        sign="the curves of a bad mask, but no check fires: in sum the score is counted once",
    ),
    "D": Case(
        suspect="capped",
        part="discounts",
        faults={"discounts": capped_goes_on},
        cure=end_at_last_token,
        oracle=gradient_oracle,
        means="the limit is an end like any other",
        hint="1 at every real token but the last, 0 at the last, whether or not the song ended itself",
        mistakes=ENDS,
        sign="the mean value climbs past any score there is, and songs get longer",
    ),
    "E": Case(
        suspect="next value",
        part="advantages",
        faults={"advantages": no_next_value},
        cure=gae_of_rows,
        oracle=rows_oracle,
        means="advantages are those of the definition, row by row, for any values",
        hint="TD error = reward + discount * next value - value; then add up, lam * discount a step",
        mistakes=GAE,
        sign="score, KL and entropy stall near their start: what the values call good is shunned",
    ),
    "F": Case(
        suspect="cut is end",
        part="discounts",
        faults={"discounts": full_buffer_is_an_end},
        cure=end_at_last_token,
        oracle=gradient_oracle,
        means="a cut bootstraps from the value of the state behind it",
        hint="0 only where the song is over; a cut goes on with discount 1 and the value bridges it",
        mistakes=ENDS,
        sign="half the way and no further: the last tokens learn, the first ones never do",
        setting={"advantages": gae_of_fragments},
    ),
    "G": Case(
        suspect="neighbours",
        part="advantages",
        faults={"advantages": one_long_stream},
        cure=gae_of_rows,
        oracle=rows_oracle,
        means="a row has the advantages that it has alone",
        hint="the discount is 0 at the end of a row, and it multiplies the running sum as well",
        mistakes=GAE,
        sign="a mean value that first sinks and then runs away upwards, and a score that hardly minds",
    ),
    "H": Case(
        suspect="live advantage",
        part="advantages",
        faults={"advantages": live_baseline},
        cure=gae_of_rows,
        oracle=gradient_oracle,
        means="the policy's objective moves the policy and nothing else",
        hint="advantages are data: detach them, values included",
        mistakes={
            "the values still carry a gradient: the policy's loss trains the critic": live_baseline,
            "the sign: it is the return minus the value": lambda *inputs: -gae_of_rows(*inputs),
            "the value is missing as a baseline": _advantages(lambda r, v, d: r + d * v[:, 1:]),
        },
        sign="the mean value sinks far below the score although its own loss is healthy",
    ),
    "I": Case(
        suspect="temperature",
        part="sampling",
        faults={"sampling": cooler},
        cure=same_law,
        oracle=gradient_oracle,
        means="the law that sampled is the law that is scored",
        hint="one temperature for sampling, old, new and reference log-probs; here it is 1",
        mistakes={
            "songs are still sampled cooler than they are scored": cooler,
            "multiplied in place of divided: now sampling is hotter than scoring": lambda logits: logits * 0.6,
            "a little cooler is still another law": lambda logits: logits / 0.9,
        },
        sign="a clip fraction that starts high and comes back; a score that is not the policy's",
    ),
    "J": Case(
        suspect="top-k",
        part="sampling",
        faults={"sampling": only_the_top_two},
        cure=same_law,
        oracle=gradient_oracle,
        means="every song that the policy can sing can be sampled",
        hint="no top-k and no top-p in the rollouts of a training run",
        mistakes={
            "two of four tokens are never sampled": only_the_top_two,
            "still a top-k: the least likely token is never sampled": lambda logits: torch.where(
                logits > logits.min(-1, keepdim=True).values, logits, -torch.inf
            ),
        },
        sign="first songs that nearly all run to the limit, then a score better than health",
        setting={"old_log_probs": score_again},
    ),
    "K": Case(
        suspect="ratio 1",
        part="ratio",
        faults={"ratio": ratio_to_itself},
        cure=ratio_to_sampler,
        oracle=moved_oracle,
        means="once the policy has moved, the surrogate knows by how much",
        hint="exp(log_probs - old_log_probs), the old ones being those of the law that sampled",
        mistakes={
            "the ratio is taken to the policy itself and is always 1": ratio_to_itself,
            "upside down: new over old": lambda new, old: torch.exp(old - new),
            "the exponential is missing": lambda new, old: 1 + new - old,
            "the gradient is cut: the new log-probs must stay attached": lambda new, old: torch.exp(new.detach() - old),
        },
        sign="a clip fraction of exactly 0 in every iteration, also where others are clipped",
    ),
    "L": Case(
        suspect="entropy",
        part="bonus",
        faults={"bonus": entropy_with_a_minus},
        cure=entropy_bonus,
        oracle=gradient_oracle,
        means="the bonus climbs the entropy of the prefixes that are visited",
        hint="ENTROPY_COEF times the entropy, added to what is maximised",
        mistakes={
            "the sign: a bonus is added to what is maximised": entropy_with_a_minus,
            "the coefficient is forgotten": entropy,
            "log-probabilities are not weighted by the probabilities": lambda logits: (
                -ENTROPY_COEF * logits.log_softmax(-1).mean(-1)
            ),
        },
        sign="entropy a little below that of a healthy run, and nothing else",
    ),
    "M": Case(
        suspect="k1 in loss",
        part="penalty",
        faults={"penalty": nothing_in_the_reward, "kl_loss": k1_in_the_loss},
        cure=leash,
        oracle=gradient_oracle,
        means="the leash pulls with exactly the gradient of the KL",
        hint="a reward of minus KL_COEF times the log-ratio at every token",
        mistakes={
            "there is no leash in the reward": nothing_in_the_reward,
            "the sign: distance is a cost, and this pays for it": lambda k: KL_COEF * k,
            "the coefficient is forgotten": lambda k: -k,
            "the square of the log-ratio is another penalty": lambda k: -KL_COEF * k.square() / 2,
            "the absolute value is another penalty: single log-ratios may be negative": lambda k: -KL_COEF * k.abs(),
        },
        sign="a score better than health, paid for with a KL that no leash holds",
    ),
    "N": Case(
        suspect="log-ratio",
        part="log_ratio",
        faults={"log_ratio": reference_over_policy},
        cure=kl_k1,
        oracle=gradient_oracle,
        means="the leash pulls towards the reference, with exactly the gradient of the KL",
        hint="policy minus reference, at tokens that the policy sampled",
        mistakes={
            "reference minus policy: the leash pays for distance": reference_over_policy,
            "the absolute value is another penalty: single log-ratios may be negative": lambda p, q: (p - q).abs(),
            "k2 is never negative, but in the reward it is another penalty": lambda p, q: (p - q).square() / 2,
            "k3 estimates the value well; in the reward its gradient is another one": kl_k3,
            "a ratio and not its logarithm": lambda p, q: (p - q).exp(),
        },
        sign="a KL that is negative and falls",
    ),
    "O": Case(
        suspect="group mean",
        part="baseline",
        faults={"baseline": minus_the_group_mean},
        cure=leave_one_out_advantages,
        oracle=pairs_oracle,
        means="a song's baseline does not depend on the song",
        hint="the mean of the other K - 1 totals of the group, [G, K] in and out",
        mistakes={
            "the mean includes the song itself, which shrinks every step by (K - 1) / K": minus_the_group_mean,
            "divided by the group's standard deviation, which weights easy and hard prompts anew": lambda x: (
                (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4)
            ),
            "the wrong axis: songs of one group belong to one prompt": lambda x: x - x.mean(0, keepdim=True),
            "there is no baseline: the mean step is right, and noisier than it need be": lambda x: x,
            "the sign: a total above the others' mean is good": lambda x: -leave_one_out_advantages(x),
        },
        sign="none: with Adam a step that is shorter by a constant factor is the same step",
    ),
    "P": Case(
        suspect="micro-batch",
        part="reduction",
        faults={"reduction": mean_of_micro_batches},
        cure=token_mean,
        oracle=reduction_oracle,
        means="every token of the batch has the same weight, however the batch is cut",
        hint="the sum over the micro-batches, divided by the number of tokens of the whole batch",
        mistakes={
            "each micro-batch has a denominator of its own": mean_of_micro_batches,
            "a mean of rows, so that tokens of short songs count for more": lambda x, m: (
                masked_sum(x, m, dim=1) / m.sum(1)
            ).mean(),
            "a sum: the step now grows with the batch": lambda x, m: masked_sum(x, m),
            "padding is in the denominator": lambda x, m: torch.where(m, x, 0.0).mean(),
        },
        sign="next to none: tokens of short songs count for more",
    ),
}


# -- what the reader calls --------------------------------------------------------------------------------------------
class Measured:
    """A tensor beside the truth; printed as angle, length and error."""

    def __init__(self, tensor: Tensor, truth: Tensor):
        self.tensor, self.truth = tensor.detach().double(), truth

    @property
    def error(self) -> float:
        return float((self.tensor - self.truth).abs().max())

    def __repr__(self) -> str:
        cos, length = cosine(self.tensor, self.truth), float(self.tensor.norm() / self.truth.norm())
        return f"cosine {cos:.4f}, {length:.3f} of the length, largest error {self.error:.1e}"


def _same(got: object, expected: object) -> bool:
    if not isinstance(got, Measured) or got.tensor.shape != expected.tensor.shape:
        return False
    return torch.allclose(got.tensor, expected.tensor, rtol=0, atol=1e-6)


def _answers(repair: Callable) -> Callable:
    """The reader's function, with a word for slips that would otherwise end in a puzzling error or in none."""

    def part(*inputs):
        given = [x.clone() for x in inputs]  # some of them are cached
        answer = repair(*given)
        if answer is None:
            raise ValueError("it returned None; is there a `return`?")
        if any(map(changed, inputs, given)):
            raise ValueError("an in-place change of an argument, which the loop still needs")
        return answer

    return part


@exercise
def grade(name: str, repair: Callable) -> None:
    """Put the repair into the patient and compare with the exact answer.

    Args:
        name: of the case. repair: takes the place of the part that `CASES[name].part` names, same arguments.

    Raises:
        AssertionError: the answer differs; the message says by how much and what usually causes it.
        NotImplementedError: the exercise has not been started.
    """
    case = CASES[name]
    truth = case.oracle(None)
    sick = Measured(case.oracle(case.parts()), truth)
    now = compare(
        f"{case.part} of patient {name}",
        WHAT[case.oracle],
        lambda: Measured(case.oracle(case.parts(_answers(repair))), truth),
        Measured(truth, truth),
        {cause: partial(_mistaken, case, wrong, truth) for cause, wrong in case.mistakes.items()},
        case.hint,
        same=_same,
    )
    length = float(sick.tensor.norm() / truth.norm())
    print(f"patient {name}, {case.part}: repaired. {WHAT[case.oracle][0].upper() + WHAT[case.oracle][1:]}:")
    print(f"  before  cosine {cosine(sick.tensor, truth):6.3f} with the exact one, {length:.2f} of its length")
    print(f"  now     the exact one to {'nine' if now.error < 1e-9 else 'six'} digits")
    print(f"  means   {case.means}")


def _mistaken(case: Case, wrong: Callable, truth: Tensor) -> Measured:
    return Measured(case.oracle(case.parts(wrong)), truth)


@cache
def _trained(parts: Parts, seed: int) -> Run:
    return train(parts, seed)


def run_case(name: str, repair: Callable | None = None, seed: int = 0) -> Run:
    """Train with the fault of a case, or with a repair in its place."""
    return _trained(CASES[name].parts(repair), seed)


def healthy(name: str, seed: int = 0) -> Run:
    """The same run with the healthy part."""
    return run_case(name, CASES[name].cure, seed)


@dataclass(frozen=True)
class Outcome:
    """What a fault costs.

    Attributes:
        cosine, length: of the step that it makes in the mean, against the exact one.
        sick, cured: [seeds] exact final objective, score - KL_COEF KL.
        difference: sick - cured by seed, with its 95 % t-interval.
        fired: names of the live checks that were violated.
    """

    cosine: float
    length: float
    sick: tuple[float, ...]
    cured: tuple[float, ...]
    difference: Interval
    fired: tuple[str, ...]


def outcome(name: str) -> Outcome:
    """Measure a fault: the angle of its step, and five seeds with and without it."""
    step, truth = step_of(name)
    sick = tuple(run_case(name, seed=seed).objective for seed in SEEDS)
    cured = tuple(healthy(name, seed).objective for seed in SEEDS)
    difference = mean_interval([a - b for a, b in zip(sick, cured, strict=True)])
    fired = tuple(sorted({check for seed in SEEDS for check in run_case(name, seed=seed).fired}))
    return Outcome(cosine(step, truth), float(step.norm() / truth.norm()), sick, cured, difference, fired)


def step_of(name: str) -> tuple[Tensor, Tensor]:
    """The mean step of a case and the exact one. What mixes songs of a batch is averaged over 200 sampled batches."""
    case = CASES[name]
    if case.oracle in (moved_oracle, pairs_oracle):
        return case.oracle(case.parts()), case.oracle(None)
    if name in ("G", "P"):
        return sampled_step(case.parts()), sampled_step(case.parts(case.cure))
    return gradient_oracle(case.parts()), gradient_oracle(None)


@cache
def sampled_step(parts: Parts, batches: int = 200) -> Tensor:
    """Mean gradient of the reduced loss over sampled batches of 64 songs; the same batches for all parts."""
    logits, table = probe_logits().clone().requires_grad_(True), exact_values(probe_logits())
    generator, total = generator_for(6, "batches"), torch.zeros_like(probe_logits())
    for _ in range(batches):
        replies = sample(logits, REPLIES, generator)
        data = prepare(parts, replies, logits, table)
        loss = parts.reduction(-gain(parts, replies, data, logits)[0], data.mask)
        total += -torch.autograd.grad(loss, logits)[0]
    return total / batches


def best_objective() -> float:
    """The most that score - KL_COEF KL can be, from the closed form of the optimum."""
    ref_law = world().law(reference_logits())
    law = world().optimum(ref_law, KL_COEF)
    return float((world().expected_reward(law) - KL_COEF * world().kl(law, ref_law)).mean())


def suspects(names: str, others: tuple[str, ...] = ()) -> None:
    """Print what the patients may have, in alphabetical order."""
    for suspect in sorted([CASES[name].suspect for name in names] + list(others)):
        print(f"{suspect:15} {SUSPECTS[suspect]}")


def diagnose(guesses: Mapping[str, str]) -> int:
    """Compare guesses (patient -> suspect) with the truth; returns how many are right.

    Raises:
        ValueError: a guess that is no key of `SUSPECTS`.
    """
    right = 0
    for name, guess in guesses.items():
        if guess not in SUSPECTS:
            raise ValueError(f"{guess!r} for patient {name} is no suspect; expected one of {sorted(SUSPECTS)}")
        case = CASES[name]
        right += guess == case.suspect
        verdict = "right" if guess == case.suspect else f"you said {guess}"
        print(f"{name}: {case.suspect} ({verdict})\n   sign: {case.sign}")
    print(f"{right} of {len(guesses)} right")
    return right


def reveal(name: str) -> None:
    """Print the faulty lines of a case."""
    for part, fault in CASES[name].faults.items():
        print(f"# patient {name}, part `{part}`\n{inspect.getsource(fault).strip()}")


# -- a dialogue agent with six faults ---------------------------------------------------------------------------------
class TutorialPPO:
    """A GRU that learns to answer the visitors of Pebble Town by PPO, as tutorials have it.

    The first six methods hold one fault each; what follows them is healthy. Written for this chapter after the faults
    of code that circulates; none of it is copied.

    Args:
        vocabulary, actions: of the environment. seed: of weights and of all draws.
    """

    gamma, lam, clip, entropy_coef = 1.0, 0.95, 0.2, 0.01
    epochs, minibatches, width, learning_rate = 4, 4, 32, 4e-3

    def td_errors(self, rewards, values, discounts):
        """[B, T] surprises."""
        return rewards - values[:, :-1]

    def accumulate(self, errors, discounts):
        """[B, T] advantages from the surprises."""
        columns = []
        for t in reversed(range(errors.shape[1])):
            advantage = torch.zeros(len(errors))
            advantage = errors[:, t] + self.lam * discounts[:, t] * advantage
            columns.append(advantage)
        return torch.stack(columns[::-1], dim=1)

    def values(self, observations):
        """[N] values of observations [N, L]."""
        return self.policy(observations).logits.mean(dim=-1)

    def ratio(self, log_probs, old_log_probs):
        """[B, T] what the surrogate is made of."""
        return torch.exp(log_probs - log_probs.detach())

    def remember(self, state):
        """The recurrent state with which the next reply begins."""
        return state

    def ready(self, advantages, mask):
        """[B, T] advantages as the loss takes them."""
        return advantages

    def value_loss(self, values, targets):
        """[B, T] what the critic descends; the tutorial has no critic to train."""
        return torch.zeros_like(targets)

    # -- what follows is healthy --------------------------------------------------------------------------------------
    def __init__(self, vocabulary: int, actions: int, seed: int = 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy, self.value = gru_agent(vocabulary, actions, self.width)
        self.parameters = list(nn.ModuleList([self.policy, self.value]).parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=self.learning_rate, eps=1e-5)
        self.generator, self.state = generator_for(seed, "tutorial"), None

    def acting_law(self, observations: Tensor, state: Tensor | None) -> tuple[torch.distributions.Categorical, Tensor]:
        """The law of the next reply when the GRU begins to read with `state` [1, N, D]; and its state afterwards."""
        encoder, head = self.policy.body
        lengths = (observations != 0).sum(1).clamp(min=1)
        states, _ = encoder.gru(encoder.embedding(observations[:, : int(lengths.max())]), state)
        last = states[torch.arange(len(states)), lengths - 1]
        return torch.distributions.Categorical(logits=head(last), validate_args=False), last[None]

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """[N] replies drawn for [N] visitors."""
        law, state = self.acting_law(observations, self.state)
        self.state = self.remember(state)
        return draw(law, self.generator)

    def learn(self, episodes: Episodes) -> dict[str, float]:
        """A few epochs on what was collected; returns what is worth logging."""
        with torch.no_grad():
            old = episodes.log_probs(self.policy)
        logged = []
        for _ in range(self.epochs):
            for rows in torch.randperm(len(old), generator=self.generator).tensor_split(self.minibatches):
                logged.append(self.step(rows_of(episodes, rows), old[rows]))
        return {name: sum(row[name] for row in logged) / len(logged) for name in logged[0]}

    def step(self, part: Episodes, old: Tensor) -> dict[str, float]:
        """One gradient step on some rows."""
        values, mask = part.values(self.values), part.mask  # [B, T + 1], [B, T]
        advantages = self.accumulate(self.td_errors(part.rewards, values, part.discounts), part.discounts)
        targets = torch.where(mask, advantages + values[:, :-1], 0.0).detach()
        law = self.policy(part.observations[:, :-1][mask])
        log_probs = torch.zeros(mask.shape).masked_scatter(mask, law.log_prob(part.actions[mask]))
        ratio, advantages = self.ratio(log_probs, old), self.ready(advantages, mask)
        gains = torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)
        loss = masked_mean(self.value_loss(values[:, :-1], targets) - gains, mask)
        self.optimiser.zero_grad()
        (loss - self.entropy_coef * law.entropy().mean()).backward()
        nn.utils.clip_grad_norm_(self.parameters, 0.5)
        self.optimiser.step()
        with torch.no_grad():
            outside = ((ratio - 1).abs() > self.clip).float()
            return {
                "entropy": float(law.entropy().mean()),
                "clip_fraction": float(masked_mean(outside, mask)),
                "step_kl": float(masked_mean(kl_k3(old, log_probs), mask)),
                "explained_variance": float(explained_variance(values[:, :-1], targets, mask)),
            }


def rows_of(episodes: Episodes, rows: Tensor) -> Episodes:
    """Some rows of a batch of episodes."""
    columns = ("observations", "actions", "rewards", "discounts", "mask")
    return replace(episodes, **{name: getattr(episodes, name)[rows] for name in columns})


# The healthy methods, in the order in which the chapter puts them in.
def td_errors_of_agent(self, rewards, values, discounts):
    return rewards + discounts * values[:, 1:] - values[:, :-1]


def accumulate_of_agent(self, errors, discounts):
    advantage, columns = torch.zeros(len(errors)), []
    for t in reversed(range(errors.shape[1])):
        advantage = errors[:, t] + self.lam * discounts[:, t] * advantage
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


def values_of_agent(self, observations):
    return self.value(observations)


def value_loss_of_agent(self, values, targets):
    return (values - targets).square() / 4


def ratio_of_agent(self, log_probs, old_log_probs):
    return torch.exp(log_probs - old_log_probs)


def remember_of_agent(self, state):
    return None


def ready_of_agent(self, advantages, mask):
    return masked_whiten(advantages.detach(), mask)


REPAIRS: dict[str, dict[str, Callable]] = {
    "next value": {"td_errors": td_errors_of_agent},
    "sum not reset": {"accumulate": accumulate_of_agent},
    "a critic": {"values": values_of_agent, "value_loss": value_loss_of_agent},
    "old log-probs": {"ratio": ratio_of_agent},
    "one state": {"remember": remember_of_agent},
    "data": {"ready": ready_of_agent},
}


def repaired(agent: type[TutorialPPO], **methods: Callable) -> type[TutorialPPO]:
    """The agent's class with some methods replaced; a ValueError where it has none of that name."""
    if unknown := [name for name in methods if not hasattr(agent, name)]:
        raise ValueError(f"methods holds {unknown}; expected methods of {agent.__name__}")
    return type("Repaired" + agent.__name__.removeprefix("Repaired"), (agent,), methods)


def with_repairs(*names: str) -> type[TutorialPPO]:
    """The tutorial's agent with these of `REPAIRS`."""
    return repaired(TutorialPPO, **{k: v for name in names for k, v in REPAIRS[name].items()})


DIALOGUE = {"iterations": 10, "timing": "delayed", "turns": 3}  # what chapter and study train on
FIRST_VISITOR = 100_000  # seeds of the visitors who judge, apart from those of training


@dataclass(frozen=True)
class Training:
    """A finished dialogue agent.

    Attributes:
        agent: trained. history: a row an iteration, numbered by replies given; return is that of finished dialogues.
        share: of the enumerated optimum, greedy, on visitors of the train split. held_out: the same on held-out ones.
    """

    agent: TutorialPPO
    history: History
    share: float
    held_out: float


def train_agent(
    agent: type[TutorialPPO],
    seed: int = 0,
    iterations: int = 10,
    environments: int = 32,
    steps: int = 32,
    visitors: int = 200,
    **env,
) -> Training:
    """Collect, learn, again; then greedy against the enumerated optimum.

    Args:
        agent: the class. visitors: who judge it. env: what `DialogueEnv` takes.
    """
    envs = make_envs(lambda: DialogueEnv(**env), environments, seed)
    learner = agent(envs[0].vocabulary, int(envs[0].action_space.n), seed)
    runner, history = Runner(envs), History()
    for i in range(iterations):
        episodes = runner.collect(learner.act, steps, learner.gamma)
        earned = {"return": episodes.mean_return}
        history.add(step=(i + 1) * environments * steps, **earned, **learner.learn(episodes))
    act = greedy(learner.policy)
    share, held_out = (share_of_optimum(act, visitors, split=split, **env) for split in ("train", "held_out"))
    return Training(learner, history, share, held_out)


@torch.no_grad()
def share_of_optimum(act: Callable[[Tensor], Tensor], visitors: int = 200, **env) -> float:
    """Mean return over mean best return, on the same visitors, one after the other."""
    desk, earned = DialogueEnv(**env), 0.0
    for visitor in range(visitors):
        seen, over = desk.reset(seed=FIRST_VISITOR + visitor)[0], False
        while not over:
            seen, reward, over, _, _ = desk.step(int(act(torch.from_numpy(seen)[None])))
            earned += reward
    return earned / _best_total(visitors, tuple(env.items()))


@cache
def _best_total(visitors: int, env: tuple) -> float:
    """What these visitors could have paid together, by enumeration."""
    desk, total = DialogueEnv(**dict(env)), 0.0
    for visitor in range(visitors):
        desk.reset(seed=FIRST_VISITOR + visitor)
        total += desk.best_return()
    return total


# -- grading the agent's methods ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Method:
    """How a method of the agent is graded: inputs after self, the healthy one, cause -> a wrong one."""

    inputs: Callable[[], tuple]
    healthy: Callable
    mistakes: Mapping[str, Callable]
    hint: str
    means: str


class Answer:
    """What a method gave, and whether a gradient flows through it."""

    def __init__(self, value: object):
        self.value, self.attached = value, isinstance(value, Tensor) and value.requires_grad

    def __repr__(self) -> str:
        if not isinstance(self.value, Tensor):
            return repr(self.value)
        numbers = [round(x, 3) for x in self.value.detach().flatten().tolist()[:6]]
        return f"{numbers} of shape {list(self.value.shape)}, {'with' if self.attached else 'without'} a gradient"

    def same(self, other: "Answer") -> bool:
        if not isinstance(self.value, Tensor) or not isinstance(other.value, Tensor):
            return self.value is other.value
        return self.attached == other.attached and same_tensors(self.value, other.value)


def _draws(*shapes: tuple[int, ...], seed: int = 7) -> list[Tensor]:
    generator = generator_for(seed, "method")
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _rows() -> tuple[Tensor, ...]:
    rewards, values, errors = _draws((4, 3), (4, 4), (4, 3))
    mask = length_mask(torch.tensor([3, 1, 2, 3]), 3)
    discounts = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0.5, 0], [1, 1, 1]])
    zero = torch.zeros(())
    return torch.where(mask, rewards, zero), values, discounts, torch.where(mask, errors, zero), mask


def _live(*shape: int) -> Tensor:
    return _draws(shape, seed=8)[0].requires_grad_(True)


def _forwards(self, errors, discounts):
    advantage, columns = torch.zeros(len(errors)), []
    for t in range(errors.shape[1]):
        advantage = errors[:, t] + self.lam * discounts[:, t] * advantage
        columns.append(advantage)
    return torch.stack(columns, dim=1)


def _accumulate(decay: Callable) -> Callable:
    def method(self, errors, discounts):
        advantage, columns = torch.zeros(len(errors)), []
        for t in reversed(range(errors.shape[1])):
            advantage = errors[:, t] + decay(self.lam, discounts[:, t]) * advantage
            columns.append(advantage)
        return torch.stack(columns[::-1], dim=1)

    return method


METHODS: dict[str, Method] = {
    "td_errors": Method(
        lambda: _rows()[:3],
        td_errors_of_agent,
        {
            "the value of the next state is missing": TutorialPPO.td_errors,
            "the next value counts behind the end too: multiply it by the discount": lambda self, r, v, d: (
                r + v[:, 1:] - v[:, :-1]
            ),
            "the value of the state itself is missing": lambda self, r, v, d: r + d * v[:, 1:],
            "the sign: what came minus what was expected": lambda self, r, v, d: v[:, :-1] - r - d * v[:, 1:],
        },
        "reward + discount * next value - value, with values [B, T + 1]",
        "a reply hears of what comes after it",
    ),
    "accumulate": Method(
        lambda: (_draws((4, 3))[0], _rows()[2]),
        accumulate_of_agent,
        {
            "the running sum is reset in every step, before it is used": TutorialPPO.accumulate,
            "lambda is missing": _accumulate(lambda lam, discount: discount),
            "the discount is missing: the sum runs over the end of the dialogue": _accumulate(
                lambda lam, discount: lam
            ),
            "from first to last: advantages look ahead, so begin with the last step": _forwards,
        },
        "set it to 0 once, before the loop; then errors[:, t] + self.lam * discounts[:, t] * advantage",
        "surprises of later replies reach the earlier ones",
    ),
    "values": Method(
        lambda: (torch.tensor([[3, 5, 0], [4, 0, 0]]),),
        values_of_agent,
        {
            "values are read off the policy's logits": TutorialPPO.values,
            "the largest logit of the policy is no value either": lambda self, o: self.policy(o).logits.amax(-1),
            "detached: the critic could never learn": lambda self, o: self.value(o).detach(),
        },
        "the agent has a value head, self.value(observations)",
        "there is a critic",
    ),
    "value_loss": Method(
        lambda: (_live(4, 3), _draws((4, 3))[0]),
        value_loss_of_agent,
        {
            "nothing is trained": TutorialPPO.value_loss,
            "the difference without a square pushes all values down for ever": lambda self, v, t: v - t,
            "detached: the critic could never learn": lambda self, v, t: (v.detach() - t).square() / 4,
            "twice as much as asked: the weight 1/2 is missing": lambda self, v, t: (v - t).square() / 2,
        },
        "half the squared error, with weight 1/2: (values - targets)^2 / 4",
        "the critic is trained",
    ),
    "ratio": Method(
        lambda: (_live(4, 3), _draws((4, 3))[0]),
        ratio_of_agent,
        {
            "the ratio is taken to the policy itself and is always 1": TutorialPPO.ratio,
            "upside down: new over old": lambda self, new, old: torch.exp(old - new),
            "the exponential is missing": lambda self, new, old: 1 + new - old,
            "the gradient is cut: the new log-probs must stay attached": lambda self, new, old: torch.exp(
                new.detach() - old
            ),
        },
        "exp(log_probs - old_log_probs)",
        "the clip can act",
    ),
    "remember": Method(
        lambda: (_draws((1, 4, 5))[0],),
        remember_of_agent,
        {
            "the state is still carried into the next reply": TutorialPPO.remember,
            "zeros work once; the number of visitors may change, and None means zeros": lambda self, s: s * 0,
        },
        "return None: the GRU reads the whole dialogue from an empty state, as the update does",
        "the law that acts is the law that is scored",
    ),
    "ready": Method(
        lambda: (_live(4, 3), _rows()[4]),
        ready_of_agent,
        {
            "neither detached nor whitened": TutorialPPO.ready,
            "whitened, but a gradient still flows": lambda self, a, m: masked_whiten(a, m),
            "detached, but not whitened": lambda self, a, m: a.detach(),
            "whitened over padding": lambda self, a, m: (a.detach() - a.detach().mean()) / a.detach().std(),
            "the mean is not subtracted": lambda self, a, m: masked_whiten(a.detach(), m, shift_mean=False),
            "what stands at padding comes out again: put 0 there": lambda self, a, m: (
                (a.detach() - a.detach()[m].mean()) / a.detach()[m].std()
            ),
        },
        "masked_whiten(advantages.detach(), mask)",
        "advantages are data, on one scale in every batch",
    ),
}


@exercise
def grade_method(function: Callable) -> None:
    """Compare a method of the agent, by its name, with the healthy one.

    Raises:
        AssertionError: with what usually causes the difference.
        KeyError: a function whose name is no key of `METHODS`.
    """
    name = function.__name__
    if name not in METHODS:
        raise KeyError(f"{name} is no method that is graded; expected one of {sorted(METHODS)}")
    method, agent = METHODS[name], _small_agent()
    answer = lambda f, *inputs: Answer(f(agent, *inputs))  # noqa: E731
    inputs = method.inputs()
    compare(
        name,
        "random rows of different length",
        partial(answer, function),
        answer(method.healthy, *inputs),
        {cause: partial(answer, wrong, *inputs) for cause, wrong in method.mistakes.items()},
        method.hint,
        same=lambda got, expected: got.same(expected),
        odd=_nothing,
        inputs=inputs,
    )
    print(f"{name}: repaired; {method.means}")


def _nothing(got: Answer, expected: Answer) -> str | None:
    return "it returned None; is there a `return`?" if got.value is None and expected.value is not None else None


@cache
def _small_agent() -> TutorialPPO:
    return type("SmallAgent", (TutorialPPO,), {"width": 5})(vocabulary=9, actions=3)


def best_kind(desk: DialogueEnv) -> str:
    """The kind of reply that the town's oracle likes best now."""
    prompt = desk._prompt
    return max(KINDS, key=lambda kind: town.score(prompt, write_kind(prompt, kind, Random(0))).reward)


# -- the other exercises -----------------------------------------------------------------------------------------------
@exercise
def check_whiten(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check `whiten(advantages [B, T], mask [B, T])`: mean 0 and variance 1 over the real tokens, 0 at padding.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "(x - mean) / sqrt(var + 1e-8), both over the real tokens alone; 0 at padding"
    hand = torch.tensor([[1.0, 3.0, 9.0], [5.0, 7.0, 9.0]], dtype=torch.float64)
    mask = length_mask(torch.tensor([2, 1]), 3)
    cases = [("[[1, 3, -], [5, -, -]] with junk in place of -", hand, mask)]
    cases.append(("[[1, 3, -], [5, -, -]] / 10000, where 1e-8 counts", hand / 10_000, mask))
    for seed in range(10):
        generator = generator_for(seed, "whiten")
        x = torch.randn(4, 5, generator=generator, dtype=torch.float64) + 2
        mask = length_mask(torch.randint(1, 6, (4,), generator=generator), 5)
        junk = torch.nan if seed % 2 else 50.0
        cases.append((f"random rows {seed}, {junk} at padding", torch.where(mask, x, junk), mask))
    not_finite = "not a number: NaN times 0 is NaN, so leave padding out of every sum, and put 0 there with torch.where"
    rules = {"same": same_tensors, "odd": partial(odd_tensors, not_finite=not_finite)}
    for case, *inputs in cases:
        faults = {cause: partial(fault, *inputs) for cause, fault in WHITEN_FAULTS.items()}
        compare("whiten", case, function, masked_whiten(*inputs), faults, hint, inputs=tuple(inputs), **rules)
    print("whiten: passed (a case by hand, 10 random ones with junk or NaN at padding)")


def _by_row(x: Tensor, mask: Tensor) -> Tensor:
    mean = masked_sum(x, mask, dim=1)[:, None] / mask.sum(1, keepdim=True)
    return torch.where(mask, (x - mean) / (masked_sum((x - mean).square(), mask) / (mask.sum() - 1) + 1e-8).sqrt(), 0)


WHITEN_FAULTS: dict[str, Callable] = {
    "padding is counted in mean and variance": lambda x, m: torch.where(m, (x - x.mean()) / (x.var() + 1e-8).sqrt(), 0),
    "padding is zeroed and then counted": lambda x, m: torch.where(
        m, (x - torch.where(m, x, 0).mean()) / (torch.where(m, x, 0).var() + 1e-8).sqrt(), 0
    ),
    "what stands at padding comes out again: it has to be 0": lambda x, m: (
        (x - x[m].mean()) / (x[m].var() + 1e-8).sqrt()
    ),
    "the mean is not subtracted": lambda x, m: torch.where(m, x / (x[m].var() + 1e-8).sqrt(), 0),
    "1e-8 is missing: it is added to the variance, under the root": lambda x, m: torch.where(
        m, (x - x[m].mean()) / x[m].std(), 0
    ),
    "1e-8 is added to the standard deviation; it is added to the variance, under the root": lambda x, m: torch.where(
        m, (x - x[m].mean()) / (x[m].std() + 1e-8), 0
    ),
    "divided by the variance, not by its root": lambda x, m: torch.where(m, (x - x[m].mean()) / x[m].var(), 0),
    "only the mean is subtracted": lambda x, m: torch.where(m, x - x[m].mean(), 0),
    "the biased variance: divide by n - 1": lambda x, m: torch.where(
        m, (x - x[m].mean()) / (x[m].var(unbiased=False) + 1e-8).sqrt(), 0
    ),
    "each row is centred on its own": _by_row,
}


@exercise
def check_clip_is_alive(function: Callable[[list[float], list[float]], bool]) -> None:
    """Check `clip_is_alive(clip_fractions, step_kls)`: False if the policy moved (> 0.01) and nothing was ever clipped.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    cases = {
        "an empty run": ([], []),
        "moved and rarely clipped": ([0.001, 0.0], [0.05, 0.02]),
        "moved and never clipped": ([0.0, 0.0], [0.012, 0.001]),
        "hardly moved, never clipped": ([0.0, 0.0], [0.01, 0.005]),
        "clipped once, much later": ([0.0, 0.0, 0.0, 0.2], [0.05, 0.05, 0.05, 0.05]),
        "moved late, never clipped": ([0.0, 0.0, 0.0], [0.0, 0.001, 0.3]),
    }
    hint = "False only where max(step_kls) > 0.01 and no clip fraction is above 0"
    pattern = lambda f: [bool(f(list(c), list(k))) for c, k in cases.values()]  # noqa: E731
    for case, inputs in cases.items():
        label = f"{case}, clip fractions {inputs[0]}, step KLs {inputs[1]}"
        truth = _alive(*inputs)  # a fault explains the answer if it is wrong in the same runs as the function
        faults = {
            cause: lambda f=fault, t=truth: (not t) if pattern(f) == pattern(function) else t
            for cause, fault in ALIVE_FAULTS.items()
        }
        compare("clip_is_alive", label, function, truth, faults, hint, same=_same_truth, odd=_no_truth, inputs=inputs)
    print(f"clip_is_alive: passed ({len(cases)} runs)")


def _alive(clip_fractions: list[float], step_kls: list[float]) -> bool:
    return any(x > 0 for x in clip_fractions) or max(step_kls, default=0.0) <= 0.01


ALIVE_FAULTS: dict[str, Callable] = {
    "the answer is the wrong way round: True means alive": lambda c, k: not _alive(c, k),
    "a run that stands still is no alarm": lambda c, k: any(x > 0 for x in c),
    "a single clipped iteration is enough to be alive": lambda c, k: all(x > 0 for x in c) or max(k, default=0) <= 0.01,
    "only the last iteration is looked at": lambda c, k: not c or c[-1] > 0 or k[-1] <= 0.01,
    "only the first iteration is looked at": lambda c, k: not c or c[0] > 0 or k[0] <= 0.01,
    "both conditions need not hold in one iteration": lambda c, k: (
        not any(x == 0 and y > 0.01 for x, y in zip(c, k, strict=True))
    ),
    "the largest step KL counts, against 0.01; the mean is small in a long run": lambda c, k: (
        any(x > 0 for x in c) or sum(k) / max(len(k), 1) <= 0.01
    ),
    "the largest step KL counts; the sum grows with the run": lambda c, k: any(x > 0 for x in c) or sum(k) <= 0.01,
    "the alarm needs a step KL above 0.01; 0.01 itself is none": lambda c, k: (
        any(x > 0 for x in c) or max(k, default=0) < 0.01
    ),
}


def _same_truth(got, expected) -> bool:
    return not _no_truth(got, expected) and bool(got) == expected


def _no_truth(got, expected) -> str | None:
    odd = isinstance(got, str | list | tuple | None) or getattr(got, "ndim", 0)
    return f"it returned {type(got).__name__} and not True or False; is there a `return`?" if odd else None
