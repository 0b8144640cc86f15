"""Facts that hold in every correct run of RLHF, checked while it runs; a violation explains itself.

A wrong temperature, a missing position or a score counted twice does not crash: the run learns a little less, or
something else. Each check compares what a run logged with what follows from it by definition; two are statistical,
and `sampled_law` derives how seldom they err. `live.LiveChecks` makes them in `train_rlhf`.
"""

from rlhf_lab.experience.invariants.losses import (
    check_bonus,
    check_first_updates,
    check_fresh_gradient,
    check_kept_gradient,
    check_leash_in_loss,
    check_ratio,
    check_surrogate,
    check_value_loss,
    derivatives,
)
from rlhf_lab.experience.invariants.replies import (
    MISMATCH_CAUSES,
    check_first_minibatch,
    check_initial_kl,
    check_mask,
    check_padding,
    check_prompts,
    check_reference_apart,
    check_reference_still,
    check_rescored,
    check_scores,
    diagnose,
    reply_lengths,
)
from rlhf_lab.experience.invariants.rewards import (
    check_advantages,
    check_baseline,
    check_discounts,
    check_groups,
    check_leash,
    check_returns,
    check_score_counted_once,
    check_score_place,
    check_whitened,
)
from rlhf_lab.experience.invariants.sampled_law import ALPHA, GRID, Alternative, KLSum, SampledLaw, log_price
from rlhf_lab.experience.invariants.violation import InvariantViolation, check_finite, tolerance_for

__all__ = [
    "ALPHA",
    "GRID",
    "MISMATCH_CAUSES",
    "Alternative",
    "InvariantViolation",
    "KLSum",
    "SampledLaw",
    "check_advantages",
    "check_baseline",
    "check_bonus",
    "check_discounts",
    "check_finite",
    "check_first_minibatch",
    "check_first_updates",
    "check_fresh_gradient",
    "check_groups",
    "check_initial_kl",
    "check_kept_gradient",
    "check_leash",
    "check_leash_in_loss",
    "check_mask",
    "check_padding",
    "check_prompts",
    "check_ratio",
    "check_reference_apart",
    "check_reference_still",
    "check_rescored",
    "check_returns",
    "check_score_counted_once",
    "check_score_place",
    "check_scores",
    "check_surrogate",
    "check_value_loss",
    "check_whitened",
    "derivatives",
    "diagnose",
    "log_price",
    "reply_lengths",
    "tolerance_for",
]
