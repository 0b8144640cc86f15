"""From the scores of the replies of one record to its loss; what each loss can use of a record is in `reward_data`.

    bradley_terry     mean over pairs of       -log sigmoid(s_better - s_worse - margin * places between their tiers)
    plackett_luce     of an order              sum over its places of  log sum of exp(s) of what is left - s
    davidson          mean over pairs, ties    -log P(what was said),  P(left) : P(tie) : P(right) as in Davidson 1970
    regression        of a rating              1/2 (s - target)^2
    classification    of a label               -log sigmoid(s) if good, -log sigmoid(-s) if bad

The formulas stand in `maths.preferences`. The first three depend on differences within a prompt alone, the last two on
the level of the score as well. Left out: losses of several raters with a scale each.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lab.maths.preferences import bradley_terry_loss, davidson_loss, plackett_luce_loss, rating_loss
from rlhf_lab.recipes.reward_data import Judged, Said


def record_loss(
    scores: Tensor, said: Said, loss: str, margin: float = 0.0, log_nu: Tensor | float | None = None
) -> Tensor:
    """Loss of one record in nats (regression: in squared units of the target), a scalar.

    Args:
        scores: [K] raw scores of its replies.
        said: of these replies.
        loss: one of those above.
        margin: of Bradley-Terry, the lead that a better reply should have for every place between the two tiers, in
            the units of the raw score.
        log_nu: of Davidson, how easily the raters call a tie.

    Example:
        >>> round(record_loss(torch.zeros(3), Said(ordered=3), "plackett_luce").item(), 4)    # log 3!
        1.7918

    Source: Ouyang et al. 2022, equation 1; the margin: Touvron et al. 2023, section 3.2.2. Chapter 09.
    """
    return LOSSES[loss](scores, said, margin, log_nu)


def _bradley_terry(scores: Tensor, said: Said, margin: float, log_nu: object) -> Tensor:
    better, worse = map(list, zip(*said.pairs, strict=True))
    leads = margin * torch.tensor(said.leads, dtype=scores.dtype, device=scores.device) if margin else 0.0
    return bradley_terry_loss(scores[better], scores[worse], leads).mean()


def _plackett_luce(scores: Tensor, said: Said, margin: float, log_nu: object) -> Tensor:
    present = torch.ones_like(scores[None], dtype=torch.bool)
    return plackett_luce_loss(scores[None], present, said.ordered).squeeze(0)


def _davidson(scores: Tensor, said: Said, margin: float, log_nu: Tensor | float | None) -> Tensor:
    left, right = map(list, zip(*said.pairs, *said.ties, strict=True))
    outcome = torch.tensor([1] * len(said.pairs) + [0] * len(said.ties), device=scores.device)
    return davidson_loss(scores[left], scores[right], outcome, 0.0 if log_nu is None else log_nu).mean()


def _regression(scores: Tensor, said: Said, margin: float, log_nu: object) -> Tensor:
    return rating_loss(scores, torch.full_like(scores, said.target or 0.0, requires_grad=False)).mean()


def _classification(scores: Tensor, said: Said, margin: float, log_nu: object) -> Tensor:
    good, bad = (scores, torch.zeros_like(scores))[:: 1 if said.target else -1]
    return bradley_terry_loss(good, bad).mean()


LOSSES = {
    "bradley_terry": _bradley_terry,
    "plackett_luce": _plackett_luce,
    "davidson": _davidson,
    "regression": _regression,
    "classification": _classification,
}


def first_log_nu(judged: Sequence[Judged]) -> float:
    """Where log nu starts: as many ties as there are, if all scores were equal.

        P(tie) = nu / (nu + 2) = share of ties,    each kind counted once more than it occurs

    Example:
        >>> tied, better = Said(ties=[(0, 1)]), Said([(0, 1)], [1])
        >>> round(first_log_nu([Judged([0], [[1], [2]], said) for said in (tied, better)]), 4)    # log 2
        0.6931
    """
    ties = 1 + sum(len(one.said.ties) for one in judged)
    pairs = 1 + sum(len(one.said.pairs) for one in judged)
    return math.log(2 * ties / pairs)
