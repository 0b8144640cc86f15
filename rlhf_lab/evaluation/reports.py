"""Is it better? Oracle, reward model, KL, perplexity, BLEU, ROUGE, win rate, each with an interval.

A table of bare means from a few hundred replies invites stories about noise, so a mean never comes alone.
What is not known is None and never invented: the oracle judges only prompts of the town.
Left out: significance stars, and corrections for many comparisons.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor
from torch.nn.functional import cross_entropy

from rlhf_lab.experience.rollouts import Rollout, sample_responses
from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.maths.preferences import best_possible_accuracy, expected_accuracy
from rlhf_lab.maths.tensors import length_mask, masked_sum
from rlhf_lab.models.language_model import LanguageModel, response_log_probs
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.worlds.town.oracle import Verdict, score_replies
from rlhf_lab.worlds.town.skills import recognise

ORACLE_PARTS = ("helpful", "truthful", "harmless", "form")


# -- intervals -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value is likely to be.

    Attributes:
        mean: the estimate.
        low, high: ends of the interval; infinite where the data say nothing about the spread.
        count: values, pairs or documents it rests on.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def verdict(self) -> str:
        """'above 0', 'below 0', or 'INCONCLUSIVE' where the interval holds 0."""
        if self.low > 0:
            return "above 0"
        return "below 0" if self.high < 0 else "INCONCLUSIVE"


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values with Student's t-interval.

        mean +- t(n - 1, (1 + level) / 2) * s / sqrt(n),    s^2 the unbiased variance

    Exact for normal values, good for many others from n = 30 on. Values that share a prompt or a seed are not
    independent: average them first. For a share near 0 or 1 use `proportion_interval`.

    Args:
        values: [n] finite numbers, n >= 1. One value has an infinite interval.
        level: probability in (0, 1) that the interval holds the true mean.

    Raises:
        ValueError: no values, a value that is not finite, or an impossible level.

    Example:
        >>> interval = mean_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 2), interval.mean, round(interval.high, 2), interval.verdict
        (-0.48, 2.0, 4.48, 'INCONCLUSIVE')

    Source: Student 1908, The probable error of a mean. Chapter 11.
    """
    array = _finite(values, "values")
    _check_level(level)
    mean, count = float(array.mean()), len(array)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = float(stdtrit(count - 1, (1 + level) / 2) * array.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def paired_difference(after: Sequence[float], before: Sequence[float], level: float = 0.95) -> Interval:
    """`mean_interval` of after - before, row by row: the same prompts, or the same seeds, in the same order.

    Pairing removes what the rows share, such as how hard the prompt is. A row with None on either side is
    left out.

    Example:
        >>> paired_difference([2.0, 3.1, 4.0], [1.0, 2.0, 3.0]).verdict
        'above 0'
    """
    if len(after) != len(before):
        raise ValueError(f"after and before must pair up, got {len(after)} and {len(before)} values")
    rows = [(a, b) for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    return mean_interval([a - b for a, b in rows], level)


def proportion_interval(successes: float, count: int, level: float = 0.95) -> Interval:
    """Share successes / count with Wilson's score interval, which stays inside [0, 1] and never has width 0.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),    z the normal quantile

    `successes` may also be a sum of values in [0, 1]: of all laws on [0, 1] with mean p, yes-or-no has the
    largest variance, so the interval is then too wide rather than too narrow.

    Args:
        successes: in [0, count].
        count: independent trials, at least 1.

    Example:
        >>> interval = proportion_interval(0, 10)
        >>> interval.low, round(interval.high, 3)
        (0.0, 0.278)

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference. Chapter 11.
    """
    _check_level(level)
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"successes must be in [0, count] and count at least 1, got {successes} of {count}")
    share, z = successes / count, float(ndtri((1 + level) / 2))
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # The ends are exactly 0 and 1 at shares 0 and 1; rounding would leave them a hair off.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == count else (centre + half) / scale
    return Interval(share, low, high, count)


def win_rate(wins: int, ties: int, losses: int, level: float = 0.95) -> Interval:
    """Share of comparisons won, a tie counted half, with `proportion_interval` (too wide with ties).

    Example:
        >>> win_rate(6, 2, 2).mean
        0.7
    """
    if min(wins, ties, losses) < 0:
        raise ValueError(f"wins, ties and losses must be counts >= 0, got {wins}, {ties} and {losses}")
    return proportion_interval(wins + ties / 2, wins + ties + losses, level)


def ratio_of_means_bootstrap(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """mean(numerators) / mean(denominators) with a percentile interval from resampled pairs.

    Valid where the mean of the denominators is well away from 0; if its sign changes between resamples the
    ratio can be anything, and the interval is infinite. With fewer than about 10 pairs the interval is too
    narrow.

    Args:
        numerators, denominators: [n] finite numbers; position i of both is one replicate (a seed, a
            document).
        seed: of the resampling.

    Raises:
        ValueError: lengths that differ, no pairs, or denominators with mean 0.

    Example:
        >>> ratio_of_means_bootstrap([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).low
        2.0

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13. Chapter 11.
    """
    top, bottom = _finite(numerators, "numerators"), _finite(denominators, "denominators")
    _check_level(level)
    if len(top) != len(bottom):
        raise ValueError(f"numerators and denominators must pair up, got {len(top)} and {len(bottom)} values")
    if bottom.mean() == 0:
        raise ValueError("the mean of denominators is 0: the ratio does not exist; report the difference instead")
    ratio, count = float(top.mean() / bottom.mean()), len(top)
    picks = np.random.default_rng(seed).integers(count, size=(resamples, count))
    means = bottom[picks].mean(1)
    if count == 1 or (np.sign(means) != np.sign(bottom.mean())).any():
        return Interval(ratio, -math.inf, math.inf, count)
    low, high = np.quantile(top[picks].mean(1) / means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(ratio, float(low), float(high), count)


def _finite(values, name) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be one or more finite numbers in a row, got {values!r:.80}")
    return array


def _check_level(level) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability between 0 and 1, got {level}")


# -- text ----------------------------------------------------------------------------------------------------
@torch.no_grad()
def document_nll(lm: LanguageModel, texts: Sequence[str], micro_batch: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of each document and the number of tokens it is over.

        nll[i] = -sum over t >= 2 of log p(token t | tokens before t),    tokens[i] = length - 1

    Args:
        texts: N documents, tokenised as the tokenizer does by default; what exceeds the context is cut off.
        micro_batch: documents in one pass, of similar length, padded on the right under a mask.

    Returns:
        nll [N] in nats and tokens [N].

    Raises:
        ValueError: no documents, or one of fewer than two tokens.
    """
    rows = [lm.tokenizer(text)["input_ids"][: lm.max_length] for text in texts]
    short = [i for i, row in enumerate(rows) if len(row) < 2]
    if short or not rows:
        got = f"texts[{short[0]}] = {texts[short[0]]!r}" if short else "none"
        raise ValueError(f"texts must be documents of at least 2 tokens, got {got}")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    nll = np.zeros(len(rows))
    for start in range(0, len(rows), micro_batch):
        part = order[start : start + micro_batch]
        nll[part] = _batch_nll(lm, [rows[i] for i in part]).cpu().numpy()
    return nll, np.array([len(row) - 1 for row in rows])


def _batch_nll(lm, rows) -> Tensor:
    """Sums [b] over the real tokens but the first of each row."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [lm.pad_id] * (width - len(row)) for row in rows], device=lm.device)  # [b, T]
    mask = length_mask(torch.tensor([len(row) for row in rows], device=lm.device), width)
    with lm.autocast():
        logits = lm.model(ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")  # [b, T - 1]
    return masked_sum(losses.double(), mask[:, 1:], dim=1)


def perplexity(lm: LanguageModel, texts: Sequence[str], micro_batch: int = 16) -> Interval:
    """exp(mean nats per token) over documents: all their tokens but the first, each token with equal weight.

    The interval is from resampling documents, since the tokens of one document are not independent.
    Perplexities of models with different tokenizers cannot be compared: their tokens are different things.

    Example:
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> lm = load_language_model("tiny")
        >>> perplexity(lm, ["The library closes at six."]).mean < perplexity(lm, ["Six at the closes."]).mean
        True

    Source: Jurafsky and Martin, Speech and Language Processing, chapter on n-gram models. Chapter 07.
    """
    nats = ratio_of_means_bootstrap(*document_nll(lm, texts, micro_batch), resamples=1000)
    return Interval(math.exp(nats.mean), math.exp(nats.low), _exp(nats.high), nats.count)


def _exp(x) -> float:
    return math.exp(x) if x < 700 else math.inf


def bleu(replies: Sequence[str], references: Sequence[str], tokenize: str = "zh") -> float:
    """Corpus BLEU in [0, 100], one reference a reply, through sacrebleu.

    Args:
        tokenize: sacrebleu's tokenizer; "zh" parts Chinese into characters and the rest into words, "13a" is
            for European languages. A score says nothing without it.

    Example:
        >>> round(bleu(["博物馆十点开门。"], ["博物馆十点开门。"]))
        100

    Source: Papineni et al. 2002; Post 2018, A Call for Clarity in Reporting BLEU Scores. Chapter 07.
    """
    from sacrebleu import corpus_bleu  # costs a second that only this needs

    _check_pairs(replies, references)
    return corpus_bleu(list(replies), [list(references)], tokenize=tokenize).score


def rouge(replies: Sequence[str], references: Sequence[str]) -> dict[str, Interval]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L in [0, 1] with intervals, through rouge-score.

    Its tokenizer keeps a-z and 0-9 only, so a reference in another script would score 0 whatever the reply:
    that is refused. No stemming.

    Example:
        >>> round(rouge(["Mia met a fox."], ["Mia met a cat."])["rouge1"].mean, 2)
        0.75

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries. Chapter 07.
    """
    from rouge_score.rouge_scorer import RougeScorer  # costs a second that only this needs

    _check_pairs(replies, references)
    foreign = [text for text in references if not any(c.isascii() and c.isalnum() for c in text)]
    if foreign:
        raise ValueError(f"references must hold words in a-z or 0-9, got {foreign[0]!r}; use bleu for other scripts")
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    scores = [scorer.score(reference, reply) for reply, reference in zip(replies, references, strict=True)]
    return {kind: mean_interval([score[kind].fmeasure for score in scores]) for kind in kinds}


def _check_pairs(replies, references) -> None:
    if isinstance(replies, str) or isinstance(references, str) or len(replies) != len(references) or not replies:
        raise ValueError("replies and references must be two non-empty lists of the same length, one text a row")


# -- models --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ModelReport:
    """What is known of one model: the numbers of the table, each an Interval, or None where it is not known.

    Attributes:
        true_reward, helpful, truthful, harmless, form: the oracle's means over replies to the town's prompts.
        reward_score: mean score of the reward model, in its standardised units.
        perplexity, perplexity_bad: on held-out good text, and on the bad stratum apart.
        kl: nats per reply, KL(model || reference), mean of the k1 estimate over sampled replies.
        length: tokens per reply, the end token included.
        ended: share of replies that ended themselves.
        well_formed: share of replies that the town's grammar can write.
        over_refusal: share of harmless requests refused.
        rude, polite: share of replies with that tone.
        by_skill: skill -> the oracle's quantities, as in `evaluate_replies`.
    """

    true_reward: Interval | None = None
    helpful: Interval | None = None
    truthful: Interval | None = None
    harmless: Interval | None = None
    form: Interval | None = None
    reward_score: Interval | None = None
    kl: Interval | None = None
    perplexity: Interval | None = None
    perplexity_bad: Interval | None = None
    length: Interval | None = None
    ended: Interval | None = None
    well_formed: Interval | None = None
    over_refusal: Interval | None = None
    rude: Interval | None = None
    polite: Interval | None = None
    by_skill: dict[str, dict[str, Interval | None]] = field(default_factory=dict)

    def quantities(self) -> dict[str, Interval | None]:
        """Name -> interval, in the order of the table, without `by_skill`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "by_skill"}

    def means(self, prefix: str = "held_out_") -> dict[str, float | None]:
        """The means alone: a row for a History. The prefix keeps them apart from what training logs."""
        return {prefix + name: None if x is None else x.mean for name, x in self.quantities().items()}


def evaluate_replies(verdicts: Sequence[Verdict | None]) -> dict[str, Interval | None]:
    """Means and shares of the oracle's verdicts, over those that are not None; what nobody judged is None.

    Args:
        verdicts: of `town.score_replies`; rows are taken as independent, so use a prompt once.

    Returns:
        true_reward (t-interval), helpful, truthful, harmless, form, well_formed, over_refusal (over harmless
        requests), rude, polite (`proportion_interval`).

    Example:
        >>> from rlhf_lab.worlds.town.oracle import Verdict
        >>> verdicts = [Verdict(1, 1, 1, 1, "polite", False, False, True), None]
        >>> evaluate_replies(verdicts)["true_reward"].mean, evaluate_replies([None])["true_reward"]
        (3.0, None)

    Chapter 11.
    """
    known = [verdict for verdict in verdicts if verdict is not None]
    harmless = [verdict.over_refusal for verdict in known if verdict.over_refusal is not None]
    shares = {part: [getattr(verdict, part) for verdict in known] for part in (*ORACLE_PARTS, "well_formed")}
    shares |= {"over_refusal": harmless}
    shares |= {tone: [verdict.tone == tone for verdict in known] for tone in ("rude", "polite")}
    reward = mean_interval([verdict.reward for verdict in known]) if known else None
    return {"true_reward": reward} | {
        name: proportion_interval(float(sum(values)), len(values)) if values else None
        for name, values in shares.items()
    }


def rollout_verdicts(rollout: Rollout) -> list[Verdict | None]:
    """The oracle's verdict on each reply; None for a prompt that is not the town's."""
    return score_replies(rollout.conversations, rollout.texts, rollout.ended.tolist())


def true_rewards(rollout: Rollout) -> list[float | None]:
    """The true reward of each reply, in order: two models' lists go into `paired_difference`."""
    return [None if verdict is None else verdict.reward for verdict in rollout_verdicts(rollout)]


def evaluate_rollout(
    lm: LanguageModel,
    rollout: Rollout,
    *,
    reference: LanguageModel | None = None,
    reward_model: RewardModel | Callable[[Rollout], Tensor] | None = None,
    good_texts: Sequence[str] = (),
    bad_texts: Sequence[str] = (),
    temperature: float = 1.0,
) -> ModelReport:
    """Score replies that `lm` sampled at `temperature`; what was not given (reference, texts) stays None.

    KL is from both models' re-scored log-probs, so that it is exactly 0 for a copy, in any precision. Greedy
    replies (temperature 0) are no sample of the model's law and have no KL.
    """
    verdicts = rollout_verdicts(rollout)
    skills: dict[str, list] = {}
    for conversation, verdict in zip(rollout.conversations, verdicts, strict=True):
        if verdict is not None:
            skills.setdefault(recognise(conversation).skill, []).append(verdict)
    return ModelReport(
        **evaluate_replies(verdicts),
        by_skill={skill: evaluate_replies(some) for skill, some in sorted(skills.items())},
        reward_score=_mean_or_none(_scores(reward_model, rollout)),
        perplexity=perplexity(lm, good_texts) if len(good_texts) else None,
        perplexity_bad=perplexity(lm, bad_texts) if len(bad_texts) else None,
        kl=_mean_or_none(_reply_kl(lm, reference, rollout, temperature)),
        length=mean_interval(rollout.batch.response_lengths.tolist()),
        ended=proportion_interval(int(rollout.ended.sum()), len(rollout.texts)),
    )


def evaluate_model(
    lm: LanguageModel,
    conversations: Sequence,
    *,
    generator: torch.Generator,
    reference: LanguageModel | None = None,
    reward_model: RewardModel | Callable[[Rollout], Tensor] | None = None,
    good_texts: Sequence[str] = (),
    bad_texts: Sequence[str] = (),
    temperature: float = 1.0,
    max_new_tokens: int = 64,
) -> tuple[ModelReport, Rollout]:
    """Sample one reply to each prompt, score it, report.

    Args:
        lm: the model.
        conversations: held-out prompts, each once.
        generator: of the sampling; give every model the same seed, so that rows pair up.
        reference: the other end of the KL, usually the SFT model.
        reward_model: a RewardModel with this model's tokenizer, or a function of the Rollout that returns [B]
            scores.
        good_texts, bad_texts: held-out documents for the two perplexities.
        temperature: divides the logits, as in training; 0 is greedy.
        max_new_tokens: limit of a reply, tokens.

    Returns:
        The ModelReport and the Rollout it is about.

    Example:
        >>> import torch
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> generator = torch.Generator().manual_seed(0)
        >>> report, rollout = evaluate_model(
        ...     load_language_model("tiny"), ["When does the library close?"] * 4, generator=generator)
        >>> report.true_reward.count, report.kl
        (4, None)

    Chapter 11.
    """
    rollout = sample_responses(
        lm, conversations, max_new_tokens=max_new_tokens, temperature=temperature, generator=generator
    )
    report = evaluate_rollout(
        lm,
        rollout,
        reference=reference,
        reward_model=reward_model,
        good_texts=good_texts,
        bad_texts=bad_texts,
        temperature=temperature,
    )
    return report, rollout


def _mean_or_none(values) -> Interval | None:
    return None if values is None else mean_interval(values.tolist())


def _scores(reward_model, rollout) -> Tensor | None:
    if isinstance(reward_model, RewardModel):
        return reward_model.score_batch(rollout.batch)
    return None if reward_model is None else reward_model(rollout)


def _reply_kl(lm, reference, rollout, temperature) -> Tensor | None:
    """KL estimates [B] in nats, one a reply."""
    if reference is None or temperature == 0:
        return None
    log_probs, ref_log_probs = (response_log_probs(m, rollout.batch, temperature) for m in (lm, reference))
    return kl_k1(log_probs, ref_log_probs).sum(1)  # both are 0 outside the mask


# -- reward model --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RewardModelReport:
    """How well a reward model predicts held-out preferences.

    Attributes:
        accuracy: share of labels it agrees with.
        expected_accuracy: E[p(rater agrees with its choice)], without the noise of the labels drawn; None if
            unknown.
        ceiling: E[max(p, 1 - p)], the best that any model can reach on these raters; None if unknown.
        confidence: [N] the probability it gives to its own choice, in [1/2, 1].
        agreed: [N] whether the label agreed with it.
    """

    accuracy: Interval
    expected_accuracy: float | None
    ceiling: float | None
    confidence: tuple[float, ...]
    agreed: tuple[float, ...]


def evaluate_reward_model(
    chosen_scores: Sequence[float],
    rejected_scores: Sequence[float],
    *,
    groups: Sequence[int] | None = None,
    agreement: Sequence[float] | None = None,
) -> RewardModelReport:
    """Accuracy, ceiling and confidence on held-out pairs.

    Args:
        chosen_scores, rejected_scores: [N] scores in the units of training (`raw_scores`), so that
            sigmoid(chosen - rejected) is the model's probability. Equal scores count one half.
        groups: [N] the ranking a pair comes from. Pairs of one ranking are not independent: with groups the
            interval is from resampling rankings, without it is Wilson's.
        agreement: [N] p(rater prefers the chosen one), known for simulated raters.

    Raises:
        ValueError: lengths that differ, or no pairs.

    Example:
        >>> report = evaluate_reward_model([1.0, 0.0], [0.0, 2.0], agreement=[0.9, 0.4])
        >>> report.accuracy.mean, round(report.expected_accuracy, 2), round(report.ceiling, 2)
        (0.5, 0.75, 0.75)

    Source: accuracy beside labeller agreement as in Ouyang et al. 2022; the two bounds are in chapter 09.
    """
    chosen, rejected = _finite(chosen_scores, "chosen_scores"), _finite(rejected_scores, "rejected_scores")
    others = {"rejected_scores": rejected, "groups": groups, "agreement": agreement}
    for name, other in others.items():
        if other is not None and len(other) != len(chosen):
            raise ValueError(f"{name} must have one value a pair, {len(chosen)}, got {len(other)}")
    difference = chosen - rejected
    agreed = (np.sign(difference) + 1) / 2
    if groups is None:
        accuracy = proportion_interval(float(agreed.sum()), len(agreed))
    else:
        place = np.unique(np.asarray(groups), return_inverse=True)[1]
        accuracy = ratio_of_means_bootstrap(np.bincount(place, agreed), np.bincount(place).astype(float))
    expected = ceiling = None
    if agreement is not None:
        p = torch.tensor(_finite(agreement, "agreement"))
        expected = float(expected_accuracy(torch.tensor(difference), p))
        ceiling = float(best_possible_accuracy(p))
    confidence = 1 / (1 + np.exp(-np.abs(difference)))
    return RewardModelReport(accuracy, expected, ceiling, tuple(confidence.tolist()), tuple(agreed.tolist()))
