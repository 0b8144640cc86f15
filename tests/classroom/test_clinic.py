"""The clinic of chapter 06: its healthy parts are exact, each repair passes, and each realistic mistake is named."""

import json
import re
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from rlhf_lab.classroom import clinic
from rlhf_lab.classroom.clinic import CASES, Parts, grade, grade_method
from rlhf_lab.classroom.clinic.agent import Noted, in_rows, ready_of_agent, td_errors_of_agent
from rlhf_lab.classroom.clinic.agent_checks import METHODS
from rlhf_lab.classroom.clinic.cases import SUSPECTS
from rlhf_lab.classroom.clinic.charts import plain_source
from rlhf_lab.classroom.clinic.exercises import WHITEN_FAULTS
from rlhf_lab.classroom.clinic.faults import full_buffer_is_an_end, judge_by_length
from rlhf_lab.classroom.clinic.oracles import gradient_oracle
from rlhf_lab.classroom.clinic.parts import GROUP, clipped, forward, policy_over_reference, prepare, ratio_to_sampler
from rlhf_lab.classroom.clinic.songs import sample
from rlhf_lab.experience import invariants
from rlhf_lab.experience.episodes import Runner, make_envs
from rlhf_lab.maths import objectives
from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.maths.returns import gae, leave_one_out_advantages
from rlhf_lab.maths.tensors import length_mask, masked_mean, masked_sum, masked_whiten
from rlhf_lab.worlds.envs import KINDS, DialogueEnv


# -- the oracle is right -----------------------------------------------------------------------------------------------
def objective(logits):
    """Expected score - KL_COEF KL of both prompts, from the laws alone."""
    world = clinic.world()
    law, ref_law = world.law(logits), world.law(clinic.reference_logits())
    return (world.expected_reward(law) - clinic.KL_COEF * world.kl(law, ref_law)).sum()


def test_the_truth_is_the_derivative_of_the_objective():
    logits = clinic.probe_logits().clone().requires_grad_(True)
    slope = torch.autograd.grad(objective(logits), logits)[0]
    without_bonus = clinic.used_gradient(Parts(bonus=lambda rows: torch.zeros(rows.shape[:2]).double()))
    torch.testing.assert_close(without_bonus[..., :-1], slope, rtol=0, atol=1e-12)
    assert (without_bonus[..., -1] == 0).all()


def test_the_healthy_step_is_the_truth():
    torch.testing.assert_close(gradient_oracle(Parts()), gradient_oracle(None), rtol=0, atol=1e-12)


def test_exact_values_are_those_of_the_world_where_there_is_no_leash():
    law = clinic.world().law(clinic.reference_logits())
    values = clinic.world().values(law)
    replies, weights = clinic.every_reply(clinic.reference_logits())
    first = (weights * replies.scores).view(2, -1).sum(1)
    torch.testing.assert_close(values[:, 0], first)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_exact_values_are_those_of_the_law_that_samples(temperature):
    """At the first prefix: expected score and leash, both from the laws of whole songs."""
    world, logits = clinic.world(), clinic.probe_logits() / temperature
    law, ref_law = world.law(logits), world.law(clinic.reference_logits())
    first = world.expected_reward(law) - clinic.KL_COEF * world.kl(law, ref_law)
    torch.testing.assert_close(clinic.exact_values(logits)[:, 0], first, rtol=0, atol=1e-12)


def test_the_step_of_patient_i_has_its_angle():
    truth = gradient_oracle(None)
    assert clinic.cosine(clinic.used_gradient(CASES["I"].parts()), truth) == pytest.approx(0.7163, abs=1e-4)


def test_healthy_parts_are_the_library():
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    ours = clipped(ratio_to_sampler(new, old), advantages)
    torch.testing.assert_close(ours, objectives.clipped_surrogate_objective(new, old, advantages, clinic.CLIP))
    torch.testing.assert_close(policy_over_reference(new, old), kl_k1(new, old))


@pytest.mark.parametrize("name", CASES)
def test_every_fault_changes_what_its_oracle_sees(name):
    case = CASES[name]
    assert not torch.allclose(case.oracle(case.parts()), case.oracle(None), atol=1e-6)


def test_suspects_and_cases_fit_together():
    assert sorted(case.suspect for case in CASES.values()) == sorted(SUSPECTS)
    for case in CASES.values():
        assert case.part in case.faults or case.suspect == "KL in the loss"


def test_no_suspect_shares_a_word_with_a_live_check():
    """A check that bears the name of a suspect would answer for the reader."""
    named = {name.removeprefix("check_") for name in invariants.__all__ if name.startswith("check_")}
    words = {"score", "scores"} | {word for name in named | {"sampled_law", "kl_sum", "data"} for word in [name]}
    for suspect in SUSPECTS:
        assert not words & set(suspect.lower().split()), suspect


def test_a_full_buffer_ends_every_fragment():
    discounts = full_buffer_is_an_end(torch.ones(1, 5, dtype=torch.bool), torch.tensor([True]))
    assert discounts.tolist() == [[1, 0, 1, 0, 0]]


# -- repairs and mistakes ----------------------------------------------------------------------------------------------
def first_end(tokens, lengths):
    """A mask that finds the first end token by counting."""
    before = (tokens == 0).long().cumsum(1) - (tokens == 0).long()
    return before == 0


def score_by_index(scores, penalty, mask):
    rewards = penalty.clone()
    rewards[torch.arange(len(rewards)), mask.sum(1) - 1] += scores
    return rewards


def by_hand(rewards, values, discounts, mask):
    with torch.no_grad():
        return gae(rewards, values, discounts, mask, clinic.LAM)


def put_back(judge, lengths):
    order = lengths.argsort()
    scores = torch.zeros(len(lengths)).double()
    scores[order] = torch.cat([judge(rows) for rows in order.split(5)])
    return scores


OTHERS = {
    "normalised logits score as well": ("Q", lambda rows: rows.log_softmax(-1)),
    "scored again, by the policy that sampled": ("R", lambda sampled, rescored, earlier: rescored),
    "a copy of the reference": ("S", lambda first, earlier: first.clone()),
    "normalised logits sample as well": ("T", lambda logits: logits.log_softmax(-1)),
    "judged by length and put back": ("U", put_back),
    "judged by length and put back by a second sort": (
        "U",
        lambda judge, lengths: judge_by_length(judge, lengths)[lengths.argsort(stable=True).argsort()],
    ),
    "a pass without dropout": ("V", lambda logits, generator: torch.nn.functional.dropout(logits, 0.1, training=False)),
    "mask by counting": ("A", first_end),
    "score by index": ("B", score_by_index),
    "score by index, again": ("C", score_by_index),
    "no gradient block": ("H", by_hand),
    "advantages at another lambda are as right in the mean": ("H", lambda r, v, d, m: gae(r, v, d, m, 1.0)),
    "ratio of probabilities": ("K", lambda new, old: new.exp() / old.exp()),
    "others' mean, written out": ("O", lambda x: x - (x.sum(1, keepdim=True) - x) / (x.shape[1] - 1)),
    "float32": ("B", lambda scores, penalty, mask: score_by_index(scores.float(), penalty.float(), mask)),
    "float32 advantages": ("E", lambda r, v, d, m: by_hand(r.float(), v.float(), d.float(), m)),
    "float32 advantages, again": ("H", lambda r, v, d, m: by_hand(r.float(), v.float(), d.float(), m)),
    "one sum": ("P", lambda loss, mask: masked_sum(loss, mask) / mask.sum()),
    "a sum of micro-batches over one count": (
        "P",
        lambda loss, mask: sum(
            masked_mean(loss[rows], mask[rows], count=mask.sum()) for rows in torch.arange(len(mask)).split(8)
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_cure_passes(name, capsys):
    grade(name, CASES[name].cure)
    assert "repaired" in capsys.readouterr().out


@pytest.mark.parametrize("case", OTHERS)
def test_other_right_repairs_pass(case, capsys):
    grade(*OTHERS[case])
    assert "repaired" in capsys.readouterr().out


def penalty_overwritten(scores, penalty, mask):
    penalty[torch.arange(len(penalty)), mask.sum(1) - 1] += scores
    return penalty


def rewards_overwritten(rewards, values, discounts, mask):
    return rewards.copy_(by_hand(rewards, values, discounts, mask))


IN_PLACE = {
    "B": penalty_overwritten,
    "E": rewards_overwritten,
    "H": rewards_overwritten,
    "I": lambda logits: logits.sub_(logits.max()),
    "K": lambda new, old: (new + old.neg_()).exp(),
    "M": lambda log_ratio: log_ratio.mul_(-clinic.KL_COEF),
    "P": lambda loss, mask: masked_mean(loss.mul_(mask), mask),
    "Q": lambda rows: rows.sub_(1.0),
    "S": lambda first, earlier: first.add_(0.0 * earlier).sub_(1.0),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_repair_leaves_its_arguments_alone(name):
    before = clinic.probe_logits().clone()
    with pytest.raises(AssertionError, match="changed in place"):
        grade(name, IN_PLACE[name])
    assert torch.equal(clinic.probe_logits(), before)
    grade(name, CASES[name].cure)


def test_a_group_may_have_any_size():
    with pytest.raises(AssertionError, match="patient O"):
        grade("O", lambda x: x - (x.sum(1, keepdim=True) - x) / (GROUP - 1))


WRONG = [(name, cause) for name, case in CASES.items() for cause in case.mistakes]


@pytest.mark.parametrize(("name", "cause"), WRONG)
def test_mistake_fails_and_is_named(name, cause):
    with pytest.raises(AssertionError) as caught:
        grade(name, CASES[name].mistakes[cause])
    assert cause in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_the_fault_itself_and_nothing_fail(name):
    case = CASES[name]
    if case.part in case.faults:
        with pytest.raises(AssertionError, match="usual cause"):
            grade(name, case.faults[case.part])
    with pytest.raises(AssertionError, match="is there a `return`"):
        grade(name, lambda *inputs: None)


def test_slips_are_explained():
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        grade("K", lambda new, old: 1 / 0)
    with pytest.raises(AssertionError, match="lengths"):
        grade("A", lambda tokens, lengths: length_mask(lengths, 3))

    def not_started(*inputs):
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        grade("A", not_started)
    with pytest.raises(ValueError, match="is no suspect"):
        clinic.diagnose({"A": "gremlins"})


def test_diagnosis_counts_and_a_guess_may_be_missing(capsys):
    clinic.diagnose({"A": "pad is end", "B": "uphill", "C": ""})
    said = capsys.readouterr().out
    assert "1 of 2 guesses are right; 1 still to make" in said
    assert "you said uphill" in said
    assert "no guess yet" in said


# -- what is shown -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("names", ["ABCD", "EFGH", "IJKL", "MNOP", "QRSTUV"])
def test_code_is_shown_unmarked(names, capsys):
    clinic.show_code(names)
    said = capsys.readouterr().out
    assert not [fault.__name__ for name in names for fault in CASES[name].faults.values() if fault.__name__ in said]
    assert "#" not in said
    assert "Tensor" not in said
    for name in names:
        for part, fault in CASES[name].faults.items():
            assert plain_source(fault, part).replace("\n", "\n  ") in said


def test_alarms_and_answers_wait_behind_a_click(capsys):
    folded = clinic.charts.Folded("title < 2", "text & more")
    assert folded._repr_html_() == "<details><summary>title &lt; 2</summary><pre>text &amp; more</pre></details>"
    clinic.show_alarms("A")
    assert re.search(r"mask, \d+ times; first: mask: got 3 tokens", capsys.readouterr().out)


def test_a_small_picture_is_the_figure_in_few_colours():
    pixels = np.random.default_rng(0).integers(0, 4, (20, 30, 1), dtype=np.uint8) * np.uint8([60, 20, 5])
    back = plt.imread(BytesIO(clinic.charts.palette_png(pixels)), format="png")[..., :3]
    assert np.array_equal((255 * back).round(), pixels)
    many = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)  # 256 greys on 64
    back = plt.imread(BytesIO(clinic.charts.palette_png(many)), format="png")[..., :3]
    assert len(np.unique(back)) == 64


def test_a_picture_has_its_words():
    figure, _ = plt.subplots()
    data, metadata = clinic.charts.Picture(figure, "what there is to see")._repr_mimebundle_()
    assert metadata == {"image/png": {"alt": "what there is to see"}}
    assert sorted(data) == ["image/png", "text/plain"]
    plt.close(figure)


def test_a_visit_shows_six_panels_with_a_legend_and_words(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(clinic.charts, "show_small", lambda alt, figure: shown.append((alt, figure)))
    clinic.visit("K")
    alt, figure = shown[0]
    assert "Patient K" in alt
    assert all(f"{title}:" in alt for title, _ in clinic.charts.VITALS.values())
    assert len(figure.axes) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["healthy twin, same seed", "patient K"]
    assert "patient K sings" in capsys.readouterr().out


# -- runs --------------------------------------------------------------------------------------------------------------
def test_a_run_is_reproducible_and_logs_its_vital_signs():
    one, other = (clinic.train(Parts(), seed=3, iterations=3) for _ in range(2))
    assert one.history == other.history
    assert torch.equal(one.logits, other.logits)
    assert one.fired == {}
    assert len(one.samples) == 6


def test_a_step_holds_what_a_live_check_needs():
    """The derivative of the policy's loss by log-probs and logits; and a second pass through the reference."""
    logits = clinic.probe_logits().clone().requires_grad_(True)
    table = torch.zeros(logits.shape[:2]).double()
    replies = sample(logits, 8, torch.Generator().manual_seed(0))
    data = prepare(Parts(), replies, logits, table)
    step = forward(Parts(), replies, data, logits)
    slope, by_logit = torch.autograd.grad(step.policy_loss, (step.log_probs, step.rows), retain_graph=True)
    torch.testing.assert_close(slope, -data.advantages * data.mask / data.mask.sum())  # the ratio is 1
    step.policy_loss.backward()
    gathered = torch.zeros_like(logits).index_put(
        (replies.prompts[:, None].expand_as(data.mask), replies.prefixes), by_logit * data.mask[..., None], True
    )
    torch.testing.assert_close(gathered, logits.grad)
    torch.testing.assert_close(data.ask_reference(replies), data.ref_log_probs)
    torch.testing.assert_close(data.rescored, replies.log_probs)


def test_dropout_answers_anew_and_a_follower_otherwise():
    logits, table = clinic.probe_logits(), torch.zeros(2, 121).double()
    replies = sample(logits, 8, torch.Generator().manual_seed(0))
    for name, still in (("V", False), ("S", True)):
        data = prepare(CASES[name].parts(), replies, logits, table, clinic.probe_logits())
        assert torch.equal(data.ask_reference(replies), data.ref_log_probs) == still
    assert torch.equal(data.ref_log_probs, data.rescored)  # S has become the policy


NAMED = {"0": "surrogate", "A": "mask", "B": "score_counted_once", "C": "score_place", "D": "discounts"}
NAMED |= {
    "E": "advantages",
    "F": "discounts",
    "G": "advantages",
    "H": "data",
    "I": "sampled_law",
    "J": "sampled_law",
    "K": "ratio",
    "L": "bonus",
}
NAMED |= {"M": "leash", "N": "leash", "O": "advantages", "P": "surrogate", "Q": "rescored", "R": "ratio"}
NAMED |= {"S": "reference_still", "T": "sampled_law", "U": "scores", "V": "reference_still"}


@pytest.mark.parametrize("name", CASES)
def test_the_live_check_that_was_named_fires_and_no_other_where_it_is_healthy(name):
    """All but sampled_law and kl_sum are exact; these two err in a run with a probability of at most 0.001."""
    case = CASES[name]
    assert NAMED[name] in clinic.train(case.parts(), iterations=4).fired
    assert clinic.train(case.parts(case.cure), iterations=4).fired == {}


# -- the dialogue agent ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", METHODS)
def test_healthy_method_passes(name, capsys):
    method = METHODS[name].healthy
    grade_method(named(name, method))
    assert "repaired" in capsys.readouterr().out


def named(name, function):
    def method(*inputs):
        return function(*inputs)

    method.__name__ = name
    return method


@pytest.mark.parametrize(("name", "cause"), [(name, cause) for name, m in METHODS.items() for cause in m.mistakes])
def test_wrong_method_fails_and_is_named(name, cause):
    with pytest.raises(AssertionError) as caught:
        grade_method(named(name, METHODS[name].mistakes[cause]))
    assert cause in str(caught.value), str(caught.value)


@pytest.mark.parametrize(("name", "other"), [(name, other) for name, m in METHODS.items() for other in m.others])
def test_other_right_methods_pass(name, other, capsys):
    grade_method(named(name, other))
    assert "repaired" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["td_errors", "accumulate", "values", "value_loss", "ratio", "ready"])
def test_methods_may_work_in_double(name):
    grade_method(named(name, lambda *inputs: METHODS[name].healthy(*inputs).double()))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("td_errors", lambda self, r, v, d: r.add_(d * v[:, 1:] - v[:, :-1])),
        ("ratio", lambda self, new, old: (new + old.neg_()).exp()),
        ("ready", lambda self, advantages, targets, values, mask: masked_whiten(advantages.add_(1), mask)),
    ],
)
def test_methods_leave_their_arguments_alone(name, method):
    with pytest.raises(AssertionError, match="changed in place"):
        grade_method(named(name, method))


def test_a_method_of_another_name_is_refused():
    with pytest.raises(KeyError, match="no method that is graded"):
        grade_method(lambda self: None)


def test_repairs_change_the_methods_they_name():
    agent = clinic.with_repairs("next value", "data")
    assert agent.td_errors is td_errors_of_agent
    assert agent.ready is ready_of_agent
    assert agent.ratio is clinic.TutorialPPO.ratio
    assert agent.accumulate is clinic.TutorialPPO.accumulate


def test_repaired_agent_scores_the_law_that_acts():
    for agent_class, same in ((clinic.TutorialPPO, False), (clinic.with_repairs("one state"), True)):
        agent = agent_class(vocabulary=9, actions=3)
        seen = torch.tensor([[3, 5, 0], [4, 0, 0]])
        for _ in range(2):
            agent.act(seen)
        acting, _ = agent.acting_law(seen, agent.state)
        assert torch.allclose(acting.logits, agent.policy(seen).logits, atol=1e-6) == same


def test_ready_meets_junk_at_padding():
    with pytest.raises(AssertionError, match="NaN here, was counted"):
        grade_method(named("ready", lambda self, a, t, v, m: (a - (a * m).sum() / m.sum()) * m))


@pytest.mark.parametrize(("repairs", "apart"), [(("one state",), False), ((), True)])
def test_log_probs_are_kept_from_acting(repairs, apart):
    """In the rows of the episodes; and not the same as scored again where the state is carried on."""
    env = {"timing": "delayed", "turns": 2}
    envs = [Noted(made) for made in make_envs(lambda: DialogueEnv(**env), 3, seed=0)]
    agent = clinic.with_repairs(*repairs)(DialogueEnv(**env).vocabulary, len(KINDS))
    runner, seen = Runner(envs), 0
    for _ in range(3):
        episodes = runner.collect(agent.act, 4, 1.0)
        kept = in_rows(agent.said, [made.over for made in envs])
        rescored = episodes.log_probs(agent.policy).detach()
        assert kept.shape == episodes.mask.shape
        assert torch.equal(kept != 0, episodes.mask)
        seen += not torch.allclose(kept, rescored, atol=1e-6)
        agent.said.clear()
        for made in envs:
            made.over.clear()
    assert bool(seen) == apart


def test_advantages_are_data_and_computed_once_for_all_epochs():
    calls = []

    def counted(self, errors, discounts):
        calls.append(errors.requires_grad)
        return healthy(self, errors, discounts)

    repairs = clinic.with_repairs(*clinic.REPAIRS)
    healthy = repairs.accumulate
    clinic.train_agent(
        clinic.repaired(repairs, accumulate=counted), iterations=2, environments=8, steps=4, turns=2, visitors=1
    )
    assert calls == [False, False]


def test_a_short_training_runs():
    training = clinic.train_agent(clinic.with_repairs(*clinic.REPAIRS), iterations=1, environments=2, steps=4, turns=2)
    assert 0 <= training.share <= 1
    assert training.history.column("entropy")[0].tolist() == [8]


# -- the other exercises -----------------------------------------------------------------------------------------------
def real(x, mask):
    return ((x[mask] - x[mask].mean()) / (x[mask].var() + 1e-8).sqrt()).float()


EXERCISES = {
    "whiten": (clinic.check_whiten, masked_whiten),
    "whiten in float32": (clinic.check_whiten, lambda x, mask: masked_whiten(x.float(), mask)),
    "whiten by scatter": (
        clinic.check_whiten,
        lambda x, mask: torch.zeros(x.shape).masked_scatter(mask, real(x, mask)),
    ),
    "clip, tensors": (
        clinic.check_clip_is_alive,
        lambda fractions, kls: (torch.tensor(fractions) > 0).any() | ~(torch.tensor(kls) > 0.01).any(),
    ),
    "clip": (
        clinic.check_clip_is_alive,
        lambda fractions, kls: sum(fractions) > 0 or not any(kl > 0.01 for kl in kls),
    ),
}
WHITEN = {cause: (clinic.check_whiten, fault, cause) for cause, fault in WHITEN_FAULTS.items()}
CLIP = {
    "mean": (lambda c, k: max(c, default=0) > 0 or sum(k) / max(len(k), 1) <= 0.01, "the mean is small"),
    "sum": (lambda c, k: max(c, default=0) > 0 or sum(k) <= 0.01, "the sum grows"),
    "at the threshold": (lambda c, k: max(c, default=0) > 0 or max(k, default=0) < 0.01, "0.01 itself is none"),
    "threshold 0.02": (lambda c, k: max(c, default=0) > 0 or max(k, default=0) <= 0.02, "moved and never clipped"),
    "rarely clipped": (lambda c, k: max(c, default=0) > 0.01 or max(k, default=0) <= 0.01, "moved and rarely clipped"),
    "same iteration": (
        lambda c, k: not any(x == 0 and y > 0.01 for x, y in zip(c, k, strict=True)),
        "need not hold in one iteration",
    ),
    "lists emptied": (lambda c, k: (max(c, default=0) > 0 or max(k, default=0) <= 0.01, c.clear())[0], "in place"),
    "text": (lambda c, k: "True", "not True or False"),
    "inverted": (lambda c, k: max(c, default=0) == 0 and max(k, default=0) > 0.01, "the wrong way round"),
    "standing still": (lambda c, k: max(c, default=0) > 0, "no alarm"),
    "all": (lambda c, k: all(x > 0 for x in c) or max(k, default=0) <= 0.01, "a single clipped iteration"),
    "last": (lambda c, k: not c or c[-1] > 0 or k[-1] <= 0.01, "only the last"),
    "first": (lambda c, k: not c or c[0] > 0 or k[0] <= 0.01, "only the first"),
    "nothing": (lambda c, k: None, "is there a `return`"),
    "raises": (lambda c, k: max(c) > 0, "ValueError"),
    "constant": (lambda c, k: True, "max\\(step_kls\\)"),
}
WHITEN |= {
    "overwritten": (clinic.check_whiten, lambda x, m: masked_whiten(x.masked_fill_(~m, 0), m), "changed in place"),
    "list": (clinic.check_whiten, lambda x, m: masked_whiten(x, m).tolist(), "not a tensor"),
    "nothing returned": (clinic.check_whiten, lambda x, m: None, "is there a `return`"),
    "times the mask": (
        clinic.check_whiten,
        lambda x, m: (x - x[m].mean()) / (x[m].var() + 1e-8).sqrt() * m,
        "NaN times 0",
    ),
}
SLIPS = WHITEN | {name: (clinic.check_clip_is_alive, *rest) for name, rest in CLIP.items()}


@pytest.mark.parametrize("name", EXERCISES)
def test_solution_passes(name, capsys):
    check, solution = EXERCISES[name]
    check(solution)
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize("name", SLIPS)
def test_slip_fails_and_is_named(name):
    check, function, message = SLIPS[name]
    with pytest.raises(AssertionError, match=message if name in CLIP else None) as caught:
        check(function)
    assert name in CLIP or message in str(caught.value), str(caught.value)


def test_leave_one_out_is_the_cure_of_the_group():
    assert CASES["O"].cure is leave_one_out_advantages


# -- the names ---------------------------------------------------------------------------------------------------------
def test_the_chapter_finds_its_names_in_the_clinic():
    chapter = Path(__file__).parents[2] / "notebooks" / "06_bug_clinic.ipynb"
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    used = {name for cell in cells for name in re.findall(r"\bclinic\.(\w+)", "".join(cell["source"]))}
    assert "grade" in used
    assert used <= set(clinic.__all__) <= set(dir(clinic))
