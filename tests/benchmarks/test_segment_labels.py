"""What the study of labels for a control task stores is what chapter 09 says of it, and its probe sees the chain."""

import segment_labels
from probing import elsewhere
from rows import read_rows, same_setup

from rlhf_lab.maths.intervals import paired_difference
from rlhf_lab.recipes import segment_reward

ARMS = [arm.names["reward"] for arm in segment_labels.arms()]


def column(reward, name):
    return [float(row[name]) for row in read_rows(segment_labels.RESULTS) if row["reward"] == reward]


def test_every_arm_has_every_seed():
    assert [len(column(reward, "mean_return")) for reward in ARMS] == [len(segment_labels.SEEDS)] * 6


def test_labels_help_and_more_of_them_do_not_reach_the_true_reward():
    earned = {reward: column(reward, "mean_return") for reward in ARMS}
    assert paired_difference(earned["true reward"], earned["1280 labels"]).low > 0
    assert paired_difference(earned["1280 labels"], earned["0 labels"]).low > 0
    assert paired_difference(column("1280 labels", "accuracy"), column("20 labels", "accuracy")).low > 0
    for reward in ARMS[:-1]:
        pairs = zip(column(reward, "accuracy"), column(reward, "best_accuracy"), strict=True)
        assert all(accuracy < best for accuracy, best in pairs)


def test_the_probe_sees_a_change_of_the_choice_model(monkeypatch):
    before = {"settings": {}, "probe": segment_labels.probe("20 labels")}
    moved, _ = elsewhere(segment_reward.choice_losses)
    turned, edited = elsewhere(
        segment_reward.choice_losses, lambda source: source.replace("(outcome + 1) / 2", "(1 - outcome) / 2")
    )
    assert edited
    for function, same in ((moved, True), (turned, False)):
        monkeypatch.setattr(segment_reward, "choice_losses", function)
        assert same_setup(before, {"settings": {}, "probe": segment_labels.probe("20 labels")}) is same
