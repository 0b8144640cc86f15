"""Which live check must name which patient of the bug clinic; written down before the checks were tried on them.

The checks and what each compares, all on what the run itself logged:

    sampled_law         the tokens were drawn from the law that is scored (a bet, statistical)
    kl_sum              sampled against exact KL (a bet, statistical)
    mask                as many tokens under the mask as were sampled
    rescored            log-probs kept from sampling against a pass over the finished replies
    reference_still     the reference says of the same replies what it said before
    scores              a reply judged again has the same score
    score_counted_once  rewards without their KL part add up to the score
    score_place         the score stands at the last real token and nowhere else
    discounts           1 (gamma) while the reply goes on, 0 at its last token
    leash               the KL part of the rewards is -kl_coef times the log-ratio to the reference
    advantages          recomputed from rewards, values and discounts, row by row
    data                advantages carry no gradient
    ratio               exp(log_probs - those of the sampler), at every step
    surrogate           the derivative of the loss by each log-prob is that of the declared objective
    bonus               what else the loss does to the logits is the declared entropy bonus
"""

# The seventeen patients of the first clinic.
FIRST = {
    "0": "surrogate",  # the derivative has the other sign
    "A": "mask",  # fewer tokens than were sampled
    "B": "score_counted_once",  # the sum is a multiple of the score
    "C": "score_place",  # the sum is right, the place is not
    "D": "discounts",  # 1 at the last token
    "E": "advantages",  # another recursion
    "F": "discounts",  # 0 in the middle of a song
    "G": "advantages",  # those of a row alone differ
    "H": "data",  # require grad
    "I": "sampled_law",  # tempered at 0.6
    "J": "sampled_law",  # top-k; re-scoring hides it from every check of log-probs
    "K": "ratio",  # exactly 1 although the policy has moved
    "L": "bonus",  # the other sign
    "M": "leash",  # absent from the rewards although the coefficient is not 0
    "N": "leash",  # the other sign, from the second iteration on
    "O": "advantages",  # the mean of the *other* totals is declared
    "P": "surrogate",  # the weights of the tokens differ from 1 / tokens of the batch
}
# The patients that join them in this release.
NEW = {
    "logits off by one": "rescored",
    "stale old log-probs": "ratio",
    "a reference that moves": "reference_still",
    "top-k and temperature, scored again": "sampled_law",
    "shuffled rewards": "scores",
    "dropout in the reference": "reference_still",
}
# Patients that no live check can name, with the reason.
UNSEEN: dict[str, str] = {}
