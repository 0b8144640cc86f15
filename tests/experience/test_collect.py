"""Replies that a simulated rater ranks: whose they are, which of them form a ranking, and what is refused."""

import pytest
import torch

from rlhf_lab.experience import collect
from rlhf_lab.experience.collect import rank_events, rank_replies
from rlhf_lab.records import as_conversation
from rlhf_lab.worlds import town

torch.set_num_threads(1)
PROMPTS = [prompt.conversation for prompt in town.prompts("train", 6, seed=2)]


def ranked(lm, prompts=PROMPTS, seed=0, **options):
    return rank_replies(lm, prompts, 3, torch.Generator().manual_seed(seed), max_new_tokens=6, **options)


def test_every_prompt_with_different_replies_gets_a_ranking_in_order(tiny_gpt2):
    rankings = ranked(tiny_gpt2, rater=town.HURRIED)
    assert [ranking.prompt for ranking in rankings] == PROMPTS
    assert {(ranking.rater, ranking.simulated, ranking.status) for ranking in rankings} == {("hurried", True, "done")}
    assert all(len(set(ranking.replies)) == len(ranking.replies) in (2, 3) for ranking in rankings)


def test_the_seed_decides_replies_and_order(tiny_gpt2):
    first, again, other = (ranked(tiny_gpt2, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_the_events_hold_the_same_rankings_one_after_the_other(tiny_gpt2):
    generator = torch.Generator().manual_seed(0)
    events = rank_events(tiny_gpt2, PROMPTS, 3, generator, rater=town.HURRIED, max_new_tokens=6, start=100.0)
    assert [event.record for event in events] == ranked(tiny_gpt2, rater=town.HURRIED)
    assert len({event.id for event in events}) == len(PROMPTS)
    clock = 100.0
    for event in events:
        clock += event.duration
        assert event.time == pytest.approx(clock)
        assert sorted(event.shown) == list(range(len(event.record.replies)))


def test_replies_that_are_all_the_same_form_no_ranking(tiny_gpt2):
    assert ranked(tiny_gpt2, temperature=0) == []


def test_the_rater_goes_by_the_true_reward(tiny_gpt2, monkeypatch):
    good, bad = "The library closes at six.", "Go away."
    sampled = lambda lm, rows, **options: type("Replies", (), {"texts": (bad, good, bad) * (len(rows) // 3)})  # noqa: E731
    monkeypatch.setattr(collect, "sample_responses", sampled)
    rankings = ranked(tiny_gpt2, [as_conversation("When does the library close?")] * 50)
    assert {ranking.replies for ranking in rankings} == {(bad, good)}
    # The rewards are 3 and -1, so p(good first) = sigmoid(4 / 0.5): three of 50 are wrong for one seed in a million.
    assert sum(ranking.tiers[0] == (1,) for ranking in rankings) > 47


@pytest.mark.parametrize("replies", [1, 9, 2.5])
def test_a_number_of_replies_that_nobody_ranks_is_refused(replies, tiny_gpt2):
    with pytest.raises(ValueError, match=rf"replies is {replies}; expected 2 to 8"):
        rank_replies(tiny_gpt2, PROMPTS, replies, torch.Generator(), max_new_tokens=2)


@pytest.mark.parametrize("other", [as_conversation("What is love?"), "What is love?"], ids=["messages", "text"])
def test_a_prompt_of_another_world_is_refused_before_anything_is_sampled(other, tiny_gpt2, monkeypatch):
    monkeypatch.setattr(collect, "sample_responses", lambda *arguments, **options: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=r"conversation is .*'What is love\?'.*a prompt of the town: town\.prompts"):
        ranked(tiny_gpt2, [*PROMPTS, other])
