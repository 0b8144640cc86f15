"""What the study of judge and leash stores is what chapter 00 says of it, and its probe sees the whole chain."""

import leash
from probing import check_that_the_probe_sees_the_chain
from rows import read_rows

from rlhf_lab.maths.intervals import paired_difference

ARMS = [(judge, leashed) for judge in leash.JUDGES for leashed in leash.LEASHES]


def column(part, arm, name, step="12", rate="0.0005"):
    wanted = dict(zip(("part", "judge", "leash", "rate", "step"), (part, *arm, rate, step), strict=True))
    return [float(row[name]) for row in read_rows(leash.RESULTS) if wanted.items() <= row.items()]


def test_every_arm_has_every_seed_and_starts_from_the_same_model():
    for part, (seeds, rates) in leash.PARTS.items():
        for rate in rates:
            starts = [column(part, arm, "true", step="0", rate=f"{rate:g}") for arm in ARMS]
            assert [len(start) for start in starts] == [len(seeds)] * 4
            assert all(start == starts[0] for start in starts)


def test_the_judge_decides_as_the_chapter_says():
    good, free, spoiled, spoiled_free = (column("crossed", arm, "true") for arm in ARMS)
    for bad, well in ((spoiled, good), (spoiled_free, free)):
        assert paired_difference(bad, well).high < 0
        assert all(x < y for x, y in zip(bad, well, strict=True))
    costs = [paired_difference(*pair).mean for pair in ((good, free), (spoiled, spoiled_free), (good, spoiled))]
    assert 0 < costs[0] < costs[1] < costs[2] / 2  # without the leash with either judge, and of the judge


def test_a_spoiled_judge_always_scores_higher_and_is_not_always_better_or_worse():
    fell = []
    for arm in ARMS[2:]:
        score, true = ([column("crossed", arm, name, step) for step in ("0", "12")] for name in ("score", "true"))
        assert all(last > first for first, last in zip(*score, strict=True))
        fell.append(sum(last < first for first, last in zip(*true, strict=True)))
    assert fell == [2, 4]


def test_the_probe_sees_a_change_of_ppo_and_of_the_judge(monkeypatch):
    check_that_the_probe_sees_the_chain(monkeypatch, leash, "spoiled", "leash")
