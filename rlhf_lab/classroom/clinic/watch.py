"""The live checks of the library on a run of the clinic: what they see, and how often they fired."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from rlhf_lab.classroom.clinic.parts import CLIP, ENTROPY_COEF, GROUP, KL_COEF, LAM, Prepared, Step, rows_of
from rlhf_lab.classroom.clinic.songs import EOS, LENGTH, Replies, reference_logits
from rlhf_lab.experience import invariants
from rlhf_lab.maths.tensors import check_data, length_mask, masked_sum

Check = Callable[[], None]
TOLERANCE = 1e-6  # everything is float64


@dataclass
class Watch:
    """The live checks of a run that declares PPO with a clip, GAE or the mean of the others, a leash in the reward.

    Attributes:
        fired: name of a live check -> (iterations in which it was violated, first message).
        law, kl: the bets that go on from iteration to iteration.
        first: replies of the first iteration, and what the reference said of them.
    """

    fired: dict[str, tuple[int, str]] = field(default_factory=dict)
    law: invariants.SampledLaw = field(default_factory=lambda: invariants.SampledLaw(end_id=EOS))
    kl: invariants.KLSum = field(default_factory=invariants.KLSum)
    first: tuple[Replies, Tensor] | None = None

    def look(self, step: Step) -> None:
        """Look at a step before it is taken, in the first three iterations and in every fifth."""
        if not (step.number <= 3 or step.number % 5 == 0):
            return
        for name, message in self.violations(step):
            count, first = self.fired.get(name, (0, message))
            self.fired[name] = (count + 1, first)

    def violations(self, step: Step) -> Iterator[tuple[str, str]]:
        """(name, message) of each check that this step violates."""
        checks = self.of_loss(step)
        if step.epoch == 0:
            checks |= self.of_replies(step) | of_rewards(step.data) | of_advantages(step)
        for name, check in checks.items():
            try:
                check()
            except (invariants.InvariantViolation, ValueError) as violation:
                yield name, str(violation)

    def of_replies(self, step: Step) -> dict[str, Check]:
        """Tokens, mask, log-probs, reference and scores of fresh replies."""
        replies, data, now = step.replies, step.data, step.log_probs.detach()
        true_mask = length_mask(replies.lengths, LENGTH)
        if self.first is None:
            self.first = replies, data.ref_log_probs
        kept, said = self.first
        rows, ref_rows = step.rows.detach(), rows_of(replies, reference_logits())
        price = invariants.log_price(rows, ref_rows)
        log_ratio = step.parts.log_ratio(data.old_log_probs, data.ref_log_probs)

        def reference_still() -> None:
            kept_mask = length_mask(kept.lengths, LENGTH)
            again = ((said, kept, kept_mask), (data.ref_log_probs, replies, true_mask))
            for before, asked, mask in again:
                invariants.check_reference_still(before, data.ask_reference(asked), mask, TOLERANCE)

        checks: dict[str, Check] = {
            "sampled_law": lambda: self.law.update(rows, replies.tokens, true_mask),
            "kl_sum": lambda: self.kl.update(log_ratio, true_mask, price),
            "mask": lambda: invariants.check_mask(data.mask, replies.lengths),
            "rescored": lambda: invariants.check_rescored(replies.log_probs, data.rescored, true_mask, TOLERANCE),
            "first_minibatch": lambda: invariants.check_first_minibatch(
                now, data.old_log_probs, data.mask, CLIP, TOLERANCE
            ),
            "reference_still": reference_still,
            "scores": lambda: invariants.check_scores(data.scores, replies.scores, TOLERANCE),
        }
        if step.number == 1:
            checks["initial_kl"] = lambda: invariants.check_initial_kl(now, data.ref_log_probs, data.mask, TOLERANCE)
        return checks

    def of_loss(self, step: Step) -> dict[str, Check]:
        """The ratio, and what the loss does to log-probs and logits."""
        replies, data, mask = step.replies, step.data, step.data.mask
        slope, by_logit = invariants.derivatives(step.policy_loss, step.log_probs, step.rows)
        now, gains, count = step.log_probs.detach(), data.advantages.detach(), mask.sum()
        surrogate = (slope, now, data.old_log_probs, gains, mask, count, CLIP, TOLERANCE)
        bonus = (by_logit, slope, step.rows, replies.tokens, mask, count, ENTROPY_COEF, TOLERANCE)
        return {
            "ratio": lambda: invariants.check_ratio(step.ratio, now, replies.log_probs, mask, TOLERANCE),
            "surrogate": lambda: invariants.check_surrogate(*surrogate),
            "bonus": lambda: invariants.check_bonus(*bonus),
        }


def of_rewards(data: Prepared) -> dict[str, Check]:
    """Scores, places, discounts and the leash."""
    paid = (data.rewards, data.scores, data.penalty, data.mask, TOLERANCE)
    leash = (data.penalty, data.old_log_probs, data.ref_log_probs, data.mask, KL_COEF, TOLERANCE)
    return {
        "score_counted_once": lambda: invariants.check_score_counted_once(*paid),
        "score_place": lambda: invariants.check_score_place(*paid),
        "discounts": lambda: invariants.check_discounts(data.discounts, data.mask),
        "leash": lambda: invariants.check_leash(*leash),
    }


def of_advantages(step: Step) -> dict[str, Check]:
    """Advantages computed again, as data, and the targets of the values."""
    data, advantages = step.data, step.data.advantages.detach()

    def recomputed() -> None:
        if step.parts.baseline is not None:
            totals = masked_sum(data.rewards, data.mask, dim=1).view(-1, GROUP)
            invariants.check_baseline(advantages[:, 0].view(-1, GROUP), totals, TOLERANCE)
            return
        for start in range(0, LENGTH, step.parts.fragment):
            part = slice(start, start + step.parts.fragment)
            values = data.values[:, start : min(part.stop, LENGTH) + 1]
            rows = (data.rewards[:, part], values, data.discounts[:, part], data.mask[:, part])
            invariants.check_advantages(advantages[:, part], *rows, LAM, TOLERANCE)

    return {
        "advantages": recomputed,
        "data": lambda: check_data(advantages=data.advantages),
        "returns": lambda: invariants.check_returns(data.targets, advantages, data.values, data.mask, TOLERANCE),
    }
