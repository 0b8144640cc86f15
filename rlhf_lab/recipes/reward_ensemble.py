"""An ensemble of reward models, each from a bootstrap sample of the prompts, and how good it is on what is new.

A prompt that a member has not drawn is new to that member, so what the member says of the replies to it tells how good
the ensemble is (out of bag). Left out: members that share a backbone, and samples of raters.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lab.evaluation.reward_models import evaluate_reward_model
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.models.ensemble import RewardEnsemble
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.recipes.reward import RewardConfig, RewardResult, check_usable, fit_reward_model, raw_scores_of
from rlhf_lab.recipes.reward_data import Feedback, Judged, prepare_feedback
from rlhf_lab.training.configs import require, whole_number
from rlhf_lab.training.history import History, Result
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import graceful_interrupt

Place = tuple[int, int]  # a record and a reply of it


@dataclass(frozen=True)
class OutOfBag:
    """What members say of replies to prompts on which they were not trained.

    Attributes:
        accuracy: share of the pairs in which the better reply has the higher mean score; the interval is from
            resampling prompts. None where there is no pair. A member knows 63 % of the prompts and a pair is judged by
            37 % of the members, so the whole ensemble, trained on all, is rather better than this.
        differences: [N] score of the better reply minus that of the worse, mean over those members; in standard
            deviations of the score.
        rows: [N] the record of each pair, by its place in the feedback.
        prompts: [N] a number for the prompt of each pair.
        members: [N] how many members judged it.
        missing: records on whose prompt every member was trained.
    """

    accuracy: Interval | None
    differences: tuple[float, ...]
    rows: tuple[int, ...]
    prompts: tuple[int, ...]
    members: tuple[int, ...]
    missing: int


@dataclass(frozen=True, eq=False, repr=False)
class RewardEnsembleResult(Result[RewardEnsemble]):
    """The ensemble, how its members came about, and how good it is on prompts that are new to them.

    Attributes:
        model: the ensemble of the members that were finished.
        history: a row a member: its last loss, and the different prompts it was trained on.
        interrupted: True where an interrupt ended the run early; a member that was not finished is not kept, unless it
            is the only one.
        histories: of each member, as in RewardResult.
        trained_on: of each member, the records in its sample by their place in the feedback, repeats included.
        out_of_bag: see OutOfBag.
        unused, cut, reasons: as in RewardResult.
    """

    histories: tuple[History, ...]
    trained_on: tuple[tuple[int, ...], ...]
    out_of_bag: OutOfBag
    unused: int
    cut: int
    reasons: Mapping[str, int]


def train_reward_ensemble(
    lm: LanguageModel,
    feedback: Feedback,
    config: RewardConfig | None = None,
    *,
    members: int = 5,
    pessimism: float = 0.0,
    weights: Sequence[float] | None = None,
    held_out: Feedback = (),
    agreement: Sequence[float] | None = None,
    checkpoint: str | Path | None = None,
) -> RewardEnsembleResult:
    """Train reward models that differ in their head, their order of records and their sample of prompts.

    Each member draws as many prompts as there are, with replacement, and takes all records of those prompts; a prompt
    drawn twice counts twice.

    Args:
        lm: usually the SFT model; it is not changed.
        feedback, config, weights, held_out, agreement: as in `train_reward_model`; `config.seed` is of the ensemble.
        members: at least 1.
        pessimism: of the ensemble's score, see RewardEnsemble; it changes no training.
        checkpoint: file to save to and to resume from; member i has one of its own, `name-i.end` for `name.end`.

    Returns:
        RewardEnsembleResult.

    Raises:
        ValueError: as `train_reward_model`, or feedback on one prompt only.
        CheckpointError, FloatingPointError: as in `train_sft`.

    Source: Breiman 1996, Bagging predictors, and Out-of-bag estimation; Coste et al. 2023. Chapter 09.
    """
    config, members = config or RewardConfig(), whole_number("members", members, least=1)
    data = prepare_feedback(lm, feedback, config.loss, config.max_new_tokens, weights=weights)
    tests = prepare_feedback(lm, held_out, config.loss, config.max_new_tokens, agreement=agreement)
    check_usable(data, len(feedback), config)
    prompts = {tuple(one.prompt) for one in data.judged}
    require(len(prompts) > 1, "feedback", "on one prompt", "on several, of which each member draws its own sample")
    done: list[RewardResult] = []
    samples: list[list[Judged]] = []
    with graceful_interrupt() as interrupt:
        while len(done) < members and not interrupt.requested:
            number = len(done)
            sample = bootstrap_prompts(data.judged, config.seed, number)
            own = replace(config, seed=seed_of_member(config.seed, number))
            file = None if checkpoint is None else numbered(Path(checkpoint), number)
            result = fit_reward_model(lm, replace(data, judged=sample), own, tests=tests, checkpoint=file)
            if not result.interrupted or not done:
                done.append(result)
                samples.append(sample)
            if result.interrupted:
                break
    interrupted = len(done) < members or done[-1].interrupted
    history, trained_on = _history(done, samples), tuple(tuple(one.row for one in sample) for sample in samples)
    bagged = out_of_bag([result.model for result in done], samples, data.judged)
    ensemble = RewardEnsemble(tuple(result.model for result in done), pessimism)
    histories, unused = tuple(result.history for result in done), sum(data.reasons.values())
    return RewardEnsembleResult(
        ensemble, history, interrupted, histories, trained_on, bagged, unused, data.cut, data.reasons
    )


def seed_of_member(seed: int, number: int) -> int:
    """The seed of one member's head and order of records."""
    return int(torch.randint(2**31 - 1, (), generator=generator_for(seed, "reward member", number)))


def numbered(path: Path, number: int) -> Path:
    """The checkpoint of one member.

    >>> numbered(Path("run.pt"), 2).name
    'run-2.pt'
    """
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def bootstrap_prompts(judged: Sequence[Judged], seed: int, number: int) -> list[Judged]:
    """The sample of one member: as many prompts as there are, drawn with replacement, each with all its records.

    A sample of one prompt alone, or of ratings that are all the same, teaches nothing: it is drawn again.
    """
    generator = generator_for(seed, "reward bootstrap", number)
    records: dict[tuple[int, ...], list[Judged]] = defaultdict(list)
    for one in judged:
        records[tuple(one.prompt)].append(one)
    groups = list(records.values())
    while True:
        drawn = torch.randint(len(groups), (len(groups),), generator=generator).tolist()
        sample = [one for group in drawn for one in groups[group]]
        targets = {one.said.target for one in sample}
        if len(set(drawn)) > 1 and (targets == {None} or len(targets) > 1):
            return sample


def _history(done: Sequence[RewardResult], samples: Sequence[Sequence[Judged]]) -> History:
    history = History()
    for number, (result, sample) in enumerate(zip(done, samples, strict=True), 1):
        loss = {"loss": result.history.last("loss")} if "loss" in result.history.names() else {}
        history.add(number, loss, prompts=len({tuple(one.prompt) for one in sample}))
    return history


# -- out of bag -------------------------------------------------------------------------------------------------------
def out_of_bag(
    models: Sequence[RewardModel], samples: Sequence[Sequence[Judged]], judged: Sequence[Judged]
) -> OutOfBag:
    """What each model says of the records whose prompt is not in its sample, put together.

    Args:
        models: M members.
        samples: of each, the records it was trained on.
        judged: all records.
    """
    means, counts = _mean_scores(models, samples, judged)
    numbers: dict[tuple[int, ...], int] = {}
    prompts = [numbers.setdefault(tuple(one.prompt), len(numbers)) for one in judged]
    pairs = [(better, worse) for better, worse in _pairs_of(judged, prompts) if counts[better[0]]]
    differences = [float(means[i][a] - means[j][b]) for (i, a), (j, b) in pairs]
    rows = [better[0] for better, _ in pairs]
    groups = [prompts[row] for row in rows]
    accuracy = evaluate_reward_model(differences, [0.0] * len(pairs), groups=groups).accuracy if pairs else None
    places, judges = tuple(judged[row].row for row in rows), tuple(counts[row] for row in rows)
    return OutOfBag(accuracy, tuple(differences), places, tuple(groups), judges, counts.count(0))


def _mean_scores(
    models: Sequence[RewardModel], samples: Sequence[Sequence[Judged]], judged: Sequence[Judged]
) -> tuple[list[Tensor], list[int]]:
    """Of every record: mean scores of its replies by the members to whom its prompt is new, and how many those are."""
    sums, counts = [torch.zeros(len(one.replies)) for one in judged], [0] * len(judged)
    for rm, sample in zip(models, samples, strict=True):
        known = {tuple(one.prompt) for one in sample}
        new = [i for i, one in enumerate(judged) if tuple(one.prompt) not in known]
        for i, raw in zip(new, raw_scores_of(rm, [judged[i] for i in new]) if new else [], strict=True):
            sums[i] += ((raw - rm.score_mean) / rm.score_std).cpu()
            counts[i] += 1
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)], counts


def _pairs_of(judged: Sequence[Judged], prompts: Sequence[int]) -> Iterator[tuple[Place, Place]]:
    """(better, worse) of all records, and of two ratings of one prompt that differ."""
    rated: dict[int, list[int]] = defaultdict(list)
    for i, one in enumerate(judged):
        yield from (((i, better), (i, worse)) for better, worse in one.said.pairs)
        if one.said.target is not None:
            rated[prompts[i]].append(i)
    for records in rated.values():
        for i, j in combinations(records, 2):
            first, second = judged[i].said.target or 0.0, judged[j].said.target or 0.0
            if first != second and judged[i].replies != judged[j].replies:
                yield ((i, 0), (j, 0)) if first > second else ((j, 0), (i, 0))
