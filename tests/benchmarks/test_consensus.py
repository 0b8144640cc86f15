"""The stored study of optional stopping: what it says of each interval, and that its probe sees the interval."""

import consensus
import numpy as np
import pytest
from rows import read_rows, same_setup

from rlhf_lab.maths import posterior


def column(truths, replies, name):
    wanted = {"truths": truths, "replies": str(replies)}
    return np.array([float(row[name]) for row in read_rows(consensus.RESULTS) if wanted.items() <= row.items()])


@pytest.mark.parametrize("replies", [2, 3])
def test_with_truths_from_the_prior_the_posterior_covers_and_is_as_wide_as_quadrature(replies):
    covered, low, high = (column("prior", replies, f"posterior_{name}") for name in ("covered", "low", "high"))
    truth, labels = column("prior", replies, "truth"), column("prior", replies, "posterior_labels")
    assert int(covered.sum()) in consensus.EXPECTED
    assert (covered == ((low <= truth) & (truth <= high))).all()
    quadrature = [column("prior", replies, f"quadrature_{name}") for name in ("low", "high")]
    assert (high - low).mean() == pytest.approx((quadrature[1] - quadrature[0]).mean(), rel=0.01)
    assert np.abs(low - quadrature[0]).max() < 0.05
    assert ((low > 0) | (high < 0) | (labels == consensus.RULE.maximum)).all()


def test_without_a_difference_all_intervals_cover_less_than_they_say():
    shares = {name: column("equal", 2, f"{name}_covered").mean() for name in ("posterior", "logit", "share")}
    assert max(shares.values()) < 0.8
    assert column("prior", 2, "share_covered").mean() < 0.8 < column("prior", 2, "logit_covered").mean()


def test_quadrature_of_no_label_is_the_prior():
    assert consensus.quadrature(np.zeros((1, 2)), 2) == pytest.approx((-1.96 * 2**0.5, 1.96 * 2**0.5), abs=0.01)
    assert consensus.quadrature(np.zeros((3, 2)), 3) == pytest.approx((-1.96 * 2**0.5, 1.96 * 2**0.5), abs=0.01)


def test_the_probe_sees_a_change_of_the_interval(monkeypatch):
    def probe():
        return {"settings": {}, "probe": consensus.arm("prior", 2).probe()}

    before = probe()
    monkeypatch.setattr(posterior, "_normalised", lambda grid, log_density: NORMALISED(grid, 1.1 * log_density))
    assert not same_setup(before, probe())


NORMALISED = posterior._normalised
