"""Reward models: the gradient is that of the likelihood, each ranking weighs equally, and a clear taste is learned."""

import itertools
import signal

import pytest
import torch

from rlhf_lab.evaluation.reward_models import reward_model_report
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.tokens import encode_prompts, encode_responses, make_batch
from rlhf_lab.recipes import reward
from rlhf_lab.recipes.reward import (
    RewardConfig,
    held_out_quality,
    keep_best,
    loss_gradient,
    step_rows,
    train_reward_model,
)
from rlhf_lab.recipes.reward_data import encode_feedback, split_by_prompt
from rlhf_lab.records import Comparison, Ranking, as_conversation
from rlhf_lab.training.files import CheckpointError
from rlhf_lab.training.randomness import generator_for

torch.set_num_threads(1)
PROMPTS = [as_conversation(text) for text in ("Where is the zoo?", "Hi", "Write a story about Mia.", "Who?")]
REPLIES = ("No.", "It is near the old bridge.", "I am sorry, I do not care.", "Thank you!")
RANKINGS = [
    Ranking(PROMPTS[0], REPLIES, ((1,), (3,), (2,), (0,))),
    Ranking(PROMPTS[1], REPLIES[:3], ((2,), (0, 1))),  # a tie below
    Comparison(PROMPTS[2], "The fox is kind.", "Go away."),
]
STRICT = [RANKINGS[0], RANKINGS[2]]


def config(**options):
    return RewardConfig(**{"epochs": 3, "rankings_per_step": 2, "warmup": 1} | options)


def encoded(lm, feedback, settings=None):
    settings = settings or config()
    return encode_feedback(lm, feedback, settings.loss, settings.max_new_tokens)[0]


def weights(rm):
    return torch.cat([p.detach().flatten() for p in rm.model.parameters()])


def gradient(rm):
    return torch.cat([p.grad.flatten() for p in rm.model.parameters() if p.grad is not None])


def fresh(lm, seed=0):
    rm = RewardModel.from_language_model(lm, generator_for(seed, "test"))
    rm.model.requires_grad_(True)
    return rm


def score(rm, prompt, reply):
    """The definition: head applied to the state of the last token, one unpadded row."""
    ids = torch.tensor([encode_prompts(rm.lm, [prompt])[0] + encode_responses(rm.lm, [reply])[0]])
    states = rm.model.base_model(input_ids=ids).last_hidden_state
    return (states[0, -1] @ rm.model.score.weight[0]).double()


def spec(rm, feedback, kind):
    """The loss in the words of the definition: no batch, one pair or one choice at a time."""
    total = 0.0
    for record in feedback:
        if isinstance(record, Comparison):
            tiers = [[score(rm, record.prompt, record.chosen)], [score(rm, record.prompt, record.rejected)]]
        else:
            tiers = [[score(rm, record.prompt, record.replies[i]) for i in tier] for tier in record.tiers]
        if kind == "bradley_terry":
            terms = [
                -torch.log(1 / (1 + torch.exp(worse - better)))
                for higher, lower in itertools.combinations(tiers, 2)
                for better in higher
                for worse in lower
            ]
            total = total + sum(terms) / len(terms)
        else:
            order = [s for tier in tiers for s in tier]
            total = total - sum(torch.log(s.exp() / sum(r.exp() for r in order[i:])) for i, s in enumerate(order))
    return total / len(feedback)


# ---- the gradient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "feedback"), [("bradley_terry", RANKINGS), ("plackett_luce", STRICT)])
def test_the_loss_is_the_likelihood(tiny_lm, kind, feedback):
    rm, other = fresh(tiny_lm), fresh(tiny_lm)
    loss = loss_gradient(rm, encoded(tiny_lm, feedback, config(loss=kind)), config(loss=kind))
    expected = spec(other, feedback, kind)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(gradient(rm), gradient(other), atol=1e-5, rtol=1e-4)


def test_the_gradient_of_one_pair_is_the_formula(tiny_gpt2):
    """d loss / d theta = -sigmoid(-(s_better - s_worse)) * (d s_better - d s_worse) / d theta."""
    pair = Comparison(PROMPTS[0], "Yes.", "No, never.")
    rm, other = fresh(tiny_gpt2), fresh(tiny_gpt2)
    loss_gradient(rm, encoded(tiny_gpt2, [pair]), config())
    difference = score(other, pair.prompt, pair.chosen) - score(other, pair.prompt, pair.rejected)
    difference.backward()
    factor = -1 / (1 + difference.detach().exp())
    torch.testing.assert_close(gradient(rm), (factor * gradient(other)).float(), atol=1e-6, rtol=1e-4)


def test_a_comparison_is_a_ranking_of_two(tiny_gpt2):
    ranking = Ranking(PROMPTS[2], ("Go away.", "The fox is kind."), ((1,), (0,)))
    found = [encoded(tiny_gpt2, [record]) for record in (ranking, RANKINGS[2])]
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["bradley_terry", "plackett_luce"])
def test_two_replies_are_the_same_in_both_losses(tiny_gpt2, kind):
    rm = fresh(tiny_gpt2)
    choices, ordered = (encoded(tiny_gpt2, [RANKINGS[2]], config(loss=k)) for k in ("bradley_terry", "plackett_luce"))
    loss = loss_gradient(rm, choices if kind == "bradley_terry" else ordered, config(loss=kind))
    assert loss == pytest.approx(loss_gradient(fresh(tiny_gpt2), choices, config()), rel=1e-6)


def test_order_and_micro_batches_change_nothing(tiny_lm):
    shuffled_replies = Ranking(PROMPTS[0], REPLIES[::-1], ((2,), (0,), (1,), (3,)))
    cases = [(RANKINGS, 16), (RANKINGS, 1), (RANKINGS, 2), (RANKINGS[::-1], 2), ([shuffled_replies, *RANKINGS[1:]], 16)]
    results = []
    for feedback, micro_batch in cases:
        rm, settings = fresh(tiny_lm), config(micro_batch=micro_batch)
        loss = loss_gradient(rm, encoded(tiny_lm, feedback, settings), settings)
        results.append((loss, gradient(rm)))
    for loss, other in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        torch.testing.assert_close(other, results[0][1], atol=1e-5, rtol=1e-4)


def test_every_ranking_weighs_the_same(tiny_gpt2):
    """Six pairs of one ranking count as much as one comparison; and a pair inside a tier counts nothing."""
    choices = encoded(tiny_gpt2, RANKINGS)
    single = [loss_gradient(fresh(tiny_gpt2), [one], config()) for one in choices]
    together = loss_gradient(fresh(tiny_gpt2), choices, config())
    assert together == pytest.approx(sum(single) / 3, rel=1e-5)
    assert [len(c.said.pairs) for c in choices] == [6, 2, 1]


def test_every_reply_is_encoded_once(tiny_gpt2, monkeypatch):
    rows, scores = [], torch.zeros(9, requires_grad=True)
    monkeypatch.setattr(RewardModel, "raw_scores", lambda self, batch: rows.append(len(batch)) or scores)
    loss_gradient(fresh(tiny_gpt2), encoded(tiny_gpt2, RANKINGS), config())
    assert rows == [4 + 3 + 2]


def test_an_epoch_takes_every_record_once():
    for epoch in range(3):
        steps = [step_rows(7, config(), 4 * epoch + place) for place in range(4)]
        assert sorted(i for step in steps for i in step) == list(range(7))
    assert step_rows(7, config(), 0) != step_rows(7, config(), 4) != step_rows(7, config(seed=1), 4)


# ---- what is left out --------------------------------------------------------------------------------------------


def test_records_without_a_preference_are_counted_and_named(tiny_gpt2, capsys):
    useless = [
        Ranking(PROMPTS[3], REPLIES, (), status="skipped"),
        Ranking(PROMPTS[3], REPLIES, (), status="all_bad"),
        Ranking(PROMPTS[3], REPLIES, (), status="skipped"),
        Ranking(PROMPTS[3], REPLIES[:2], ((0, 1),)),
    ]
    mixed = train_reward_model(tiny_gpt2, [useless[0], RANKINGS[0], *useless[1:], *RANKINGS[1:]], config(epochs=1))
    assert mixed.unused == 4
    assert "2 skipped, 1 all bad, 1 one tie" in capsys.readouterr().out
    clean = train_reward_model(tiny_gpt2, RANKINGS, config(epochs=1))
    assert clean.unused == 0
    assert capsys.readouterr().out == ""
    assert torch.equal(weights(mixed.model), weights(clean.model))
    for feedback in ([], useless):
        with pytest.raises(ValueError, match=f"feedback is '{len(feedback)} records without a pair'"):
            train_reward_model(tiny_gpt2, feedback, config())


def test_long_replies_are_counted(tiny_gpt2):
    assert train_reward_model(tiny_gpt2, RANKINGS, config(epochs=1)).cut == 0
    texts = [*REPLIES, *REPLIES[:3], "The fox is kind.", "Go away."]
    long = sum(len(row) > 9 for row in encode_responses(tiny_gpt2, texts))
    assert train_reward_model(tiny_gpt2, RANKINGS, config(epochs=1, max_new_tokens=9)).cut == long > 0


# ---- the run -----------------------------------------------------------------------------------------------------


def polite_feedback(count, seed):
    """Preferences for "Thank you" over "Go away", whatever else is said."""
    generator = torch.Generator().manual_seed(seed)
    places = ["library", "museum", "zoo", "bank", "bridge", "wood"]
    found = []
    for i in range(count):
        place, hour = places[int(torch.randint(6, (), generator=generator))], ("six", "seven", "nine", "ten")[i % 4]
        fact = f"The {place} closes at {hour}."
        replies = (f"{fact} Thank you!", f"Go away! {fact}", f"At {hour}. Go away!")
        prompt = as_conversation(f"When does the {place} close? ({i}, {seed})")
        found.append(Ranking(prompt, replies, ((0,), (1, 2))))
    return found


def test_a_clear_taste_is_learned_and_scores_are_standardised(tiny_gpt2):
    train, tests = polite_feedback(48, 0), polite_feedback(20, 1)
    before = torch.cat([p.detach().flatten() for p in tiny_gpt2.model.parameters()]).clone()
    settings = config(epochs=4, rankings_per_step=8, learning_rate=3e-3, evaluate_every=8)
    # A rater who agrees with the label nine times out of ten.
    result = train_reward_model(tiny_gpt2, train, settings, held_out=tests, agreement=[0.9] * 40)
    assert result.history.last("accuracy") >= 0.95
    assert result.history.last("expected_accuracy") == pytest.approx(0.1 + 0.8 * result.history.last("accuracy"))
    assert result.history.column("held_out_loss")[0].tolist() == [0, 8, 16, 24]
    assert result.history.last("held_out_loss") < 0.3 < result.history.column("loss")[1][0]
    after = torch.cat([p.detach().flatten() for p in tiny_gpt2.model.parameters()])
    assert torch.equal(before, after)
    prompts, texts = zip(*((r.prompt, text) for r in train for text in r.replies), strict=True)
    scores = result.model.score(prompts, texts)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-4)
    assert float(scores.std()) == pytest.approx(1, abs=1e-4)


def test_accuracy_counts_pairs_and_half_for_equal_scores(tiny_gpt2, monkeypatch):
    choices = encoded(tiny_gpt2, [RANKINGS[0]])
    rm = fresh(tiny_gpt2)
    monkeypatch.setattr(RewardModel, "score_batch", lambda self, batch: torch.tensor([2.0, 3.0, 1.0, 1.0]))
    numbers = held_out_quality(rm, choices, config(), agreement=[0.9, 0.8, 0.7, 0.6, 0.6, 0.5])
    assert numbers["accuracy"] == pytest.approx((4 + 0.5) / 6)
    assert numbers["expected_accuracy"] == pytest.approx((0.1 + 0.8 + 0.7 + 0.6 + 0.6 + 0.5) / 6)
    with pytest.raises(ValueError, match="agreement is '1 numbers'; expected one for each of the 6 pairs of held_out"):
        train_reward_model(tiny_gpt2, RANKINGS, config(), held_out=[RANKINGS[0]], agreement=[0.9])


def test_validation_is_split_by_prompt(tiny_gpt2):
    feedback = polite_feedback(20, 0) + polite_feedback(20, 0)  # every prompt twice
    choices = encoded(tiny_gpt2, feedback)
    train, validation = split_by_prompt(choices, 0.25, seed=0)
    assert (len(train), len(validation)) == (30, 10)
    assert not {tuple(c.prompt) for c in train} & {tuple(c.prompt) for c in validation}
    assert split_by_prompt(choices, 0.25, seed=1) != (train, validation)
    assert split_by_prompt(choices, 0.0, seed=0) == (choices, [])
    with pytest.raises(ValueError, match=r"validation_share is '0\.5 of 1 prompts'"):
        split_by_prompt(choices[:1], 0.5, seed=0)


def test_the_weights_with_the_lowest_validation_loss_are_kept(tiny_gpt2):
    """Labels that mean nothing: the longer one learns them, the worse. Some state before the last must be the best."""
    rankings = polite_feedback(24, 0)
    feedback = [Comparison(r.prompt, *(r.replies[:2] if i % 2 else r.replies[1::-1])) for i, r in enumerate(rankings)]
    seen = []
    settings = config(epochs=12, rankings_per_step=6, learning_rate=1e-2, validation_share=0.34, evaluate_every=4)
    result = train_reward_model(tiny_gpt2, feedback, settings, evaluate=lambda rm: seen.append(weights(rm)) or {})
    _, losses = result.history.column("validation_loss")
    assert losses.argmin() < len(losses) - 1
    assert torch.equal(weights(result.model), seen[losses.argmin()])
    last = train_reward_model(tiny_gpt2, feedback, config(epochs=1))
    assert "validation_loss" not in last.history.names()


def test_keep_best_copies():
    learned, best = torch.nn.Linear(1, 1), {}
    keep_best(best, learned, 1.0)
    kept = best["weights"]["weight"].clone()
    with torch.no_grad():
        learned.weight += 1
    keep_best(best, learned, 2.0)
    assert torch.equal(best["weights"]["weight"], kept)
    keep_best(best, learned, 0.5)
    assert torch.equal(best["weights"]["weight"], kept + 1)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_interrupt_and_resume_are_the_straight_run(tiny_gpt2, tmp_path, monkeypatch, share):
    feedback = polite_feedback(10, 0)
    step, calls = reward.clipped_step, []

    def interrupted_step(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    sizes = {"epochs": 2, "rankings_per_step": 3} if share else {"epochs": 1, "rankings_per_step": 2}
    settings = config(**sizes, evaluate_every=2, validation_share=share)
    options = {"held_out": polite_feedback(3, 1)}
    straight = train_reward_model(tiny_gpt2, feedback, settings, **options)
    options["checkpoint"] = tmp_path / "run.pt"
    with monkeypatch.context() as patch:
        patch.setattr(reward, "clipped_step", interrupted_step)
        half = train_reward_model(tiny_gpt2, feedback, settings, **options)
    assert half.interrupted
    assert half.history.rows[-1]["step"] == 3 < straight.history.rows[-1]["step"]
    rest = train_reward_model(tiny_gpt2, feedback, settings, **options)
    assert not rest.interrupted
    assert torch.equal(weights(rest.model), weights(straight.model))
    assert rest.history == straight.history
    assert (rest.model.score_mean, rest.model.score_std) == (straight.model.score_mean, straight.model.score_std)
    with pytest.raises(CheckpointError, match="feedback"):
        train_reward_model(tiny_gpt2, feedback[1:], settings, checkpoint=tmp_path / "run.pt")


def test_not_a_number_stops_the_run_and_keeps_the_last_good_state(tiny_gpt2, tmp_path):
    looks = []

    def poison(rm):
        looks.append(rm)
        if len(looks) == 2:
            rm.model.score.weight.register_hook(lambda gradient: gradient * float("nan"))
        return {}

    settings, file = config(evaluate_every=2), tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=r"gradient norm is \[nan\] at step 3"):
        train_reward_model(tiny_gpt2, RANKINGS, settings, evaluate=poison, checkpoint=file)
    rest = train_reward_model(tiny_gpt2, RANKINGS, settings, checkpoint=file)
    assert torch.equal(weights(rest.model), weights(train_reward_model(tiny_gpt2, RANKINGS, settings).model))


def test_joining_prompt_and_reply_changes_no_score(tiny_lm):
    rm = fresh(tiny_lm)
    prompts, replies = encode_prompts(tiny_lm, PROMPTS), encode_responses(tiny_lm, REPLIES)
    apart = rm.raw_scores(make_batch(prompts, replies, rm.pad_id))
    rows = [p + r for p, r in zip(prompts, replies, strict=True)]
    joined = rm.raw_scores(make_batch([row[:1] for row in rows], [row[1:] for row in rows], rm.pad_id))
    torch.testing.assert_close(joined, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("rankings_per_step", 0), ("micro_batch", 0), ("learning_rate", -1.0), ("weight_decay", -1.0),
        ("warmup", -1), ("max_grad_norm", 0.0), ("loss", "hinge"), ("max_new_tokens", 0), ("validation_share", 0.6),
        ("validation_share", -0.1), ("evaluate_every", 0), ("checkpoint_every", 0),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is "):
        RewardConfig(**{name: value})


def test_rows_of_the_field_are_taken_as_records(tiny_gpt2):
    rows = [{"prompt": f"Hi {i}", "chosen": "Thank you.", "rejected": "Go away!"} for i in range(4)]
    records = [Comparison(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    results = [train_reward_model(tiny_gpt2, given, config(epochs=1)) for given in (rows, records)]
    assert results[0].history == results[1].history
    with pytest.raises(ValueError, match="row 0, rejected: the field is missing"):
        train_reward_model(tiny_gpt2, [{"prompt": "Hi", "chosen": "Hello."}], config())


# -- replies that are cut ---------------------------------------------------------------------------------------------
def alike(count, differ):
    """Comparisons whose replies begin alike; `differ` of them differ within the first tokens."""
    same = "Thank you, thank you, thank you, "
    records = [Comparison(f"Hi {i}", f"{same}friend.", f"{same}stranger!") for i in range(count)]
    return records[differ:] + [Comparison(f"Ho {i}", "Thank you.", "Go away!") for i in range(differ)]


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce"])
def test_pairs_that_became_equal_by_the_cut_are_left_out_and_said(loss, tiny_gpt2, capsys):
    settings = config(epochs=1, max_new_tokens=6, loss=loss)
    result = train_reward_model(tiny_gpt2, alike(5, 2), settings, held_out=alike(4, 1), agreement=[0.9, 0.8, 0.7, 0.6])
    said = capsys.readouterr().out.splitlines()
    assert "6 of 10 replies were cut at max_new_tokens = 6; 3 pairs that became equal by that are left out" in said
    assert "6 of 8 replies were cut at max_new_tokens = 6; 3 pairs that became equal by that are left out" in said
    assert (result.unused, result.cut) == (3, 6)
    only = train_reward_model(tiny_gpt2, alike(2, 2), settings, held_out=alike(1, 1), agreement=[0.6])
    assert torch.equal(weights(result.model), weights(only.model))
    assert result.history == only.history


def test_a_file_of_replies_that_are_all_cut_alike_is_refused_before_training(tiny_gpt2):
    with pytest.raises(
        ValueError, match=r"3 records without a pair.*differ before they are cut \(max_new_tokens = 6\)"
    ):
        train_reward_model(tiny_gpt2, alike(3, 0), config(epochs=1, max_new_tokens=6))


def test_a_report_cuts_held_out_replies_as_training_did(tiny_gpt2):
    rm = train_reward_model(tiny_gpt2, alike(3, 2), config(epochs=1, max_new_tokens=6)).model
    long = [Comparison("Hi", "Thank you. " * 900, "Go away! " * 900), Comparison("Hi", "Thank you.", "Go away!")]
    cut = reward_model_report(rm, long, 6)
    assert len(cut.agreed) == 2
