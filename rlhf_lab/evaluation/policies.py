"""Is the model better? The oracle's parts, the reward model's score, KL, perplexity, length, each with an interval.

A table of bare means from a few hundred replies invites stories about noise, so a mean never comes alone.
What is not known is None and never invented: the oracle judges only prompts of the town.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from rlhf_lab.evaluation.text import perplexity
from rlhf_lab.experience.rewards import Reward, scores_of
from rlhf_lab.experience.rollouts import TEMPERATURE, sample_responses
from rlhf_lab.maths.intervals import Interval, mean_interval, outcome_interval, proportion_interval
from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.training.configs import real_number, whole_number
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds.town.oracle import Verdict, score_replies
from rlhf_lab.worlds.town.questions import distinct_prompts, recognise

ORACLE_PARTS = ("helpful", "truthful", "harmless", "form")


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
        requests), rude, polite (`outcome_interval`).

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
        name: outcome_interval([float(value) for value in values]) if values else None
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
    reward_model: Reward | None = None,
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
    for prompt, verdict in zip(map(recognise, rollout.conversations), verdicts, strict=True):
        if prompt is not None:
            skills.setdefault(prompt.skill, []).append(verdict)
    return ModelReport(
        **evaluate_replies(verdicts),
        by_skill={skill: evaluate_replies(some) for skill, some in sorted(skills.items())},
        reward_score=_mean_or_none(scores_of(reward_model, rollout) if reward_model else None),
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
    reward_model: Reward | None = None,
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

    Raises:
        ValueError: no prompts, an impossible limit or temperature, a prompt longer than the context allows, texts that
            are no list of texts, or a reward that is not one finite number a reply.

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
    whole_number("max_new_tokens", max_new_tokens, least=1)
    real_number("temperature", temperature)
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


def _mean_or_none(values: Tensor | None) -> Interval | None:
    return None if values is None else mean_interval(values.tolist())


def _reply_kl(
    lm: LanguageModel, reference: LanguageModel | None, rollout: Rollout, temperature: float
) -> Tensor | None:
    """KL estimates [B] in nats, one a reply."""
    if reference is None or temperature == 0:
        return None
    log_probs, ref_log_probs = (response_log_probs(m, rollout.batch, temperature) for m in (lm, reference))
    return kl_k1(log_probs, ref_log_probs).sum(1)  # both are 0 outside the mask


def true_reward(lm: LanguageModel, count: int = 240, seed: int = 0) -> Interval | None:
    """Mean true reward of sampled replies to `count` different held-out prompts of the town, with a 95 % interval.

    Replies are drawn at the temperature of training. Chapters 00, 10.
    """
    whole_number("count", count, least=1)
    generator, prompts = generator_for(seed, "evaluation"), distinct_prompts("held_out", count, seed)
    return evaluate_model(lm, prompts, generator=generator, temperature=TEMPERATURE)[0].true_reward
