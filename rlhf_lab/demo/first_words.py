"""The first sentences of a report: how far the judgements reach, from judgements alone.

Nobody who labels replies has an oracle, so these sentences never look at the true reward, and never say "better":
whether a policy became better, only judgements of its own replies can say.
"""

import math

from rlhf_lab.maths.intervals import Interval


def opening(judgements: int, few: bool, accuracy: Interval | None, loss: float | None = None) -> str:
    """What the report opens with; a warning where labels are few, or do not predict those held out.

    Args:
        judgements: records that the reward model learned from.
        few: whether the recipe for few labels was taken.
        accuracy: share of held-out judgements that the reward model predicts; None where none is held out.
        loss: of those, nats a choice; a coin has log 2. None where it is not known.

    Example:
        >>> from rlhf_lab.maths.intervals import Share
        >>> print(opening(20, True, Share(0.55, 0.4, 0.7, 20)))
        Warning: the reward model learned from 20 judgements and predicts 55 % of those held out (40 to 70 %), no better than a coin as far as they tell. Do not use this policy; collect more judgements.

    Chapter 09.
    """  # noqa: E501
    if accuracy is None:
        return (
            f"Warning: of {judgements} judgements none is held out, so nothing says whether the reward model is right."
        )
    right, low, high = (f"{100 * share:.0f}" for share in (accuracy.mean, accuracy.low, accuracy.high))
    learned = f"the reward model learned from {judgements:,} judgements and predicts {right} % of those held out"
    learned += f" ({low} to {high} %)"
    if accuracy.verdict != "above 0.5":
        remedy = "Do not use this policy; collect more judgements."
        return f"Warning: {learned}, no better than a coin as far as they tell. {remedy}"
    if loss is not None and loss >= math.log(2):
        remedy = "The judgements do not suffice: collect more before you use this policy."
        sure = f"but is surer than it should be: {loss:.2f} nats a choice, a coin has 0.69"
        return f"Warning: {learned}, {sure}. {remedy}"
    if few:
        remedy = "Compare its replies with the old ones yourself before you use it."
        return f"Warning: {learned}. So few judgements can make a policy worse. {remedy}"
    return f"{learned[0].upper()}{learned[1:]}."
