"""Feedback as a reward model learns from it: the tokens of the replies that were judged, and what was said of them.

    records    rows of the field's formats become records as well
    said       of each record: which reply is better, which are tied, how good one is; or why the loss cannot use it
    tokens     all replies of a record are encoded once, however many pairs they form
    split      no prompt stands in two parts

Left out: edits and marks (`feedback.targets` makes comparisons of edits), and pairs of replies to different prompts.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations, compress

import torch
from tqdm.auto import tqdm

from rlhf_lab.feedback.formats import as_demonstrations, as_preferences
from rlhf_lab.feedback.targets import rating_to_unit, ratings_to_unit, z_scores
from rlhf_lab.maths.intervals import finite
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.tokens import count_cut, encode_prompts, encode_responses
from rlhf_lab.records import Choice, Comparison, Ranking, Rating, Record
from rlhf_lab.training.configs import require
from rlhf_lab.training.randomness import generator_for

UNUSED = {"skipped": "skipped", "all_bad": "all bad", "done": "one tie"}  # why a ranking forms no pair, by its status
Feedback = Sequence[Record | Mapping]
Pairs = list[tuple[int, int]]
Texts = tuple[str, ...]


@dataclass(frozen=True)
class Said:
    """What a record says of its replies, as indices into them.

    Attributes:
        pairs: (better, worse).
        leads: of each pair, how many places the better one's tier is above the other's, at least 1.
        ties: two that were called equally good.
        ordered: of an order, how many stand in it, from the best on; the others are below them in no order.
        target: of a rating, what the score should be: on [0, 1] for regression; 1 (good) or 0 for classification.
    """

    pairs: Pairs = field(default_factory=list)
    leads: list[int] = field(default_factory=list)
    ties: Pairs = field(default_factory=list)
    ordered: int = 0
    target: float | None = None


@dataclass(frozen=True)
class Judged:
    """One record as tokens.

    Attributes:
        prompt: token ids.
        replies: token ids of each, best first.
        said: of these replies.
        row: which of the records it was, from 0.
        weight: how much it counts, above 0.
    """

    prompt: list[int]
    replies: list[list[int]]
    said: Said
    row: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """Feedback that a loss can use.

    Attributes:
        judged: the records that are used.
        agreement: of every pair in `judged`, p(the rater prefers the better one), where it is known.
        reasons: why the other records are not used -> how many.
        cut: replies that were cut at the limit.
    """

    judged: list[Judged]
    agreement: list[float] | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)
    cut: int = 0


# -- records ----------------------------------------------------------------------------------------------------------
def as_feedback(rows: Feedback) -> list[Record]:
    """Records as they are, and rows of the field's formats as records.

    Args:
        rows: records; rows with `prompt`, `chosen`, `rejected`, which become a `Comparison`; rows with `prompt`,
            `completion` and `label` (true: good), which become a `Rating` on the scale from 0 to 1.

    Raises:
        ValueError: names the row, its field and what to do.

    Example:
        >>> [given] = as_feedback([{"prompt": "Hi", "completion": "Hello.", "label": True}])
        >>> given.reply, given.score
        ('Hello.', 1.0)

    Source: the unpaired format of the TRL library's documentation. Chapter 09.
    """
    return [row if isinstance(row, Record) else _from_row(i, row) for i, row in enumerate(rows)]


def _from_row(number: int, row: object) -> Record:
    labelled = isinstance(row, Mapping) and "label" in row and not {"chosen", "rejected"} & row.keys()
    try:
        if not labelled:
            return as_preferences([row])[0]  # type: ignore[list-item]  # it refuses what is no row
        [given] = as_demonstrations([row])  # type: ignore[list-item]
    except ValueError as error:
        raise ValueError(str(error).replace("row 0", f"row {number}", 1)) from None
    label = row["label"]  # type: ignore[index]
    require(label in (0, 1), f"row {number}, label", label, "true for a good reply, false for a bad one")
    rater, simulated = row.get("rater") or "", bool(row.get("simulated"))  # type: ignore[attr-defined]
    return Rating(given.prompt, given.response, float(label), 0.0, 1.0, str(rater), simulated)


# -- what is said -----------------------------------------------------------------------------------------------------
def _pairs(record: Record) -> tuple[Texts, Said] | str:
    """All pairs of replies in different tiers that are not the same text."""
    texts, tiers = _tiers(record)
    found = [
        (better, worse, lower - upper)
        for upper, lower in combinations(range(len(tiers)), 2)
        for better in tiers[upper]
        for worse in tiers[lower]
        if texts[better] != texts[worse]
    ]
    pairs, leads = [pair[:2] for pair in found], [pair[2] for pair in found]
    return (texts, Said(pairs, leads)) if pairs else _why(record)


def _pairs_and_ties(record: Record) -> tuple[Texts, Said] | str:
    texts, tiers = _tiers(record)
    ties = [pair for tier in tiers for pair in combinations(tier, 2) if texts[pair[0]] != texts[pair[1]]]
    found = _pairs(record)
    said = Said() if isinstance(found, str) else found[1]
    return (texts, replace(said, ties=ties)) if said.pairs or ties else _why(record)


def _order(record: Record) -> tuple[Texts, Said] | str:
    """The order as a whole; a tie of the last ones says that they are below the others, in no order."""
    found, tiers = _pairs(record), _tiers(record)[1]
    if isinstance(found, str):
        return found
    if any(len(tier) > 1 for tier in tiers[:-1]):
        return "tie above the last place, for which there is loss='davidson'"
    texts, said = found
    return texts, replace(said, ordered=len(texts) if len(tiers[-1]) == 1 else len(texts) - len(tiers[-1]))


def _tiers(record: Record) -> tuple[Texts, list[list[int]]]:
    """The replies best first, and their tiers as indices into them; nothing of a record that orders nothing."""
    if isinstance(record, Comparison):
        return (record.chosen, record.rejected), [[0], [1]]
    if isinstance(record, Choice):
        texts = (record.left, record.right)[:: record.outcome or 1]
        return texts, [[0], [1]] if record.outcome else [[0, 1]]
    if not isinstance(record, Ranking):
        return (), []
    order = [index for tier in record.tiers for index in tier]
    place = {index: position for position, index in enumerate(order)}
    return tuple(record.replies[i] for i in order), [[place[i] for i in tier] for tier in record.tiers]


def _why(record: Record) -> str:
    """Why a record forms no pair."""
    if isinstance(record, Ranking):
        return UNUSED[record.status]
    return "one tie" if isinstance(record, Choice) else type(record).__name__


def _rating(record: Record) -> tuple[Texts, Said] | str:
    if not isinstance(record, Rating):
        return type(record).__name__
    return (record.reply,), Said(target=rating_to_unit(record))


def _label(record: Record) -> tuple[Texts, Said] | str:
    """Above or below the middle of the scale."""
    if not isinstance(record, Rating):
        return type(record).__name__
    unit = rating_to_unit(record)
    return ((record.reply,), Said(target=float(unit > 0.5))) if unit != 0.5 else "Rating in the middle of its scale"


READ: dict[str, Callable[[Record], tuple[Texts, Said] | str]] = {
    "bradley_terry": _pairs,
    "plackett_luce": _order,
    "davidson": _pairs_and_ties,
    "regression": _rating,
    "classification": _label,
}  # loss -> what it can use of a record, or why it cannot
NEEDED = {
    "bradley_terry": "pair",
    "plackett_luce": "pair",
    "davidson": "pair or tie",
    "regression": "rating",
    "classification": "label",
}


def read_said(records: Sequence[Record], loss: str) -> list[tuple[Texts, Said] | str]:
    """Of every record its replies, best first, and what it says of them; or why the loss cannot use it.

    For regression the targets are relative to what a rater usually gives,

        target = Phi((x - mean_r) / std_r),    x on [0, 1] by the ends of the scale, Phi the normal distribution

    because one is mild and another stern; see `feedback.targets.ratings_to_unit` for what that loses.
    """
    found = [READ[loss](record) for record in records]
    if loss != "regression":
        return found
    units = iter(ratings_to_unit([record for record in records if isinstance(record, Rating)], z_scores).tolist())
    return [one if isinstance(one, str) else (one[0], replace(one[1], target=next(units))) for one in found]


# -- tokens -----------------------------------------------------------------------------------------------------------
def prepare_feedback(
    lm: LanguageModel,
    feedback: Feedback,
    loss: str,
    max_new_tokens: int,
    weights: Sequence[float] | None = None,
    agreement: Sequence[float] | None = None,
) -> Prepared:
    """Feedback as tokens, without what the loss cannot use; what is left out, and why, is said on the screen.

    Args:
        lm: gives the tokenizer.
        feedback: see `as_feedback`.
        loss: one of `READ`.
        max_new_tokens: longer replies are cut.
        weights: of each record, see `train_reward_model`.
        agreement: p(the rater prefers the better one), of every pair in the order of the records.

    Raises:
        ValueError: weights or an agreement that do not fit.
    """
    records = as_feedback(feedback)
    counts = checked_weights(weights, len(records))
    encoded, reasons = encode_feedback(lm, records, loss, max_new_tokens, counts)
    if agreement is not None:
        pairs = sum(len(one.said.pairs) for one in encoded)
        require(
            len(agreement) == pairs,
            "agreement",
            f"{len(agreement)} numbers",
            f"one for each of the {pairs} pairs of held_out",
        )
    judged, agreed = without_equal_pairs(lm, encoded, loss, max_new_tokens, agreement)
    if lost := len(encoded) - len(judged):
        reasons["equal up to the cut"] += lost
    cut = count_cut(lm, (reply for one in encoded for reply in one.replies))
    return Prepared(judged, agreed, dict(reasons), cut)


def checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """One finite weight from 0 on for each record; a negative one is refused, because its loss has no minimum."""
    if weights is None:
        return [1.0] * count
    require(len(weights) == count, "weights", f"{len(weights)} numbers", f"one for each of the {count} records")
    found: list[float] = finite(weights, "weights").tolist() if count else []
    for i, weight in enumerate(found):
        remedy = "0 or more; who prefers the opposite of what he says is turned round, with the weight above 0"
        require(weight >= 0, f"weights[{i}]", weight, remedy)
    return found


def encode_feedback(
    lm: LanguageModel, records: Sequence[Record], loss: str, max_new_tokens: int, weights: Sequence[float] | None = None
) -> tuple[list[Judged], Counter[str]]:
    """The usable records as tokens, each reply encoded once; and why the others are not used, which is said."""
    found, reasons = [], Counter[str]()
    counts = [1.0] * len(records) if weights is None else weights
    for row, (one, weight) in enumerate(zip(read_said(records, loss), counts, strict=True)):
        if isinstance(one, str) or weight == 0:
            reasons[one if isinstance(one, str) else "weight 0"] += 1
        else:
            found.append((row, *one, weight))
    if reasons:
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        tqdm.write(f"left out, because they hold no {NEEDED[loss]} for the loss: {listed}")
    prompts = encode_prompts(lm, [records[row].prompt for row, *_ in found], max_new_tokens)
    replies = [encode_responses(lm, texts, max_new_tokens) for _, texts, _, _ in found]
    rows = zip(prompts, replies, found, strict=True)
    return [Judged(prompt, tokens, said, row, weight) for prompt, tokens, (row, _, said, weight) in rows], reasons


def without_equal_pairs(
    lm: LanguageModel,
    judged: Sequence[Judged],
    loss: str,
    max_new_tokens: int,
    agreement: Sequence[float] | None = None,
) -> tuple[list[Judged], list[float] | None]:
    """The records, and the agreement to their pairs, without pairs that are equal up to the cut; both are said."""
    different = [[one.replies[a] != one.replies[b] for a, b in one.said.pairs] for one in judged]
    if loss == "plackett_luce":  # which takes an order as a whole or not at all
        different = [[all(pairs)] * len(pairs) for pairs in different]
    replies, flat = [reply for one in judged for reply in one.replies], list(chain(*different))
    if cut := count_cut(lm, replies):
        lost = f"; {flat.count(False)} pairs that became equal by that are left out" if not all(flat) else ""
        tqdm.write(f"{cut} of {len(replies)} replies were cut at max_new_tokens = {max_new_tokens}{lost}")
    kept = [_without(one, keep) for one, keep in zip(judged, different, strict=True)]
    usable = [one for one in kept if one.said.pairs or one.said.ties or one.said.target is not None]
    return usable, None if agreement is None else list(compress(agreement, flat))


def _without(one: Judged, keep: list[bool]) -> Judged:
    """The record with these of its pairs, and with the ties of replies that still differ."""
    said = one.said
    ties = [(a, b) for a, b in said.ties if one.replies[a] != one.replies[b]]
    pairs, leads = list(compress(said.pairs, keep)), list(compress(said.leads, keep))
    return replace(one, said=replace(said, pairs=pairs, leads=leads, ties=ties))


# -- parts ------------------------------------------------------------------------------------------------------------
def split_by_prompt(judged: Sequence[Judged], share: float, seed: int) -> tuple[list[Judged], list[Judged]]:
    """(for training, for validation): no prompt is in both, and about `share` of all prompts is in the second."""
    prompts = sorted({tuple(one.prompt) for one in judged})
    count = round(share * len(prompts))
    if share > 0:
        expected = "enough feedback for at least one prompt on either side; set it to 0"
        require(1 <= count < len(prompts), "validation_share", f"{share} of {len(prompts)} prompts", expected)
    order = torch.randperm(len(prompts), generator=generator_for(seed, "reward validation")).tolist()
    apart = {prompts[i] for i in order[:count]}
    return [c for c in judged if tuple(c.prompt) not in apart], [c for c in judged if tuple(c.prompt) in apart]


def with_mean_weight_one(judged: Sequence[Judged]) -> list[Judged]:
    """The records with weights that have mean 1, so that the loss keeps its scale."""
    mean = sum(one.weight for one in judged) / max(1, len(judged))
    return [replace(one, weight=one.weight / mean) for one in judged]
