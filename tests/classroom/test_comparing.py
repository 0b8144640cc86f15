"""What a failed check says: where the answers differ, whose traceback it is, and nothing of the check's own code."""

import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlhf_lab.classroom.checks.comparing import compare, exercise, odd_tensors, same_tensors, spoil
from rlhf_lab.classroom.checks.decisions import check_discounted_return
from rlhf_lab.classroom.checks.policy_gradient import check_reward_to_go
from rlhf_lab.classroom.checks.values import check_q_update
from rlhf_lab.classroom.checks.whole_story import check_agreement
from rlhf_lab.maths.tensors import length_mask


@exercise
def check_double(function):
    """Check `double(x)`."""
    secret = 2.0 * torch.arange(30.0)
    faults = {"tripled": lambda: 3.0 * torch.arange(30.0)}
    compare("double", "0 to 29", function, secret, faults, "twice x", same=same_tensors, inputs=(torch.arange(30.0),))


def said(function):
    with pytest.raises(AssertionError) as caught:
        check_double(function)
    return str(caught.value), "".join(traceback.format_exception(caught.value))


def test_a_known_mistake_is_named_and_an_unknown_one_gets_what_is_asked():
    assert said(lambda x: 3 * x)[0].endswith("usual cause: tripled")
    assert said(lambda x: 5 * x)[0].endswith("what is asked: twice x")


def test_the_entries_around_the_first_difference_are_shown():
    message, _ = said(lambda x: torch.where(x == 20, 7.0, 2 * x))
    assert "got       [24.0, 26.0, 28.0, 30.0, 32.0, 34.0, 36.0, 38.0, 7.0," in message
    assert "(entries 12 to 23) of shape [30]" in message
    last, _ = said(lambda x: torch.where(x == 29, torch.nan, 2 * x))
    assert "[48.0, 50.0, 52.0, 54.0, 56.0, nan] (entries 24 to 29)" in last


def test_a_function_that_raises_keeps_its_traceback():
    def typo(x):
        return torch.dobule(x)

    message, trace = said(typo)
    assert "AttributeError" in message
    assert message.endswith("what happened: your function raised this; the traceback above names the line")
    assert "torch.dobule(x)" in trace
    message, _ = said(lambda x: x @ torch.ones(3))
    assert "RuntimeError" in message
    assert "what is asked: twice x" in message


@pytest.mark.parametrize("wrong", [lambda x: 5 * x, lambda x: x[99], lambda x: x.mul_(2)])
def test_the_code_of_the_check_is_not_shown(wrong):
    assert "secret" not in said(wrong)[1]


def test_what_was_not_begun_says_so():
    def double(x):
        raise NotImplementedError("write double first")

    with pytest.raises(NotImplementedError, match="write double first"):
        check_double(double)


def shown_by_a_notebook(function):
    """What IPython prints for the error of a check."""
    from IPython.core.interactiveshell import InteractiveShell

    with pytest.raises(NotImplementedError) as caught:
        check_double(function)
    shown = []
    shell = SimpleNamespace(
        _get_exc_info=lambda *_: (caught.type, caught.value, caught.tb),
        _showtraceback=lambda kind, value, lines: shown.extend(lines),
        InteractiveTB=SimpleNamespace(structured_traceback=lambda *_, **__: ["a traceback", "of frames"]),
        call_pdb=False,
    )
    InteractiveShell.showtraceback(shell)
    return shown


def test_what_was_not_begun_gets_one_line_and_no_traceback():
    """The name is that of the function that is missing, which the one under test may call."""

    def helper(x):
        raise NotImplementedError("your code here")

    lines = ["not attempted yet: write the body of helper (your code here), then run this cell again"]
    assert shown_by_a_notebook(helper) == lines
    assert shown_by_a_notebook(lambda x: 2 * helper(x)) == lines


def test_what_a_library_lacks_is_an_error_of_the_answer():
    message, trace = said(lambda x: torch.nn.Module()(x))
    assert "NotImplementedError: Module [Module] is missing" in message
    assert "traceback above" in message
    assert "torch.nn.Module()(x)" in trace
    assert "NotImplementedError" in said(lambda x: torch.empty(1, device="meta").cpu())[0]


# -- of several mistakes, the one that explains every case ----------------------------------------------------------
@exercise
def check_square(function):
    """Check `square(x)`: at 2 both mistakes give 5, and 3 tells them apart."""
    for x in (2.0, 3.0):
        faults = {"doubled": lambda x=x: 2 * x + 1, "one more": lambda x=x: x * x + 1}
        compare("square", f"x = {x}", function, x * x, faults, "x times x", same=same_tensors, inputs=(x,))
    print("square: passed")


@pytest.mark.parametrize(("mistake", "cause"), [(lambda x: 2 * x + 1, "doubled"), (lambda x: x * x + 1, "one more")])
def test_the_cause_is_the_one_that_explains_the_other_cases_too(mistake, cause, capsys):
    with pytest.raises(AssertionError) as caught:
        check_square(mistake)
    assert str(caught.value).startswith("square, x = 2.0:")
    assert str(caught.value).endswith(f"usual cause: {cause}")
    assert "passed" not in capsys.readouterr().out


def test_mistakes_that_no_case_tells_apart_are_both_named():
    same_twice = {"this": lambda: 1.0, "that": lambda: 1.0}
    check = exercise(lambda f: compare("one", "x = 0", f, 0.0, same_twice, "0", same=same_tensors, inputs=(0.0,)))
    with pytest.raises(AssertionError, match="usual cause: this\n  or           that"):
        check(lambda x: 1.0)


def the_first_wins(scores, pairs):
    return sum(scores[b] > scores[w] for b, w in pairs) / len(pairs)


def short_sighted(q, s, a, r, s_next, terminated, rate, gamma):
    new = q.clone()
    new[s, a] += rate * (r - q[s, a])
    return new


@pytest.mark.parametrize(
    ("check", "mistake", "cause"),
    [
        (check_agreement, the_first_wins, "equal scores count as wrong (>); they count half"),
        (check_q_update, short_sighted, "the next state's value is missing: it is the reward alone"),
    ],
)
def test_one_cause_is_named_and_the_right_one(check, mistake, cause):
    with pytest.raises(AssertionError) as caught:
        check(mistake)
    assert str(caught.value).endswith(f"usual cause: {cause}")


# -- what is asked at the edges -------------------------------------------------------------------------------------
def test_gamma_zero_is_announced_and_a_division_by_it_is_named():
    def by_cumsum(rewards, gamma, mask):
        weights = gamma ** torch.arange(rewards.shape[1])
        paid = torch.where(mask, rewards, 0.0) * weights
        return torch.where(mask, paid.flip(1).cumsum(1).flip(1) / weights, 0.0)

    with pytest.raises(AssertionError, match=r"gamma 0.0, junk at padding(.|\n)*a division by it gives NaN") as caught:
        check_reward_to_go(by_cumsum)
    assert "usual cause: gamma is 0 here" in str(caught.value)


def test_one_gamma_too_many_is_named():
    late = lambda rewards, gamma: sum(gamma ** (t + 1) * r for t, r in enumerate(rewards))  # noqa: E731
    with pytest.raises(AssertionError, match=r"this is gamma\^\(t\+1\); the first reward has t = 0"):
        check_discounted_return(late)


@pytest.mark.parametrize(
    ("got", "said"),
    [
        (None, "it returned None; is there a `return`?"),
        ("x", "it returned str and not a tensor"),
        (np.array(["x"]), "it returned ndarray and not a tensor"),
        (np.ones(2), None),
        (torch.ones(2).int(), None),
    ],
)
def test_what_is_no_tensor_is_named_by_its_kind(got, said):
    assert odd_tensors(got, torch.ones(2)) == said


def test_numbers_of_any_kind_are_compared_within_a_stated_tolerance():
    for two in (2, 2.0, np.float32(2), np.int64(2), np.array(2), torch.tensor(2), torch.tensor(2.0)):
        assert same_tensors(two, 2.0)
    assert same_tensors(np.float32(2 / 3), 2 / 3)
    assert same_tensors(np.array([2, 2]), torch.full((2,), 2.0))
    assert not same_tensors(2.0001, 2.0)
    assert not same_tensors([2.0], torch.tensor([2.0]))
    assert not same_tensors(torch.tensor([2.0]), 2.0)


# -- padding --------------------------------------------------------------------------------------------------------
@exercise
def check_total(function):
    x, mask = torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.5, 0.5]]), length_mask(torch.tensor([2, 1]), 3)
    inputs, spoiled = (x, mask), (*spoil(mask, x), mask)
    compare("total", "two rows", function, 6.0, {}, "the sum", same=same_tensors, inputs=inputs, spoiled=spoiled)


@pytest.mark.parametrize("right", [lambda x, m: x[m].sum(), lambda x, m: torch.where(m, x, 0).sum()])
def test_padding_that_never_counts_may_hold_anything(right):
    check_total(right)


def test_a_product_with_the_mask_gets_the_reason():
    with pytest.raises(AssertionError, match="two rows, now with NaN and infinity at padding") as caught:
        check_total(lambda x, m: (x * m).sum())
    assert "x * mask keeps, since NaN * 0 is NaN; leave it out with torch.where(mask, x, 0.0)" in str(caught.value)


def test_spoiling_keeps_the_bootstrap_and_the_gradient():
    mask = length_mask(torch.tensor([2, 1]), 3)
    values, live = spoil(mask, torch.zeros(2, 4), torch.zeros(2, 3, requires_grad=True))
    assert values.isfinite().tolist() == [[True, True, True, False], [True, True, False, False]]
    assert live.requires_grad
    assert live.isfinite().equal(mask)
    assert live.isnan().any()
    assert live.isinf().any()
