"""The clinic of chapter 06: its healthy parts are exact, each repair passes, and each realistic mistake is named."""

import json
import re
from pathlib import Path

import pytest
import torch

from rlhf_lab.classroom import clinic
from rlhf_lab.classroom.clinic import CASES, Parts, grade, grade_method
from rlhf_lab.classroom.clinic.agent import ready_of_agent, td_errors_of_agent
from rlhf_lab.classroom.clinic.agent_checks import METHODS
from rlhf_lab.classroom.clinic.cases import SUSPECTS
from rlhf_lab.classroom.clinic.exercises import WHITEN_FAULTS
from rlhf_lab.classroom.clinic.oracles import gradient_oracle
from rlhf_lab.classroom.clinic.parts import GROUP, clipped, ratio_to_sampler
from rlhf_lab.maths import objectives
from rlhf_lab.maths.returns import gae, leave_one_out_advantages
from rlhf_lab.maths.tensors import length_mask, masked_mean, masked_sum, masked_whiten


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


def test_healthy_parts_are_the_library():
    generator = torch.Generator().manual_seed(0)
    new, old, advantages = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    ours = clipped(ratio_to_sampler(new, old), advantages)
    torch.testing.assert_close(ours, objectives.clipped_surrogate_objective(new, old, advantages, clinic.CLIP))


@pytest.mark.parametrize("name", CASES)
def test_every_fault_changes_what_its_oracle_sees(name):
    case = CASES[name]
    assert not torch.allclose(case.oracle(case.parts()), case.oracle(None), atol=1e-6)


def test_suspects_and_cases_fit_together():
    assert sorted(case.suspect for case in CASES.values()) == sorted(SUSPECTS)
    for case in CASES.values():
        assert case.part in case.faults or case.suspect == "k1 in loss"


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


OTHERS = {
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


def test_diagnosis_counts(capsys):
    assert clinic.diagnose({"A": "mask", "B": "sign"}) == 1
    assert "you said sign" in capsys.readouterr().out


# -- runs --------------------------------------------------------------------------------------------------------------
def test_a_run_is_reproducible_and_logs_its_vital_signs():
    one, other = (clinic.train(Parts(), seed=3, iterations=3) for _ in range(2))
    assert one.history == other.history
    assert torch.equal(one.logits, other.logits)
    assert one.fired == {}
    assert len(one.samples) == 6


FIRED = {
    "mask": ("A", {"mask", "score_counted_once"}),
    "everywhere": ("B", {"score_counted_once"}),
    "capped": ("D", {"score_counted_once"}),
    "live": ("H", {"data"}),
    "temperature": ("I", {"first_minibatch"}),
    "early": ("C", set()),
    "ratio": ("K", set()),
}


@pytest.mark.parametrize("case", FIRED)
def test_live_checks(case):
    name, expected = FIRED[case]
    assert set(clinic.train(CASES[name].parts(), iterations=3).fired) == expected


def test_kept_log_probs_would_have_caught_the_top_k():
    parts = Parts(sampling=clinic.only_the_top_two)
    assert set(clinic.train(parts, iterations=1).fired) == {"first_minibatch"}


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


@pytest.mark.parametrize("name", ["td_errors", "accumulate", "values", "value_loss", "ratio", "ready"])
def test_methods_may_work_in_double(name):
    grade_method(named(name, lambda *inputs: METHODS[name].healthy(*inputs).double()))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("td_errors", lambda self, r, v, d: r.add_(d * v[:, 1:] - v[:, :-1])),
        ("ratio", lambda self, new, old: (new + old.neg_()).exp()),
        ("ready", lambda self, a, m: masked_whiten(a.detach().mul_(m), m)),
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
