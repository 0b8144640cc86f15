"""Every check of an exercise is fair: it takes the chapter's own solution in any precision and form of number.

The solutions are those of the notebooks, so an exercise that is added there is swept too: a cell with a solution that
ends in `check_...(name)`. One test goes the other way: a solution that multiplies by the mask keeps NaN at padding.
"""

import __future__

import ast
import importlib
import inspect
import json
import pkgutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_lab.classroom import checks, clinic
from rlhf_lab.classroom.checks.comparing import NotAttempted

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
DIFFERENTIATED = {"check_reinforce_loss", "check_clipped_surrogate", "check_value_loss", "check_kl_loss"}
KNOWN = DIFFERENTIATED | {
    "check_pairs_of_ranking check_agreement check_win_rate",
    "check_discounted_return check_effective_horizon check_bellman_backup check_greedy_policy check_shaped_rewards",
    "check_score_function check_reward_to_go check_optimal_baseline check_importance_weights",
    "check_q_update check_epsilon_greedy check_double_target check_soft_value",
    "check_td_errors check_gae check_n_step_advantage check_value_targets",
    "check_gauges check_performance_difference check_whiten check_clip_is_alive",
    "check_optimal_law check_token_rewards check_over_refusal",
}
NAMES = sorted(" ".join(KNOWN).split())


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
        return x.long() if x.isfinite().all() and (x == x.round()).all() else x
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
