"""The checks of a run of RLHF, made while it runs, and what they cost.

What is cheap is checked in every iteration: the mask, the scores, the bets on the sampling law. What needs another
pass or a derivative is checked in the first two iterations and in every `CHECK_EVERY`-th, on a few rows: a
fault of the code is there from the start, or from the first step on.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from rlhf_lab.experience import invariants
from rlhf_lab.experience.episodes import Episodes
from rlhf_lab.experience.rewards import Reward, scores_of
from rlhf_lab.experience.updates import Experience, Look, Losses
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import Rollout, TokenBatch

LAW_ROWS, CHECK_ROWS, CHECK_EVERY = 4, 2, 10  # rows that are bet on, rows scored again, iterations between
# Rows of a micro-batch in its minibatch, itself, logits of student and teacher with the temperature divided out, loss.
Teach = Callable[[Tensor, TokenBatch, Tensor, Tensor, Tensor], None]
BEGINNING = 3  # iterations in which an update that goes too far stops the run


def thorough(step: int) -> bool:
    """Whether the dear checks are made in this iteration, counted from 0."""
    return step < 2 or step % CHECK_EVERY == 0


@dataclass
class LiveChecks:
    """What a run checks while it learns.

    Attributes:
        policy, reference: the model in training, and the one at the other end of the leash.
        temperature, max_new_tokens: of the sampling.
        book: what the bets have won and what was kept to be compared later; a part of the checkpoint.
        clip_epsilon, entropy_coef, gae_lambda: as declared; no gae_lambda: the advantages are not those of GAE.
        kl_limit: nats a token, of an update in the first iterations; None: no limit.
        leash: of a KL in the loss, which estimate and its coefficient; None: there is none.
        on: False checks nothing but that what was computed is finite, and this limit.
        seconds: what the checks of this process took.
        unchecked: name of a check -> why this run cannot have it.
        pulled: whether the first micro-batch of this minibatch has a gradient.
        experience: of this iteration, once its advantages have been looked at.
    """

    policy: LanguageModel
    reference: LanguageModel
    temperature: float
    max_new_tokens: int
    book: dict[str, Any]
    clip_epsilon: float = float("inf")
    entropy_coef: float = 0.0
    gae_lambda: float | None = None
    kl_limit: float | None = None
    on: bool = True
    leash: tuple[str, float] | None = None
    seconds: float = 0.0
    unchecked: dict[str, str] = field(default_factory=dict)
    pulled: bool = False
    experience: Experience | None = None

    def __post_init__(self) -> None:
        if self.on:
            invariants.check_reference_apart(self.policy.model, self.reference.model)

    @property
    def law_rows(self) -> int:
        """How many replies are to be sampled with their logits kept."""
        return LAW_ROWS if self.on else 0

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def share_of(self, timings: dict[str, list[float]]) -> float:
        """Seconds of the checks over all seconds of the iterations."""
        spent = sum(map(sum, timings.values()))
        return self.seconds / spent if spent else 0.0

    def _thorough(self, step: int) -> bool:
        return self.on and thorough(step)

    # -- a fresh rollout ----------------------------------------------------------------------------------------------
    def rollout(
        self,
        step: int,
        rollout: Rollout,
        scores: Tensor,
        log_probs: Tensor,
        ref_log_probs: Tensor,
        reward: Reward | None = None,
    ) -> None:
        """All is finite; the mask is that of the lengths; the tokens are of the scored law; nobody has moved who should
        not have.

        Args:
            step: from 0. scores: [B] before penalties. log_probs, ref_log_probs: [B, T] nats.
            reward: judges the replies once more where the checks are thorough.
        """
        self._mask(rollout)  # first: replies without tokens make scores that are no numbers
        invariants.check_finite("reward scores", scores, step + 1)
        invariants.check_finite("log-probs of the policy", log_probs, step + 1)
        if not self.on:
            return
        with self._timed():
            if "start" not in self.book:
                self._first(rollout.batch, log_probs, ref_log_probs)
            self._bets(rollout, log_probs, ref_log_probs)
            if self._thorough(step):
                self._again(rollout, ref_log_probs)
                if reward is not None:
                    self._judged_again(rollout, scores, reward)

    def replies(self, step: int, rollout: Rollout) -> None:
        """What `rollout` checks, of replies that nobody scores and of which the reference has read none before."""
        self._mask(rollout)
        invariants.check_finite("log-probs of the policy", rollout.log_probs, step + 1)
        if not self.on:
            return
        with self._timed():
            self._law(rollout)
            if self._thorough(step):
                few = rollout.batch.select(torch.arange(min(CHECK_ROWS, len(rollout))))
                ref_log_probs = response_log_probs(self.reference, few, self.temperature)
                if "start" not in self.book:
                    self._first(few, rollout.log_probs[: len(few), : few.mask.shape[1]], ref_log_probs)
                self._again(rollout, ref_log_probs)

    def _mask(self, rollout: Rollout) -> None:
        if self.on:
            with self._timed():
                tokens, ended = rollout.batch.response_ids, rollout.ended
                lengths = invariants.reply_lengths(tokens, ended, self.policy.end_id, self.max_new_tokens)
                invariants.check_mask(rollout.batch.mask, lengths)

    def _first(self, batch: TokenBatch, log_probs: Tensor, ref_log_probs: Tensor) -> None:
        """Before the first update: where the reference is the policy's own copy, the KL is 0. A few rows are kept."""
        if invariants.same_weights(self.policy.model, self.reference.model):
            pair = (batch, log_probs, ref_log_probs, self.temperature)
            cause = partial(invariants.diagnose, self.policy, *pair, other=self.reference)
            invariants.check_initial_kl(log_probs, ref_log_probs, batch.mask, self._tolerance, cause)
        few = batch.select(torch.arange(min(CHECK_ROWS, len(batch))))
        width = few.mask.shape[1]
        self.book["start"] = vars(few) | {"ref_log_probs": ref_log_probs[: len(few), :width].clone()}

    def _law(self, rollout: Rollout) -> tuple[TokenBatch, Tensor] | None:
        """The tokens of a few rows against the law that is scored; those rows and the logits of it [R, T, V]."""
        if rollout.logits is None:
            self.unchecked["sampled_law"] = "the logits that sampled were not kept (keep_logits of sample_responses)"
            return None
        few = rollout.batch.select(torch.arange(len(rollout.logits), device=rollout.batch.mask.device))
        logits = rollout.logits[:, : few.mask.shape[1]] / (self.temperature or 1.0)
        law = invariants.SampledLaw(end_id=self.policy.end_id, book=self.book.setdefault("sampled_law", {}))
        prompts = few.prompt_ids.masked_fill(~few.prompt_mask, -1)
        law.update(logits, few.response_ids, few.mask, prompts=prompts)
        return few, logits

    def _bets(self, rollout: Rollout, log_probs: Tensor, ref_log_probs: Tensor) -> None:
        """The tokens of a few rows against the law that is scored, and the logged KL of all."""
        known, price = self._law(rollout), None
        if known is not None:
            few, logits = known
            with torch.no_grad():
                price = invariants.log_price(logits, forward(self.reference, few).logits / self.temperature)
        slack = self._tolerance**2  # rounding of that size raises the mean of a bet by half of its square a token
        kl = invariants.KLSum(slack=slack, book=self.book.setdefault("kl_sum", {}))
        kl.update(log_probs - ref_log_probs, rollout.batch.mask, price)

    def _again(self, rollout: Rollout, ref_log_probs: Tensor) -> None:
        """A few rows once more, each alone, by policy and reference; the rows of the start."""
        few = rollout.batch.select(torch.arange(min(CHECK_ROWS, len(rollout))))
        rows, width = few.mask.shape
        invariants.check_prompts(self.policy, rollout.conversations[:rows], few)
        invariants.check_padding(self.policy, few, rollout.log_probs[:rows], self.temperature, self._tolerance)
        now = response_log_probs(self.reference, few, self.temperature)
        ref_tolerance = invariants.tolerance_for(self.reference.precision)
        invariants.check_reference_still(ref_log_probs[:rows, :width], now, few.mask, ref_tolerance)
        kept = dict(self.book["start"])
        before = kept.pop("ref_log_probs").to(now.device)
        start = TokenBatch(**kept).to(now.device)
        now = response_log_probs(self.reference, start, self.temperature)
        invariants.check_reference_still(before, now, start.mask, ref_tolerance)

    def _judged_again(self, rollout: Rollout, scores: Tensor, reward: Reward) -> None:
        """The same replies have the same scores, unless the reward draws random numbers."""
        tolerance = invariants.tolerance_for(getattr(reward, "precision", torch.float32))
        again = scores_of(reward, rollout)
        try:
            invariants.check_scores(scores, again, tolerance)
        except invariants.InvariantViolation:
            if torch.allclose(again, scores_of(reward, rollout), atol=tolerance):
                raise
            self.unchecked["scores"] = "the reward gives other scores for the same replies whenever it is asked"

    # -- from scores to advantages ------------------------------------------------------------------------------------
    def rewards(
        self,
        rewards: Tensor,
        scores: Tensor,
        kl_penalty: Tensor,
        log_probs: Tensor,
        ref_log_probs: Tensor,
        mask: Tensor,
        kl_coef: float,
    ) -> None:
        """The score is counted once and stands at the last token; the leash is there, once, and pulls the right way."""
        if not self.on:
            return
        with self._timed():
            tolerance = invariants.tolerance_for(torch.float32)
            invariants.check_leash_once(self.leash, in_reward=kl_coef > 0)
            invariants.check_score_counted_once(rewards, scores, kl_penalty, mask, tolerance)
            invariants.check_score_place(rewards, scores, kl_penalty, mask, tolerance)
            invariants.check_leash(kl_penalty, log_probs, ref_log_probs, mask, kl_coef, tolerance)

    def advantages(
        self,
        step: int,
        advantages: Tensor,
        rewards: Tensor,
        values: Tensor,
        discounts: Tensor,
        experience: Experience,
    ) -> None:
        """Discounts, advantages, what the loss takes of them, and the targets of the value.

        Args:
            advantages: [B, T] before whitening. values: [B, T + 1]. experience: what the update learns from.
        """
        self.experience = experience
        if not self._thorough(step):
            return
        with self._timed():
            mask, tolerance = experience.batch.mask, invariants.tolerance_for(torch.float32)
            invariants.check_discounts(discounts, mask)
            if self.gae_lambda is not None:
                lam = self.gae_lambda
                invariants.check_advantages(advantages, rewards, values, discounts, mask, lam, tolerance)
            if mask.sum() > 1:
                invariants.check_whitened(experience.advantages, advantages, mask, tolerance)
            if experience.returns is not None:
                invariants.check_returns(experience.returns, advantages, values, mask, tolerance)

    def groups(self, step: int, experience: Experience, rewards: Tensor) -> None:
        """Replies of a group are to one prompt, and their advantages sum to 0.

        Args:
            experience: what the update learns from. rewards: [G, K] of whole replies.
        """
        self.experience = experience
        if self._thorough(step):
            with self._timed():
                batch, tolerance = experience.batch, invariants.tolerance_for(torch.float32)
                prompts = batch.prompt_ids.masked_fill(~batch.prompt_mask, -1)
                invariants.check_groups(prompts, experience.advantages, batch.mask, rewards, tolerance)

    # -- an update ----------------------------------------------------------------------------------------------------
    def look(self, step: int, update: int, part: Experience, rows: Tensor) -> Look | None:
        """For `accumulate_gradient`: what sees the losses of an update; None where there is nothing to check.

        On the first minibatch of an iteration the ratio is 1; on the later ones the policy has moved.

        Args:
            step, update: iteration, and minibatch of it, from 0. part: the minibatch. rows: which rows it should be.
        """
        if not self._thorough(step):
            return None
        if self.experience is not None:
            check_minibatch(part, self.experience, rows)
        return partial(self._losses, update == 0)

    def distilled(self, step: int, first: bool, old_log_probs: Tensor, credit: str) -> Teach | None:
        """For `distillation_gradient`: what sees the loss of a minibatch; None where there is nothing to check.

        Args:
            first: minibatch of this iteration. old_log_probs: [B, T] nats from sampling. credit: as declared.
        """
        return partial(self._distilled, first, old_log_probs, credit) if self._thorough(step) else None

    def _distilled(
        self, first: bool, old_log_probs: Tensor, credit: str, rows: Tensor, part: TokenBatch, *of: Tensor
    ) -> None:
        logits, wanted, loss = of
        with self._timed():
            invariants.check_fresh_gradient(self.policy.model)
            tokens, mask, law = part.response_ids, part.mask, self.temperature
            if first:
                now, old = token_log_probs(logits.detach(), tokens, mask), old_log_probs[rows, : mask.shape[1]]
                cause = partial(invariants.diagnose, self.policy, part, old, now, law)
                invariants.check_first_minibatch(now, old, mask, self.clip_epsilon, self._tolerance, cause)
            few = part.select(torch.arange(min(CHECK_ROWS, len(part))))
            totals = token_log_probs(wanted, tokens, mask).sum(1)[: len(few)]
            tolerance = invariants.tolerance_for(self.reference.precision)
            invariants.check_totals(self.reference, few, totals, law, tolerance, "the teacher's pass")
            (pull,) = invariants.derivatives(loss, logits)
            tolerance = invariants.tolerance_for(torch.float32)
            size = (len(old_log_probs), credit, tolerance)
            invariants.check_distillation(pull, logits, wanted, tokens, mask, *size)

    def update(self, step: int, numbers: dict[str, float]) -> dict[str, float]:
        """The numbers of an update, as they came; the first ones stay near the policy that sampled."""
        if self.kl_limit is not None and step < BEGINNING:
            invariants.check_first_updates(numbers["approx_kl"], self.kl_limit)
        return numbers

    def _losses(self, first: bool, place: int, losses: Losses, part: Experience, count: Tensor) -> None:
        with self._timed():
            if place > 0:
                if self.pulled:
                    invariants.check_kept_gradient(self.policy.model)
                return
            batch, mask = part.batch, part.batch.mask
            invariants.check_fresh_gradient(self.policy.model)
            now, old, clip = losses.log_probs.detach(), part.old_log_probs, self.clip_epsilon
            if first:
                cause = partial(invariants.diagnose, self.policy, batch, old, now, self.temperature)
                invariants.check_first_minibatch(now, old, mask, clip, self._tolerance, cause)
            tolerance = invariants.tolerance_for(torch.float32)  # what follows compares numbers of one pass
            slope, by_logit = invariants.derivatives(losses.policy, losses.log_probs, losses.logits)
            self.pulled = bool(slope.any())
            invariants.check_surrogate(slope, now, old, part.advantages, mask, count, clip, tolerance)
            logits, by_logit = losses.logits / self.temperature, by_logit * self.temperature
            tokens, coef = batch.response_ids, self.entropy_coef
            invariants.check_bonus(by_logit, slope, logits, tokens, mask, count, coef, tolerance)
            invariants.check_leash_once(self.leash, in_loss=losses.leash is not None)
            if losses.leash is not None and self.leash is not None and part.ref_log_probs is not None:
                (pull,) = invariants.derivatives(losses.leash, losses.log_probs)
                away, weights = now - part.ref_log_probs, mask if part.weights is None else part.weights
                invariants.check_leash_in_loss(pull * count, away, weights, mask, *self.leash, tolerance)
            if first and losses.values is not None and part.returns is not None:
                (by_value,) = invariants.derivatives(losses.value, losses.values)
                invariants.check_value_loss(by_value, losses.values, part.returns, mask, count, tolerance)

    @property
    def _tolerance(self) -> float:
        return invariants.tolerance_for(self.policy.precision)


def check_minibatch(part: Experience, whole: Experience, rows: Tensor) -> None:
    """A minibatch holds the same rows of everything: tokens, log-probs, advantages, values and returns belong together.

    Raises:
        InvariantViolation: named "minibatch".
    """
    pairs = {"tokens": (part.batch.response_ids, whole.batch.response_ids)}
    for name in ("old_log_probs", "advantages", "old_values", "returns"):
        if getattr(whole, name) is not None:
            pairs[name] = (getattr(part, name), getattr(whole, name))
    mask = part.batch.mask
    for name, (some, all_rows) in pairs.items():
        if not torch.equal(some[mask], all_rows[rows, : mask.shape[1]][mask]):
            raise invariants.InvariantViolation(
                "minibatch",
                f"{name} of other rows than those of this minibatch",
                "the same rows of everything",
                "tokens were shuffled and something that belongs to them was not",
                "select all of it with one set of row numbers (`Experience.select`)",
                "05",
            )


# -- agents that act on observations ----------------------------------------------------------------------------------
@torch.no_grad()
def bet_on_actions(law: invariants.SampledLaw, policy: nn.Module, episodes: Episodes) -> None:
    """One round of bets that the actions were drawn from the policy; nothing for laws that are no Categorical.

    All steps count: to look at the first few of the finished rows would prefer short episodes.

    Raises:
        InvariantViolation: named "sampled_law".
    """
    mask = episodes.mask
    scored = policy(episodes.observations[:, :-1][mask])
    if isinstance(scored, Categorical):
        everything = torch.ones(1, len(scored.logits), dtype=torch.bool)
        law.update(scored.logits[None], episodes.actions[mask][None], everything)


def check_policy_loss(
    loss: Tensor,
    law: Distribution,
    actions: Tensor,
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    count: int,
    clip_epsilon: float,
    entropy_coef: float,
) -> None:
    """What a policy loss does to the log-probs of N actions, and to the logits of their law, is what was declared.

    Args:
        loss: to be minimised, perhaps with a value loss in it; in one graph with `log_probs` [N] and with the logits
            of the law, where it has any.
        old: [N] nats, of the law that acted. advantages: [N] as the loss takes them. count: the sum is divided by it.

    Raises:
        InvariantViolation: named "surrogate" or "bonus".
    """
    everything, tolerance = torch.ones_like(log_probs, dtype=torch.bool), invariants.tolerance_for(torch.float32)
    logits = law.logits if isinstance(law, Categorical) else None
    slope, *rest = invariants.derivatives(loss, log_probs, *([] if logits is None else [logits]))
    slope, log_probs, old, advantages, everything = (x[None] for x in (slope, log_probs, old, advantages, everything))
    invariants.check_surrogate(slope, log_probs, old, advantages, everything, count, clip_epsilon, tolerance)
    if logits is not None:
        invariants.check_bonus(
            rest[0][None], slope, logits[None], actions[None], everything, count, entropy_coef, tolerance
        )
