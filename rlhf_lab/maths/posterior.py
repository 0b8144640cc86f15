"""The posterior of `maths.choices`: covariances, inverse temperatures of raters, and intervals of contrasts.

A contrast is a difference of scores within a group, such as that of two replies. Its posterior is skewed where labels
are few, and a normal interval is then too narrow (with a wide prior by a tenth), so it is integrated on a grid: at each
value of the contrast the other scores are at their conditional mode, and their spread is that of a normal law.
"""

from dataclasses import dataclass, replace

import numpy as np

from rlhf_lab.maths.choices import (
    TEMPERATURE_STD,
    Blocks,
    ChoiceModel,
    Parameters,
    System,
    TierChoices,
    temperature_terms,
)

REACH, POINTS, FINER = 6.0, 41, 15  # the grid: standard deviations to either side, points, and points between two
DRAWN, FEWEST_DRAWS, MOST_DRAWS = 100_000, 8, 512  # in the estimate of the temperatures: choices in all draws, draws


@dataclass(frozen=True, eq=False)
class Posterior:
    """Mode and covariances.

    Attributes:
        model: choices and priors.
        at: the mode.
        conditional: flat, the covariance of each group's scores with everything shared at its mode.
        covariance: flat, with the spread of what is shared, log nu and the temperatures where they are free.
        shared: [q, q] covariance of those, log nu first.
    """

    model: ChoiceModel
    at: Parameters
    conditional: np.ndarray
    covariance: np.ndarray
    shared: np.ndarray


def fit_posterior(model: ChoiceModel, temperatures: np.ndarray, free: bool, log_nu: float = 0.0) -> Posterior:
    """The posterior of scores, of log nu where the model learns it, and of the raters' temperatures.

    The temperatures maximise their posterior with the scores averaged out (expectation maximisation). Maximised jointly
    with the scores they grow without end as items are added, since large temperatures and small scores fit alike and
    the prior prefers small scores. The mean is over a normal law around the mode of the scores, by fixed draws.

    Args:
        model: choices and priors.
        temperatures: [raters] fixed, or where to start.
        free: whether they are learned, with the prior N(1, TEMPERATURE_STD^2).
        log_nu: fixed, or where to start.

    Source: Laplace's approximation; Dempster, Laird and Rubin 1977 for the maximisation. Chapter 08.
    """
    at = Parameters(np.zeros(model.blocks.items), log_nu, np.asarray(temperatures, dtype=float))
    at, system = model.mode(at)
    for _ in range(200 if free and model.choices else 0):
        better = _better_temperatures(model, at, model.blocks.inverse(system.information))
        change = np.abs(better - at.temperatures).max()
        at, system = model.mode(replace(at, temperatures=better), steps=1)
        if change < 2e-3:
            break
    system = model.system(at, free_temperatures=free)
    conditional = model.blocks.inverse(system.information)
    return Posterior(model, at, conditional, *_with_the_shared(model.blocks, system, conditional))


def _better_temperatures(model: ChoiceModel, at: Parameters, covariance: np.ndarray) -> np.ndarray:
    """A Newton step for the mean over the scores of the log posterior of the temperatures."""
    gradient = (1 - at.temperatures) / TEMPERATURE_STD**2
    information = np.full(len(gradient), 1 / TEMPERATURE_STD**2)
    rows = sum(len(choices.members) for choices in model.choices)
    draws = min(max(FEWEST_DRAWS, 2 * (DRAWN // (2 * rows))), MOST_DRAWS)
    scores = _draws(model.blocks, at.scores, covariance, draws)
    for part in (part for whole in copies(model, draws).choices for part in whole.chunks()):
        slope, bend = temperature_terms(part, replace(at, scores=scores.ravel()))
        gradient += np.bincount(part.raters, slope, minlength=len(gradient)) / draws
        information += np.bincount(part.raters, bend, minlength=len(gradient)) / draws
    # Expectation maximisation closes a part of the gap in each step, here about a third; half as much more is safe.
    return at.temperatures + 1.5 * np.clip(gradient / information, -0.5, 0.5)


def _draws(blocks: Blocks, mean: np.ndarray, covariance: np.ndarray, draws: int) -> np.ndarray:
    """[draws, items] draws, each with its mirror image; always the same, so that the iteration settles."""
    normal = np.random.default_rng(0).standard_normal((draws // 2, blocks.items))
    away = np.empty_like(normal)
    for _, items, cells in blocks.buckets:
        away[:, items] = (np.linalg.cholesky(covariance[cells]) @ normal[:, items][..., None])[..., 0]
    return mean + np.concatenate([away, -away])


def _with_the_shared(blocks: Blocks, system: System, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariances of the scores, flat, and of what is shared, by the inverse of the bordered matrix."""
    if not len(system.shared_gradient):
        return inverse, np.zeros((0, 0))
    solved = blocks.solve(system.information, system.border)
    shared = np.linalg.inv(system.shared_information - system.border.T @ solved)
    covariance = inverse.copy()
    for _, items, cells in blocks.buckets:
        covariance[cells] += solved[items] @ shared @ solved[items].transpose(0, 2, 1)
    return covariance, shared


def only_group(model: ChoiceModel, group: int) -> ChoiceModel:
    """The model of one group alone, with log nu fixed."""
    first, size = model.blocks.starts[group], model.blocks.sizes[group]
    parts = []
    for choices in model.choices:
        rows = model.blocks.group[choices.members[:, 0]] == group
        if rows.any():
            mine = choices.take(rows)
            parts.append(replace(mine, members=mine.members - first))
    return ChoiceModel(parts, Blocks([size]), model.prior_std)


def copies(model: ChoiceModel, times: int) -> ChoiceModel:
    """The same groups `times` times over, independent of each other, copy by copy; log nu is fixed."""
    shift = np.arange(times)[:, None, None] * model.blocks.items
    parts = [
        TierChoices(
            (choices.members + shift).reshape(-1, choices.members.shape[1]), choices.tier, choices.largest,
            np.tile(choices.counts, times), np.tile(choices.raters, times),
        )
        for choices in model.choices
    ]  # fmt: skip
    return ChoiceModel(parts, Blocks(np.tile(model.blocks.sizes, times)), model.prior_std)


@dataclass(frozen=True, eq=False)
class Marginals:
    """Densities of contrasts, one row a group: grid [G, J] and the probability of the cell around each point [G, J]."""

    grid: np.ndarray
    mass: np.ndarray

    def means(self) -> np.ndarray:
        """[G]."""
        return (self.grid * self.mass).sum(1)

    def quantiles(self, level: float) -> np.ndarray:
        """[G] below which a contrast lies with probability `level`."""
        below = np.cumsum(self.mass, 1) - self.mass / 2
        found = [np.interp(level, p, x) for p, x in zip(below, self.grid, strict=True)]
        return np.array(found)


def contrast_marginals(model: ChoiceModel, at: Parameters, along: np.ndarray) -> Marginals:
    """The posterior density of one contrast of each group, with what is shared held where it is.

    density(d) ~ posterior at the mode of the scores given the contrast d / sqrt(determinant of their information)

    For two replies this is quadrature; for more the scores given d are taken as normal.

    Args:
        model: groups that are wanted; log nu fixed.
        at: their mode.
        along: [items] weights of each group that add up to 0, such as 1 and -1 for the difference of two items.

    Source: Tierney and Kadane 1986, Accurate approximations for posterior moments. Chapter 08.
    """
    blocks = model.blocks
    towards = blocks.solve(model.system(at).information, along[:, None])[:, 0]
    variance, centre = blocks.sums(along * towards), blocks.sums(along * at.scores)
    steps = np.linspace(-REACH, REACH, POINTS)
    grid = centre + np.sqrt(variance) * steps[:, None]  # [J, G]
    # Start on the line of conditional means, where the mode would be if the posterior were normal.
    scores = at.scores + ((grid - centre) / variance)[:, blocks.group] * towards
    many = copies(model, POINTS)
    repeated = np.tile(along, POINTS)
    _, system = many.mode(replace(at, scores=scores.ravel()), along=repeated, tolerance=1e-4)
    solved = many.blocks.solve(system.information, repeated[:, None])[:, 0]
    spread = many.blocks.log_determinants(system.information) + np.log(many.blocks.sums(repeated * solved))
    log_density = system.values - spread / 2
    return _normalised(grid.T, log_density.reshape(POINTS, -1).T)


def _normalised(grid: np.ndarray, log_density: np.ndarray) -> Marginals:
    """Probabilities on a finer grid; the logarithm of density over normal density is linear in between."""
    steps = np.linspace(-REACH, REACH, POINTS)
    place = np.linspace(0, POINTS - 1, FINER * (POINTS - 1) + 1)
    left = np.minimum(place.astype(int), POINTS - 2)
    share = place - left
    fine = lambda x: (1 - share) * x[..., left] + share * x[..., left + 1]  # noqa: E731
    log_density = fine(log_density + steps**2 / 2) - fine(steps) ** 2 / 2
    mass = np.exp(log_density - log_density.max(1, keepdims=True))
    return Marginals(fine(grid), mass / mass.sum(1, keepdims=True))


def contrast_ends(model: ChoiceModel, at: Parameters, along: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """[G], [G]: the ends of the equal-tailed interval of one contrast of each group."""
    marginals = contrast_marginals(model, at, along)
    return marginals.quantiles((1 - level) / 2), marginals.quantiles((1 + level) / 2)
