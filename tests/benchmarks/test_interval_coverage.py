"""The stored coverage of the intervals of chapter 11: what it says, and that its probe sees an interval change."""

import interval_coverage
import numpy as np
import pytest
from rows import read_rows, same_setup
from scipy import stats

ROWS = read_rows(interval_coverage.RESULTS)
NAMES = [arm.names["interval"] for arm in interval_coverage.arms()]


def column(name, key, **cell):
    wanted = {"interval": name} | {key: str(value) for key, value in cell.items()}
    return np.array([float(row[key]) for row in ROWS if wanted.items() <= row.items()])


@pytest.mark.parametrize("name", NAMES)
def test_every_interval_covers_93_to_97_percent_in_every_cell_but_half_ties(name):
    coverage = column(name, "coverage")
    assert len(coverage) == 12
    if name != "half ties":
        assert 0.93 <= coverage.min() <= coverage.max() <= 0.97
        return
    tied = np.concatenate([column(name, "coverage", ties=ties) for ties in (0.2, 0.5)])
    assert 0.967 < tied.min() < tied.max() < 0.998


def test_what_is_simulated_is_so_2000_times_and_has_an_interval():
    for name in NAMES:
        simulated, low, high = (column(name, key) for key in ("simulated", "low", "high"))
        assert set(simulated) == {0 if name in interval_coverage.EXACT else 2000}
        assert ((high > low) == (simulated > 0)).all()


def test_the_probabilities_of_all_counts_are_the_multinomial_ones():
    counts = interval_coverage.all_counts(6)
    for chances in ((0.3, 0.5, 0.2), (0.5, 0.0, 0.5)):
        mine = interval_coverage.probabilities(counts, chances)
        assert mine == pytest.approx(stats.multinomial.pmf(counts, 6, chances))
        assert mine.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["win rate", "scores", "equal length"])
def test_the_probe_sees_a_narrower_interval(monkeypatch, name):
    before = {"settings": {}, "probe": interval_coverage.probe(name)}
    assert same_setup(before, {"settings": {}, "probe": interval_coverage.probe(name)})
    monkeypatch.setattr(interval_coverage, "LEVEL", 0.94)
    assert not same_setup(before, {"settings": {}, "probe": interval_coverage.probe(name)})
