"""Members differ in head and prompts; what is out of bag is new to the members that judge it."""

import signal

import pytest
import torch

from rlhf_lab.models.ensemble import RewardEnsemble
from rlhf_lab.recipes import reward
from rlhf_lab.recipes.reward import RewardConfig, train_reward_model
from rlhf_lab.recipes.reward_data import prepare_feedback
from rlhf_lab.recipes.reward_ensemble import bootstrap_prompts, seed_of_member, train_reward_ensemble
from rlhf_lab.records import Comparison, Ranking, Rating

torch.set_num_threads(1)
SETTINGS = RewardConfig(epochs=1, rankings_per_step=8, warmup=1, learning_rate=3e-3)


def polite(count):
    """Kind before rude, with two records for every third prompt."""
    found = []
    for i in range(count):
        fact, prompt = f"The zoo closes at {('six', 'seven', 'nine')[i % 3]}.", f"When does the zoo close? ({i})"
        found.append(Ranking(prompt, (f"Go away! {fact}", f"{fact} Thank you!", fact), ((1,), (2,), (0,))))
        if i % 3 == 0:
            found.append(Comparison(prompt, "Thank you!", "Go away!"))
    return found


@pytest.fixture(scope="module")
def trained(tiny_gpt2):
    return train_reward_ensemble(tiny_gpt2, polite(24), SETTINGS, members=3)


def test_a_sample_draws_prompts_with_all_their_records(tiny_gpt2):
    feedback = polite(30)
    judged = prepare_feedback(tiny_gpt2, feedback, "bradley_terry", 64).judged
    samples = [bootstrap_prompts(judged, 0, number) for number in range(40)]
    shares = []
    for sample in samples:
        rows = [one.row for one in sample]
        of_prompt = {
            record.prompt: [i for i, r in enumerate(feedback) if r.prompt == record.prompt] for record in feedback
        }
        counts = [{rows.count(i) for i in places} for places in of_prompt.values()]
        assert all(len(times) == 1 for times in counts)  # all records of a prompt equally often
        assert sum(times.pop() for times in counts) == 30
        shares.append(len({feedback[row].prompt for row in rows}) / 30)
    # The expected share of different prompts is 1 - (29/30)^30 = 0.638; the mean of 40 has standard deviation 0.009.
    assert sum(shares) / 40 == pytest.approx(0.638, abs=0.04)
    assert samples[0] != samples[1]
    assert samples[0] == bootstrap_prompts(judged, 0, 0) != bootstrap_prompts(judged, 1, 0)


def test_members_are_models_of_their_samples(tiny_gpt2, trained):
    feedback = polite(24)
    assert isinstance(trained.model, RewardEnsemble)
    assert len(trained.model) == len(trained.histories) == len(trained.trained_on) == len(trained.history) == 3
    heads = [member.model.score.weight for member in trained.model.members]
    assert not torch.equal(heads[0], heads[1])
    sample = [feedback[row] for row in trained.trained_on[1]]
    alone = train_reward_model(tiny_gpt2, sample, RewardConfig(**vars(SETTINGS) | {"seed": seed_of_member(0, 1)}))
    assert torch.equal(alone.model.model.score.weight, heads[1])
    assert alone.history == trained.histories[1]


def test_out_of_bag_is_what_members_say_of_prompts_that_are_new_to_them(trained):
    feedback, bag = polite(24), trained.out_of_bag
    expected, missing = {}, 0
    for row, record in enumerate(feedback):
        new = [
            member
            for member, rows in zip(trained.model.members, trained.trained_on, strict=True)
            if record.prompt not in {feedback[i].prompt for i in rows}
        ]
        missing += not new
        if isinstance(record, Comparison):
            texts, pairs = (record.chosen, record.rejected), [(0, 1)]
        else:
            texts, pairs = record.replies, record.pairs()
        if new:
            scores = torch.stack([m.score([record.prompt] * len(texts), texts) for m in new]).mean(0)
            expected[row] = [(float(scores[b] - scores[w]), len(new)) for b, w in pairs]
    assert bag.missing == missing > 0
    assert list(bag.rows) == [row for row, pairs in expected.items() for _ in pairs]
    flat = [pair for pairs in expected.values() for pair in pairs]
    assert bag.differences == pytest.approx([difference for difference, _ in flat], abs=1e-4)
    assert list(bag.members) == [count for _, count in flat]
    assert bag.accuracy.mean == pytest.approx(sum(d > 0 for d in bag.differences) / len(flat))
    assert bag.accuracy.count == len(set(bag.prompts)) < len(flat)  # resampled by prompts


def test_labels_without_meaning_are_at_chance_out_of_bag_though_they_are_learned(tiny_gpt2):
    """Of 40 pairs about 35 are out of some bag: a share within 0.25 of one half fails in 1 of 300 runs."""
    generator = torch.Generator().manual_seed(0)
    feedback = []
    for i in range(40):
        replies = ("Thank you! At six.", "Go away! At six.")[:: 1 if torch.rand((), generator=generator) < 0.5 else -1]
        feedback.append(Comparison(f"When does the zoo close? ({i})", *replies))
    result = train_reward_ensemble(tiny_gpt2, feedback, SETTINGS, members=2)
    assert 0.25 < result.out_of_bag.accuracy.mean < 0.75
    assert result.out_of_bag.accuracy.low < 0.5 < result.out_of_bag.accuracy.high


def test_ratings_of_one_prompt_are_pairs_out_of_bag(tiny_gpt2):
    ratings = [
        Rating(f"Hi ({i})", text, score, rater="ann")
        for i in range(12)
        for text, score in (("Thank you!", 5), ("Go away!", 1), ("Hello.", 3), ("At six.", 3))
    ]
    for loss, pairs in (("regression", 5), ("classification", 1)):
        settings = RewardConfig(**vars(SETTINGS) | {"loss": loss})
        bag = train_reward_ensemble(tiny_gpt2, ratings, settings, members=2).out_of_bag
        assert len(bag.rows) == pairs * len(set(bag.prompts)) > 0


def test_one_prompt_is_no_sample(tiny_gpt2):
    with pytest.raises(ValueError, match="feedback is 'on one prompt'; expected on several"):
        train_reward_ensemble(tiny_gpt2, polite(1), SETTINGS)
    with pytest.raises(ValueError, match="members is 0; expected at least 1"):
        train_reward_ensemble(tiny_gpt2, polite(4), SETTINGS, members=0)


def interrupting(monkeypatch, at):
    step, calls = reward.clipped_step, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(reward, "clipped_step", stopped)


def test_an_interrupt_keeps_the_members_that_were_finished_and_the_run_goes_on(tiny_gpt2, tmp_path, trained):
    steps = len(trained.histories[0])
    with pytest.MonkeyPatch.context() as patch:
        interrupting(patch, steps + 2)
        half = train_reward_ensemble(tiny_gpt2, polite(24), SETTINGS, members=3, checkpoint=tmp_path / "run.pt")
    assert half.interrupted
    assert len(half.model) == 1
    assert torch.equal(half.model.members[0].model.score.weight, trained.model.members[0].model.score.weight)
    rest = train_reward_ensemble(tiny_gpt2, polite(24), SETTINGS, members=3, checkpoint=tmp_path / "run.pt")
    assert not rest.interrupted
    assert rest.out_of_bag == trained.out_of_bag
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0.pt", "run-1.pt", "run-2.pt"]


def test_an_interrupt_of_the_first_member_keeps_what_there_is(tiny_gpt2, monkeypatch):
    interrupting(monkeypatch, 1)
    half = train_reward_ensemble(tiny_gpt2, polite(24), SETTINGS, members=3)
    assert (half.interrupted, len(half.model), len(half.histories[0])) == (True, 1, 1)


def test_what_is_left_out_is_said_once(tiny_gpt2, capsys):
    skipped = Ranking("Hi", ("a", "b"), (), status="skipped")
    result = train_reward_ensemble(tiny_gpt2, [skipped, *polite(6)], SETTINGS, members=2)
    assert capsys.readouterr().out.count("1 skipped") == 1
    assert (result.unused, result.reasons) == (1, {"skipped": 1})
    assert 0 not in {row for rows in result.trained_on for row in rows}
