"""What the study of labels and leash stores is what chapter 10 says of it, and its probe sees the whole chain."""

import labels
from probing import check_that_the_probe_sees_the_chain
from rows import read_rows

from rlhf_lab.maths.intervals import paired_difference


def column(kind, leash, name, step="8"):
    wanted = {"labels": kind, "kl_coef": f"{leash:.2f}", "step": step}
    return [float(row[name]) for row in read_rows(labels.RESULTS) if wanted.items() <= row.items()]


def test_every_arm_has_every_seed_and_starts_from_the_same_model():
    starts = [column(kind, leash, "true", "0") for kind in labels.LABELS for leash in labels.LEASHES]
    assert [len(start) for start in starts] == [len(labels.SEEDS)] * 6
    assert all(start == starts[0] for start in starts)


def test_the_labels_decide_as_the_chapter_says():
    for leash in labels.LEASHES[:2]:
        more = column("harmful", leash, "over_refusal"), column("all", leash, "over_refusal")
        assert paired_difference(*more).low > 0
        assert paired_difference(column("all", leash, "true"), column("harmful", leash, "true")).low > 0


def test_the_probe_sees_a_change_of_ppo_and_of_the_reward_model(monkeypatch):
    check_that_the_probe_sees_the_chain(monkeypatch, labels, "harmful", 0.5)
