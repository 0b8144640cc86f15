"""Scores from choices among several: Bradley-Terry, Davidson's ties and Plackett-Luce as one model, with its posterior.

A ranking is a row of choices: first the best tier among all, then the best among what is left, and so on. With scores
s, a tier T is chosen among what is left with probability proportional to

    w(T) = exp(b * mean of s over T + (|T| - 1) log nu),    |T| up to the largest tier that may be called

With single replies only this is Plackett-Luce, with two replies Davidson's model, with neither Bradley-Terry. b is the
inverse temperature of the rater: 1 for everybody, or 0 for one who draws lots and negative for one who ranks upside
down. Scores have a normal prior, independent of each other. Items belong to groups (the replies to one prompt), and the
information matrix is a block for each group with a border for what all groups share, so ten thousand judgements are a
few small matrices each. In numpy, as second derivatives are used. Left out: tie rates of single raters.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations

import numpy as np
from scipy import sparse

LOG_NU_STD = 2.0  # standard deviation of the prior of log nu around 0
TEMPERATURE_STD = 1.0  # of a rater's inverse temperature around 1
MOST_ALTERNATIVES = 20_000  # of one choice
CHUNK = 2**16  # numbers in the largest array of a pass: small enough for a processor's cache
LONGEST_STEP = 4.0  # of Newton, in nats: where the prior is flat, the information far out is too


@cache
def alternatives(size: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Every tier that may be chosen among `size` items.

    Returns:
        means [M, size], each row the weights whose sum of scores is the tier's mean, and extra [M], its |T| - 1. Of the
        tiers of one length the one of the first items comes first.

    Raises:
        ValueError: there are too many to list.

    Example:
        >>> alternatives(2, 2)[0].tolist()
        [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    """
    count = _smaller_tiers(size, largest + 1)
    if count > MOST_ALTERNATIVES:
        raise ValueError(
            f"among {size} items with ties of up to {largest} there are {count} choices; at most {MOST_ALTERNATIVES} "
            "can be listed. Rank fewer replies at once, or call smaller ties"
        )
    tiers = [tier for length in range(1, largest + 1) for tier in combinations(range(size), length)]
    means = np.zeros((len(tiers), size))
    for row, tier in enumerate(tiers):
        means[row, list(tier)] = 1 / len(tier)
    return means, np.array([len(tier) - 1.0 for tier in tiers])


@cache
def products(size: int, largest: int) -> sparse.csr_array:
    """[M, (size + 1)^2] for each of the `alternatives` the products of every two of its means and extra; most are 0."""
    values, columns, counts = [], [], [0]
    for length in range(1, largest + 1):
        tiers = np.array(list(combinations(range(size), length)))
        places = np.column_stack([tiers, np.full(len(tiers), size)])  # extra is the last of the features
        features = np.append(np.full(length, 1 / length), length - 1.0)
        columns.append((places[:, :, None] * (size + 1) + places[:, None]).ravel())
        values.append(np.tile(np.outer(features, features).ravel(), len(tiers)))
        counts += [len(features) ** 2] * len(tiers)
    table = sparse.csr_array(
        (np.concatenate(values), np.concatenate(columns), np.cumsum(counts)), shape=(len(counts) - 1, (size + 1) ** 2)
    )
    table.eliminate_zeros()
    return table


def _smaller_tiers(size: int, length: int) -> int:
    """How many tiers among `size` items have fewer than `length`; the place of the first that has so many."""
    return sum(math.comb(size, k) for k in range(1, length))


@dataclass(frozen=True, eq=False)
class TierChoices:
    """Choices of one shape.

    Attributes:
        members: [N, size] numbers of the items that were left, those of the chosen tier first.
        tier: how many were chosen.
        largest: how many could have been called a tie, >= tier.
        counts: [N] how often the choice was made.
        raters: [N] numbers of who made it.
    """

    members: np.ndarray
    tier: int
    largest: int
    counts: np.ndarray
    raters: np.ndarray

    @property
    def place(self) -> int:
        """Of the chosen tier in `alternatives`."""
        return _smaller_tiers(self.members.shape[1], self.tier)

    def take(self, rows: np.ndarray | slice) -> "TierChoices":
        """The same for some of the rows."""
        return replace(self, members=self.members[rows], counts=self.counts[rows], raters=self.raters[rows])

    def chunks(self) -> Iterator["TierChoices"]:
        """Parts whose arrays stay small."""
        size = self.members.shape[1]
        rows = max(1, CHUNK // max(len(alternatives(size, self.largest)[1]), (size + 1) ** 2))
        yield from (self.take(slice(first, first + rows)) for first in range(0, len(self.members), rows))


@dataclass(frozen=True, eq=False)
class Parameters:
    """Scores [items], log nu, and the inverse temperature of each rater [raters]."""

    scores: np.ndarray
    log_nu: float
    temperatures: np.ndarray


def _law(choices: TierChoices, at: Parameters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean scores [N, M] and probabilities [N, M] of all alternatives, and log-probabilities [N] of the chosen ones."""
    means, extra = alternatives(choices.members.shape[1], choices.largest)
    mean_scores = means @ at.scores[choices.members].T  # [M, N]: sums over the first axis are the fast ones
    weights = at.temperatures[choices.raters] * mean_scores
    if choices.largest > 1:  # without ties log nu is minus infinity
        weights += (extra * at.log_nu)[:, None]
    weights -= weights.max(0)
    chosen = weights[choices.place].copy()
    law = np.exp(weights, out=weights)
    sums = law.sum(0)
    law /= sums
    return mean_scores.T, law.T, chosen - np.log(sums)


def log_likelihood(choices: Sequence[TierChoices], at: Parameters) -> float:
    """Log-probability of all choices, in nats.

    Example:
        >>> once = TierChoices(np.array([[0, 1]]), 1, 1, np.ones(1), np.zeros(1, dtype=int))
        >>> round(log_likelihood([once], Parameters(np.array([2.0, 1.0]), 0.0, np.ones(1))), 4)  # log sigmoid(1)
        -0.3133

    Source: Luce 1959; Davidson 1970; tiers as in Turner et al. 2020, Modelling rankings in R, with one nu. Chapter 08.
    """
    return float(sum(part.counts @ _law(part, at)[2] for whole in choices for part in whole.chunks()))


def local_terms(choices: TierChoices, at: Parameters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probability [N], gradient [N, size + 1] and information [N, size + 1, size + 1] of each choice.

    All times how often it was made. The derivatives are by b s of each member and by log nu; the information is the
    covariance of what these multiply.
    """
    size = choices.members.shape[1]
    means, extra = alternatives(size, choices.largest)
    _, law, chosen = _law(choices, at)
    expected = np.column_stack([law @ means, law @ extra])
    gradient = np.append(means[choices.place], extra[choices.place]) - expected
    information = (law @ products(size, choices.largest)).reshape(-1, size + 1, size + 1)
    information -= expected[:, :, None] * expected[:, None]
    counts = choices.counts
    return counts * chosen, counts[:, None] * gradient, counts[:, None, None] * information


def _with_temperature(slope: np.ndarray, bend: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and information with b as their last entry; it multiplies a mean score, a sum over the members."""
    border = (bend[:, :, :-1] @ scores[..., None])[..., 0]
    wide = np.empty((len(bend), *(np.array(bend.shape[1:]) + 1)))
    wide[:, :-1, :-1], wide[:, :-1, -1], wide[:, -1, :-1] = bend, border, border
    wide[:, -1, -1] = (border[:, :-1] * scores).sum(1)
    return np.column_stack([slope, (slope[:, :-1] * scores).sum(1)]), wide


def temperature_terms(choices: TierChoices, at: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Slope and information [N] of each choice by the temperature of its rater alone, times how often it was made."""
    means, law, _ = _law(choices, at)
    weighted = law * means
    expected = weighted.sum(1)
    variance = (weighted * means).sum(1) - expected**2
    return choices.counts * (means[:, choices.place] - expected), choices.counts * variance


class Blocks:
    """Symmetric matrices, one for each group of items, stored one after the other in a flat array.

    Attributes:
        sizes: [groups] items of each group; items are numbered group by group.
        group: [items] its group.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray) -> None:
        self.sizes = np.asarray(sizes, dtype=int)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.cell_starts = np.cumsum(self.sizes**2) - self.sizes**2
        self.group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.items, self.length = int(self.sizes.sum()), int((self.sizes**2).sum())

    @cached_property
    def diagonal(self) -> np.ndarray:
        """[items] where the diagonal lies in the flat array."""
        return self.cells(np.arange(self.items)[:, None])[:, 0, 0]

    @cached_property
    def buckets(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each size k the groups [G], their items [G, k] and their cells [G, k, k]."""
        found = []
        for k in np.unique(self.sizes):
            groups = np.flatnonzero(self.sizes == k)
            items = self.starts[groups, None] + np.arange(k)
            found.append((groups, items, self.cells(items)))
        return found

    def cells(self, members: np.ndarray) -> np.ndarray:
        """[N, k, k] where the entries of members [N, k] of one group each lie in the flat array."""
        group = self.group[members[:, 0]]
        place = members - self.starts[group, None]
        return (self.cell_starts[group, None, None] + place[:, :, None] * self.sizes[group, None, None]) + place[
            :, None
        ]

    def solve(self, flat: np.ndarray, right: np.ndarray) -> np.ndarray:
        """[items, q] the solutions for right-hand sides [items, q]."""
        result = np.empty_like(right)
        for _, items, cells in self.buckets:
            result[items] = np.linalg.solve(flat[cells], right[items])
        return result

    def inverse(self, flat: np.ndarray) -> np.ndarray:
        """The inverses, flat."""
        result = np.empty_like(flat)
        for _, _, cells in self.buckets:
            result[cells] = np.linalg.inv(flat[cells])
        return result

    def log_determinants(self, flat: np.ndarray) -> np.ndarray:
        """[groups]."""
        result = np.empty(len(self.sizes))
        for groups, _, cells in self.buckets:
            result[groups] = np.linalg.slogdet(flat[cells])[1]
        return result

    def sums(self, values: np.ndarray) -> np.ndarray:
        """[groups] sums of values [items]."""
        return np.bincount(self.group, values, minlength=len(self.sizes))


@dataclass(frozen=True, eq=False)
class System:
    """The log posterior at a point; shared by all groups are log nu and the temperatures, where they are free.

    Attributes:
        values: [groups] log-likelihood and log prior of the scores, up to constants.
        gradient: [items].
        information: flat, a block for each group.
        border: [items, q] between scores and what is shared.
        shared_gradient, shared_information: [q], [q, q].
    """

    values: np.ndarray
    gradient: np.ndarray
    information: np.ndarray
    border: np.ndarray
    shared_gradient: np.ndarray
    shared_information: np.ndarray


@dataclass(frozen=True, eq=False)
class ChoiceModel:
    """Choices, groups and priors.

    Attributes:
        choices: of any shapes.
        blocks: the groups of items.
        prior_std: standard deviation of a score.
        free_nu: whether log nu is learned, with the prior N(0, LOG_NU_STD^2).
    """

    choices: Sequence[TierChoices]
    blocks: Blocks
    prior_std: float
    free_nu: bool = False

    def system(self, at: Parameters, free_temperatures: bool = False) -> System:
        """Gradient and expected information at a point; the prior of the temperatures is N(1, TEMPERATURE_STD^2)."""
        shared = int(self.free_nu) + free_temperatures * len(at.temperatures)
        precision, blocks = 1 / self.prior_std**2, self.blocks
        values = blocks.sums(-precision * at.scores**2 / 2)
        gradient, information = -precision * at.scores, np.zeros(blocks.length)
        information[blocks.diagonal] = precision
        border, top, corner = np.zeros(blocks.items * shared), np.zeros(shared), np.zeros(shared * shared)
        if self.free_nu:
            top[0], corner[0] = -at.log_nu / LOG_NU_STD**2, 1 / LOG_NU_STD**2
        if free_temperatures:
            top[int(self.free_nu) :] = (1 - at.temperatures) / TEMPERATURE_STD**2
            corner[:: shared + 1][int(self.free_nu) :] = 1 / TEMPERATURE_STD**2
        for part in (part for whole in self.choices for part in whole.chunks()):
            size = part.members.shape[1]
            value, slope, bend = local_terms(part, at)
            values += np.bincount(blocks.group[part.members[:, 0]], value, minlength=len(values))
            if free_temperatures:
                slope, bend = _with_temperature(slope, bend, at.scores[part.members])
            by_score = at.temperatures[part.raters, None]
            slope[:, :size] *= by_score
            bend[:, :size] *= by_score[..., None]
            bend[:, :, :size] *= by_score[..., None]
            gradient += np.bincount(part.members.ravel(), slope[:, :size].ravel(), minlength=blocks.items)
            _add(information, blocks.cells(part.members), bend[:, :size, :size])
            kept = [size] * self.free_nu + [size + 1] * free_temperatures
            if kept:
                columns = np.zeros((len(slope), len(kept)), dtype=int)  # log nu comes first, then the raters
                if free_temperatures:
                    columns[:, -1] = int(self.free_nu) + part.raters
                _add(border, part.members[:, :, None] * shared + columns[:, None], bend[:, :size, kept])
                _add(top, columns, slope[:, kept])
                _add(corner, columns[:, :, None] * shared + columns[:, None], bend[:, kept][:, :, kept])
        return System(
            values, gradient, information, border.reshape(blocks.items, shared), top, corner.reshape(shared, shared)
        )

    def step(self, system: System, along: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Newton's step of the scores [items] and of what is shared [q]; with `along`, each group's contrast stays."""
        blocks = self.blocks
        both = np.column_stack([system.gradient, system.border if along is None else along])
        solved = blocks.solve(system.information, both)
        step, rest = solved[:, 0], solved[:, 1:]
        if along is not None:
            share = blocks.sums(along * step) / blocks.sums(along * rest[:, 0])
            return step - share[blocks.group] * rest[:, 0], np.zeros(0)
        left = system.shared_information - system.border.T @ rest
        shared = np.linalg.solve(left, system.shared_gradient - system.border.T @ step) if len(left) else np.zeros(0)
        return step - rest @ shared, shared

    def mode(
        self, at: Parameters, along: np.ndarray | None = None, steps: int = 100, tolerance: float = 1e-7
    ) -> tuple[Parameters, System]:
        """Where the posterior of scores and log nu is highest, by Newton's method, a step halved where it fails.

        Args:
            at: where to start, and the temperatures.
            along: [items] a contrast of each group that is kept as it is.
            steps: at most so many.
            tolerance: of the last step, in nats.
        """
        system = self.system(at)
        for _ in range(steps if self.blocks.items else 0):
            step, shared = self.step(system, along)
            longest = np.maximum.reduceat(np.abs(step), self.blocks.starts)
            if max(longest.max(), np.abs(shared).max(initial=0)) < tolerance:
                break
            share = np.minimum(1, LONGEST_STEP / np.maximum(longest, 1e-300))
            for _ in range(30):
                new = self._moved(at, share, step, shared)
                better = self.system(new)
                if not (failed := self._failed(system, better, at, new)).any():
                    break
                share[failed] /= 2
            at, system = new, better
        return at, system

    def _failed(self, before: System, after: System, at: Parameters, new: Parameters) -> np.ndarray:
        """[groups] that gained less than a hundredth of what the slope promised; with log nu all move together."""
        old, now = before.values, after.values
        promised = self.blocks.sums(before.gradient * (new.scores - at.scores))
        if self.free_nu:
            prior = [-((point.log_nu / LOG_NU_STD) ** 2) / 2 for point in (at, new)]
            along_nu = before.shared_gradient[0] * (new.log_nu - at.log_nu)
            old, now, promised = (
                np.full_like(x, x.sum() + more)
                for x, more in zip((old, now, promised), (*prior, along_nu), strict=True)
            )
        return now < old + 0.01 * promised - 1e-9 * (1 + np.abs(old))

    def _moved(self, at: Parameters, share: np.ndarray, step: np.ndarray, shared: np.ndarray) -> Parameters:
        log_nu = at.log_nu + (float(share.min() * shared[0]) if self.free_nu else 0.0)
        return Parameters(at.scores + share[self.blocks.group] * step, log_nu, at.temperatures)


def _add(target: np.ndarray, places: np.ndarray, values: np.ndarray) -> None:
    """Add values to the places of a flat array, which may repeat."""
    target += np.bincount(places.ravel(), values.ravel(), minlength=len(target))
