"""What a reward model takes of each form of feedback: what is said of which reply, what is left out, weights."""

import pytest
import torch
from scipy.stats import norm

from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.tokens import encode_responses
from rlhf_lab.recipes.reward import RewardConfig, loss_gradient, train_reward_model
from rlhf_lab.recipes.reward_data import as_feedback, prepare_feedback, read_said, with_mean_weight_one
from rlhf_lab.records import Choice, Comparison, Edit, Ranking, Rating, as_conversation
from rlhf_lab.training.randomness import generator_for

torch.set_num_threads(1)
LOSSES = ("bradley_terry", "plackett_luce", "davidson", "regression", "classification")
OF_EACH_FORM = [
    Ranking("Where is the zoo?", ("No.", "By the bridge.", "Thank you!"), ((1,), (0, 2))),
    Comparison("Hi", "Thank you!", "Go away."),
    Choice("Who?", "Thank you!", "Go away.", 1),
    Choice("Who is it?", "Thank you!", "Hello.", 0),
    Rating("Hi", "Thank you!", 5, rater="ann"),
    Rating("Hi", "Go away.", 2, rater="ann"),
    Rating("Hi", "Hello.", 3, rater="ann"),
    Ranking("Hi", ("a", "b"), (), status="skipped"),
    Edit("Hi", "Go.", "Hello."),
]


def config(**options):
    return RewardConfig(**{"epochs": 1, "rankings_per_step": 4, "warmup": 1} | options)


def prepared(lm, feedback, loss="bradley_terry", **options):
    return prepare_feedback(lm, feedback, loss, 64, **options)


def fresh(lm):
    rm = RewardModel.from_language_model(lm, generator_for(0, "test"))
    rm.model.requires_grad_(True)
    return rm


def gradient(lm, data, settings, log_nu=None):
    rm = fresh(lm)
    loss_gradient(rm, with_mean_weight_one(data.judged), settings, log_nu)
    return torch.cat([p.grad.flatten() for p in rm.model.parameters() if p.grad is not None])


# ---- forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "rows", "said"),
    [
        ("bradley_terry", [0, 1, 2], "1 one tie, 3 Rating, 1 skipped, 1 Edit"),
        ("plackett_luce", [0, 1, 2], "1 one tie, 3 Rating, 1 skipped, 1 Edit"),
        ("davidson", [0, 1, 2, 3], "3 Rating, 1 skipped, 1 Edit"),
        ("regression", [4, 5, 6], "2 Ranking, 1 Comparison, 2 Choice, 1 Edit"),
        ("classification", [4, 5], "2 Ranking, 1 Comparison, 2 Choice, 1 Rating in the middle of its scale, 1 Edit"),
    ],
)
def test_each_loss_takes_what_it_can_use_and_says_why_not_the_rest(tiny_gpt2, capsys, loss, rows, said):
    data = prepared(tiny_gpt2, OF_EACH_FORM, loss)
    assert [one.row for one in data.judged] == rows
    printed = capsys.readouterr().out
    assert all(part in printed for part in said.split(", ")), printed
    assert dict(data.reasons) == {part.partition(" ")[2]: int(part.partition(" ")[0]) for part in said.split(", ")}
    result = train_reward_model(tiny_gpt2, OF_EACH_FORM, config(loss=loss))
    assert result.unused == len(OF_EACH_FORM) - len(rows)
    assert result.reasons == data.reasons


@pytest.mark.parametrize(
    ("loss", "useless", "words"),
    [
        ("bradley_terry", OF_EACH_FORM[3:], "6 records without a pair'; expected a preference of replies"),
        ("davidson", OF_EACH_FORM[4:], "5 records without a pair or tie'; expected a preference"),
        ("regression", OF_EACH_FORM[:4], "4 records without a rating'"),
        ("classification", OF_EACH_FORM[6:], "3 records without a label'"),
        ("regression", [Rating("Hi", text, 4, rater="ann") for text in "ab"], "2 ratings that say the same'"),
        ("classification", [Rating("Hi", text, 4) for text in "ab"], "2 labels that say the same'"),
    ],
)
def test_nothing_usable_is_one_clear_error(tiny_gpt2, loss, useless, words):
    with pytest.raises(ValueError, match=f"feedback is '{words}"):
        train_reward_model(tiny_gpt2, useless, config(loss=loss))


def test_a_choice_is_a_comparison(tiny_gpt2):
    for outcome in (1, -1):
        sides = ("Thank you!", "Go away.")[::outcome]
        of_choice, of_comparison = (
            prepared(tiny_gpt2, [record]).judged
            for record in (Choice("Hi", *sides, outcome), Comparison("Hi", "Thank you!", "Go away."))
        )
        assert of_choice == of_comparison


def test_a_tie_above_the_last_place_is_no_order():
    tied, last = (Ranking("Hi", tuple("abcd"), tiers) for tiers in (((0, 1), (2,), (3,)), ((0,), (1,), (2, 3))))
    found = read_said([tied, last], "plackett_luce")
    assert found[0] == "tie above the last place, for which there is loss='davidson'"
    assert found[1][1].ordered == 2
    assert all(not isinstance(one, str) for one in read_said([tied, last], "davidson"))


def test_pairs_lead_by_the_places_between_their_tiers():
    [(texts, said)] = read_said([Ranking("Hi", tuple("abcd"), ((2,), (0, 3), (1,)))], "bradley_terry")
    leads = {texts[b] + texts[w]: lead for (b, w), lead in zip(said.pairs, said.leads, strict=True)}
    assert leads == {"ca": 1, "cd": 1, "cb": 2, "ab": 1, "db": 1}


def test_rows_with_a_label_are_ratings_on_a_scale_of_two(tiny_gpt2):
    rows = [
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello.", "label": True, "rater": "ann"},
        {"prompt": "Hi", "completion": "Go.", "label": 0, "simulated": True},
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go."},
    ]
    first, second, third = as_feedback(rows)
    assert (first.prompt, first.reply, first.score, first.low, first.high) == (as_conversation("Hi"), "Hello.", 1, 0, 1)
    assert (first.rater, second.score, second.simulated) == ("ann", 0.0, True)
    assert third == Comparison("Hi", "Hello.", "Go.")
    assert [one.said.target for one in prepared(tiny_gpt2, rows[:2], "classification").judged] == [1.0, 0.0]
    bad = {"prompt": "Hi", "completion": "Hello.", "label": "good"}
    with pytest.raises(ValueError, match="row 1, label is 'good'; expected true for a good reply"):
        as_feedback([rows[0], bad])
    with pytest.raises(ValueError, match="row 2, completion: the field is missing"):
        as_feedback([*rows[:2], {"prompt": "Hi", "label": True}])
    with pytest.raises(ValueError, match="row 1 is 'Hi'; expected a record"):
        as_feedback([rows[0], "Hi"])


def test_ratings_are_relative_to_what_their_rater_gives():
    """A mild rater and a stern one with the same spread say the same; the scale of a third has other ends."""
    mild = [Rating("Hi", text, score, rater="ann") for text, score in zip("abc", (3, 4, 5), strict=True)]
    stern = [Rating("Hi", text, score, rater="bob") for text, score in zip("abc", (1, 2, 3), strict=True)]
    third = [Rating("Hi", text, s, 0, 100, rater="cy") for text, s in zip("abc", (0, 50, 100), strict=True)]
    targets = [said.target for _, said in read_said([*mild, *stern, *third], "regression")]
    assert targets == pytest.approx([*norm.cdf([-(1.5**0.5), 0, 1.5**0.5])] * 3)


# ---- tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_every_reply_is_encoded_once(tiny_gpt2, monkeypatch, loss):
    from rlhf_lab.recipes import reward_data

    texts, rows = [], []
    encode = encode_responses
    monkeypatch.setattr(reward_data, "encode_responses", lambda lm, some, limit: texts.extend(some) or encode(lm, some))
    data = prepared(tiny_gpt2, OF_EACH_FORM, loss)
    raw = RewardModel.raw_scores
    monkeypatch.setattr(RewardModel, "raw_scores", lambda self, batch: rows.append(len(batch)) or raw(self, batch))
    loss_gradient(fresh(tiny_gpt2), data.judged, config(loss=loss))
    count = {"bradley_terry": 7, "plackett_luce": 7, "davidson": 9, "regression": 3, "classification": 2}[loss]
    assert (len(texts), rows) == (count, [count])


def test_ties_that_became_equal_by_the_cut_are_no_ties(tiny_gpt2):
    same = "Thank you, thank you, thank you, "
    tie = Choice("Hi", f"{same}friend.", f"{same}stranger!", 0)
    data = prepare_feedback(tiny_gpt2, [tie, Comparison("Hi", "Thank you.", "Go away!")], "davidson", 6)
    assert [one.row for one in data.judged] == [1]
    assert data.reasons == {"equal up to the cut": 1}


# ---- weights -------------------------------------------------------------------------------------------------------


def test_a_record_of_weight_two_is_the_record_twice(tiny_gpt2):
    feedback = OF_EACH_FORM[:3]
    heavy = gradient(tiny_gpt2, prepared(tiny_gpt2, feedback, weights=[2.0, 1.0, 1.0]), config())
    twice = gradient(tiny_gpt2, prepared(tiny_gpt2, [*feedback, feedback[0]]), config())
    torch.testing.assert_close(heavy, twice, atol=1e-6, rtol=1e-5)
    plain = gradient(tiny_gpt2, prepared(tiny_gpt2, feedback), config())
    assert not torch.allclose(heavy, plain, atol=1e-3)


def test_only_ratios_of_weights_count_and_weight_zero_is_no_record(tiny_gpt2, capsys):
    weights = lambda rm: torch.cat([p.detach().flatten() for p in rm.model.parameters()])  # noqa: E731
    feedback, settings = OF_EACH_FORM[:3], config()
    plain = train_reward_model(tiny_gpt2, feedback, settings)
    scaled = train_reward_model(tiny_gpt2, feedback, settings, weights=[4, 4, 4])
    assert torch.equal(weights(plain.model), weights(scaled.model))
    dropped = train_reward_model(tiny_gpt2, feedback, settings, weights=[0.0, 1.0, 1.0])
    assert torch.equal(weights(dropped.model), weights(train_reward_model(tiny_gpt2, feedback[1:], settings).model))
    assert dropped.reasons == {"weight 0": 1}
    assert "1 weight 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, -0.5], r"weights\[1\] is -0.5; expected 0 or more; who prefers the opposite"),
        ([1.0], "weights is '1 numbers'; expected one for each of the 2 records"),
        ([1.0, float("nan")], "weights must be one or more finite numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tiny_gpt2, weights, words):
    with pytest.raises(ValueError, match=words):
        prepared(tiny_gpt2, OF_EACH_FORM[:2], weights=weights)
