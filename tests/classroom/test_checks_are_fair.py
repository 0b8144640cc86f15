"""Every check of an exercise is fair: it takes the chapter's own solution in any precision and form of number.

The solutions are those of the notebooks, so an exercise that is added there is swept too: a cell with a solution that
ends in `check_...(name)`. The other tests go the other way: wrong answers that look right are refused, and no mistake
is named that the reader did not make.
"""

import __future__

import ast
import importlib
import inspect
import json
import math
import pkgutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_lab.classroom import checks, clinic
from rlhf_lab.classroom.checks.comparing import NotAttempted, exercise
from rlhf_lab.maths.intervals import proportion_interval

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
DIFFERENTIATED = {"check_reinforce_loss", "check_clipped_surrogate", "check_value_loss", "check_kl_loss"}
DIFFERENTIATED |= {"check_dpo_pair_loss", "check_sequence_leash"}
KNOWN = DIFFERENTIATED | {
    "check_best_of_n_law check_leave_one_out check_group_relative check_cost_to_go check_pass_at_k",
    "check_pairs_of_ranking check_agreement check_win_rate",
    "check_discounted_return check_effective_horizon check_bellman_backup check_greedy_policy check_shaped_rewards",
    "check_score_function check_reward_to_go check_optimal_baseline check_importance_weights",
    "check_q_update check_epsilon_greedy check_double_target check_soft_value",
    "check_td_errors check_gae check_n_step_advantage check_value_targets",
    "check_gauges check_performance_difference check_whiten check_clip_is_alive",
    "check_optimal_law check_token_rewards check_over_refusal",
    "check_ceilings check_ranking_differences check_bt_loss check_bt_step check_train_bt",
    "check_outcomes check_score_interval check_paired check_step_down check_evaluation",
    "check_embed check_attention check_self_attention check_block check_transformer check_cached_step",
    "check_sampling_law check_sample check_left_padded check_reply_loss",
}
NAMES = sorted(" ".join(KNOWN).split())
BY_HAND = [f"check_{name}" for name in ["chain_values", "asking_range", "two_replies", "three_targets", "coins"]]


# -- the exercises of the notebooks ----------------------------------------------------------------------------------
def called(statement):
    """(name of the check, name of the function) of the statement `check_...(function)`, else None."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or len(call.args) != 1 or not isinstance(call.args[0], ast.Name):
        return None
    name = ast.unparse(call.func).rpartition(".")[2]
    return (name, call.args[0].id) if name.startswith("check_") else None


@cache
def exercises():
    """{check: (imports of the notebook, source of its solutions so far, name of the function)}."""
    found = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        imports, functions = [], []
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or source.lstrip().startswith("%"):
                continue
            body = ast.parse(source).body
            imports += [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
            if "BEGIN SOLUTION" in source and (calls := list(filter(None, map(called, body)))):
                functions += [node for node in body if isinstance(node, ast.FunctionDef)]
                found |= {name: (list(imports), list(functions), function) for name, function in calls}
    return found


@cache
def all_checks():
    """{name: check} of the modules of checks and of the clinic, without what these import from elsewhere."""
    folders = {package: pkgutil.iter_modules(package.__path__) for package in (checks, clinic)}
    modules = [importlib.import_module(f"{p.__name__}.{m.name}") for p, files in folders.items() for m in files]
    found = {name: getattr(m, name) for m in modules for name in dir(m) if name.startswith("check_")}
    return {name: check for name, check in found.items() if check.__module__.startswith("rlhf_lab.classroom")}


def solution(check, **replaced):
    """The notebook's solution; `replaced` are names that it is to find in the place of what it imports."""
    imports, functions, name = exercises()[check]
    space = {}
    exec(compile(ast.Module(imports, []), "<imports>", "exec"), space)
    code = compile(ast.Module(functions, []), "<solutions>", "exec", flags=__future__.annotations.compiler_flag)
    exec(code, space | (found := {}), found)
    for function in found.values():
        function.__globals__.update(found | replaced)
    return found[name]


def changed_by(change, function, *, inputs=lambda x: x):
    """The function, with a change made to each tensor or number that it is given and that it returns."""

    def every(alter, x):
        if isinstance(x, dict):
            return {key: every(alter, part) for key, part in x.items()}
        if isinstance(x, tuple | list):
            return type(x)(every(alter, part) for part in x)
        return alter(x)

    return lambda *given: every(change, function(*every(inputs, given)))


def single(x):
    return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def array(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else x


def whole(x):
    """Whole numbers as integers."""
    if isinstance(x, torch.Tensor):
        return x.long() if not x.is_floating_point() or (x.isfinite().all() and (x == x.round()).all()) else x
    return int(x) if isinstance(x, float) and x.is_integer() else x


def numpy_number(x):
    return np.float32(x) if isinstance(x, float) or (isinstance(x, torch.Tensor) and x.dim() == 0) else x


def python_number(x):
    return float(x) if isinstance(x, torch.Tensor) and x.dim() == 0 else x


# -- the sweep -------------------------------------------------------------------------------------------------------
def test_every_check_is_swept():
    """What a chapter adds is swept by itself; what stood there must not drop out unseen."""
    assert set(NAMES) <= exercises().keys() & all_checks().keys()


@pytest.mark.parametrize("check", NAMES)
def test_a_right_answer_in_float32_passes(check, capsys):
    all_checks()[check](changed_by(single, solution(check), inputs=single))
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize("form", [array, whole, numpy_number, python_number], ids=lambda form: form.__name__)
@pytest.mark.parametrize("check", sorted(set(NAMES) - DIFFERENTIATED))
def test_arrays_and_numbers_of_any_kind_pass(check, form, capsys):
    all_checks()[check](changed_by(form, solution(check)))
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize("form", [list, torch.tensor, np.array, lambda x: list(torch.tensor(x))])
@pytest.mark.parametrize("check", BY_HAND)
def test_numbers_by_hand_may_come_in_any_kind(check, form, capsys):
    answer = solution(check)
    all_checks()[check](lambda *given: form(answer(*given)))
    assert "passed" in capsys.readouterr().out


def test_two_gauges_in_an_array_are_two_numbers(capsys):
    answer = solution("check_gauges")
    all_checks()["check_gauges"](lambda *given: np.array([float(x) for x in answer(*given)]))
    assert "passed" in capsys.readouterr().out


# -- wrong answers that look right -----------------------------------------------------------------------------------
def refused(check, mistake, match):
    with pytest.raises(AssertionError, match=match) as caught:
        all_checks()[check](mistake)
    return str(caught.value)


def times(factor):
    return lambda x: x * factor if isinstance(x, torch.Tensor | np.ndarray | float) else x


NO_REAL_NUMBERS = {
    f"check_{name}" for name in ["clip_is_alive", "over_refusal", "pairs_of_ranking", "effective_horizon"]
}


@pytest.mark.parametrize("factor", [0.0, math.nan, 1.001])
@pytest.mark.parametrize("check", sorted(set(NAMES) - NO_REAL_NUMBERS))
def test_numbers_of_the_right_shape_are_not_enough(check, factor):
    """Nothing, no numbers, and right up to a thousandth; of a loss the gradient is scaled along."""
    refused(check, changed_by(times(factor), solution(check)), "got ")


IN_BATCHES = "reward_to_go importance_weights double_target td_errors gae n_step_advantage value_targets token_rewards"


@pytest.mark.parametrize("check", [f"check_{name}" for name in f"{IN_BATCHES} optimal_law soft_value whiten".split()])
def test_a_batch_of_one_keeps_its_axis(check):
    refused(check, changed_by(torch.squeeze, solution(check)), "usual cause: an axis of length 1")


def until(stop):
    """over_refusal with a loop that ends at the first verdict that is none of its kind."""

    def over_refusal(verdicts):
        refusals = []
        for verdict in verdicts:
            if stop(verdict):
                break
            if verdict is not None and verdict.over_refusal is not None:
                refusals.append(verdict.over_refusal)
        return proportion_interval(sum(refusals), len(refusals))

    return over_refusal


def with_a_last_round(rounds):
    """Policy iteration that ends after so many rounds, done or not."""

    def solve(transitions, rewards, gamma):
        policy = torch.full_like(rewards, 1 / rewards.shape[1])
        for _ in range(rounds):
            moves = torch.einsum("sa,sat->st", policy, transitions)
            values = torch.linalg.solve(torch.eye(len(rewards)).double() - gamma * moves, (policy * rewards).sum(1))
            best = (rewards + gamma * transitions @ values).argmax(1)
            policy = torch.nn.functional.one_hot(best, rewards.shape[1]).double()
        return values, policy

    return solve


def as_text(tiers):
    return [f"{b}{w}" for i, tier in enumerate(tiers) for later in tiers[i + 1 :] for b in tier for w in later]


UNSEEN = {
    "a break at the reply without a verdict": ("check_over_refusal", until(lambda v: v is None)),
    "a break at the first harmful request": ("check_over_refusal", until(lambda v: v and v.over_refusal is None)),
    "the last verdict is left out": ("check_over_refusal", lambda vs: until(lambda v: False)(vs[:-1])),
    "three rounds": ("check_policy_iteration", with_a_last_round(3)),
    "ten rounds": ("check_policy_iteration", with_a_last_round(10)),
    "pairs in words": ("check_pairs_of_ranking", as_text),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_one_lucky_order_or_size_would_hide_is_refused(name):
    check, mistake = UNSEEN[name]
    assert "\n  expected " in refused(check, mistake, "got ")


def test_policy_iteration_may_take_as_many_rounds_as_it_needs(capsys):
    all_checks()["check_policy_iteration"](with_a_last_round(30))
    assert "passed" in capsys.readouterr().out


def changed_in_place(check, at):
    """The right answer, after which argument `at` holds other numbers: by `.data`, of which autograd knows nothing."""
    answer = solution(check)

    def mine(*given):
        result = answer(*given)
        given[at].data[..., -1] += 1
        return result

    return mine


BEHIND = [(check, at) for check in sorted(DIFFERENTIATED - {"check_reinforce_loss"}) for at in range(3)]
BEHIND.remove(("check_sequence_leash", 2))  # its third is the mask


@pytest.mark.parametrize(("check", "at"), [*BEHIND, ("check_reinforce_loss", 0)])
def test_a_change_in_place_behind_the_gradients_is_refused(check, at):
    refused(check, changed_in_place(check, at), "in place")


# -- what is named ---------------------------------------------------------------------------------------------------
def returned_in_the_loop(scores, pairs):
    for better, worse in pairs:
        return ((scores[better] > scores[worse]) + 0.5 * (scores[better] == scores[worse])) / len(pairs)


NAMED = {
    "a `return` in the loop": ("check_agreement", returned_in_the_loop, "usual cause: the first pair alone counts"),
    "ties dropped": (
        "check_agreement",
        lambda s, p: (lambda q: sum(s[b] > s[w] for b, w in q) / len(q) if q else 0.0)(
            [(b, w) for b, w in p if s[b] != s[w]]
        ),
        "usual cause: equal scores are left out",
    ),
    "no answer for some, by chance right in a first case": ("check_win_rate", lambda a, b: 0.5, "perhaps, though"),
    "one more, where a power hits the share": (
        "check_effective_horizon",
        lambda gamma, share: int(math.log(share) / math.log(gamma)) + 1,
        "usual cause: a power that hits the share is enough",
    ),
    "gamma to the power k + 1": (
        "check_reward_to_go",
        lambda rewards, gamma, mask: gamma * solution("check_reward_to_go")(rewards, gamma, mask),
        "usual cause: one discount too many",
    ),
    "two decimals": ("check_chain_values", lambda: (0.34, 0.80), "too few digits"),
    "two decimals of a range": ("check_asking_range", lambda: (0.17, 0.83), "too few digits"),
    "from above to below": ("check_asking_range", lambda: (5 / 6, 1 / 6), "the lower end comes first"),
    "a probability": ("check_coins", lambda m: (1 - 2.0**-m, 0.0), "the probability that some coin"),
    "False dropped": (
        "check_over_refusal",
        lambda vs: proportion_interval(*[sum(bool(v and v.over_refusal) for v in vs)] * 2),
        "usual cause: False is dropped along with None",
    ),
    "no interval": ("check_over_refusal", lambda vs: None, "is there a `return`"),
    "a list": ("check_epsilon_greedy", lambda q, e: q.tolist(), "torch.tensor or torch.stack makes one of it"),
    "no pair": ("check_policy_iteration", lambda *process: None, "what is asked: return values, policy"),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_mistake_is_named_and_no_other(name):
    check, mistake, cause = NAMED[name]
    said = refused(check, mistake, cause)
    assert "AssertionError" not in said
    assert said.count("usual cause") + said.count("perhaps, though") <= 1


LIVE = "td_errors gae n_step_advantage value_targets importance_weights token_rewards"


@pytest.mark.parametrize("check", [f"check_{name}" for name in LIVE.split()])
def test_a_gradient_in_data_is_a_cause_and_not_what_is_asked(check):
    answer = solution(check)

    def live(*given):
        nothing = sum((0 * x.nan_to_num(0, 0, 0)).sum() for x in given if needs(x))
        return torch.as_tensor(answer(*given)) + nothing

    refused(check, live, "usual cause: a missing detach")


def needs(x):
    return isinstance(x, torch.Tensor) and x.requires_grad


class MaskedByProduct:
    """torch, whose `where` is what many write in its place: x * mask."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def where(self, mask, x, other):
        return x * mask + other * ~mask


def mean_by_product(x, mask):
    return (x * mask).sum() / mask.sum()


def surrogate_by_product(new, old, advantages, mask, epsilon):
    ratio, advantages = (new - old.detach()).exp(), advantages.detach()
    near = ratio.clamp(1 - epsilon, 1 + epsilon)
    return mean_by_product(torch.minimum(ratio * advantages, near * advantages), mask)


def value_loss_by_product(values, old, returns, mask, epsilon):
    old, returns = old.detach(), returns.detach()
    near = old + (values - old).clamp(-epsilon, epsilon)
    return mean_by_product(torch.maximum((values - returns).square(), (near - returns).square()) / 2, mask)


def gauges_by_product(new, old, mask, epsilon):
    ratio = (new - old).exp()
    outside = ((ratio - 1).abs() > epsilon).double()
    return mean_by_product(ratio - 1 - (new - old), mask), mean_by_product(outside, mask)


BY_PRODUCT = {
    "check_clipped_surrogate": surrogate_by_product,
    "check_value_loss": value_loss_by_product,
    "check_gauges": gauges_by_product,
}
PADDED = "reward_to_go reinforce_loss importance_weights td_errors gae value_targets whiten token_rewards kl_loss"


@pytest.mark.parametrize("check", [*BY_PRODUCT, *(f"check_{name}" for name in PADDED.split())])
def test_a_product_with_the_mask_fails_where_padding_never_counts(check):
    mistake = BY_PRODUCT.get(check) or solution(check, torch=MaskedByProduct())
    with pytest.raises(AssertionError, match=r"NaN (times|\*) 0 is NaN|padding multiplied by 0"):
        all_checks()[check](mistake)


@pytest.mark.parametrize("check", sorted(all_checks()))
def test_an_exercise_that_was_not_begun_gets_one_line(check):
    function = all_checks()[check]
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if len(needed) != 1:
        pytest.skip("takes more than the reader's function")

    def mine(*given, **options):
        raise NotImplementedError("your code here")

    with pytest.raises(NotAttempted) as caught:
        function(mine)
    line = "not attempted yet: write the body of mine (your code here), then run this cell again"
    assert caught.value._render_traceback_() == [line]


def with_a_docstring(*given):
    """The share of pairs that the scores put in the right order."""


def with_an_ellipsis(*given): ...


def with_nothing_returned(*given):
    return None


# fmt: off
def with_its_raise_in_one_line(*given): raise NotImplementedError
# fmt: on


EMPTY = [with_a_docstring, with_an_ellipsis, with_nothing_returned, with_its_raise_in_one_line]


@pytest.mark.parametrize("mine", EMPTY)
@pytest.mark.parametrize("check", [*NAMES, *BY_HAND, "check_clip_is_alive", "check_policy_iteration", "check_whiten"])
def test_an_empty_function_was_not_begun_either(check, mine):
    with pytest.raises(NotAttempted, match=f"write the body of {mine.__name__}, then run this cell again"):
        all_checks()[check](mine)


def test_a_function_that_forgets_to_return_was_begun():
    def mine(scores, pairs):
        sum(scores[better] > scores[worse] for better, worse in pairs)

    refused("check_agreement", mine, "is there a `return`")


def test_a_function_whose_check_stands_in_the_chapter_gets_the_line_too():
    def mine():
        raise NotImplementedError("your code here")

    with pytest.raises(NotAttempted, match="not attempted yet: write the body of mine"):
        exercise(mine)()
    assert exercise(lambda low, high: low < high)(1, 2) is True
