"""Faults planted in the mathematics are noticed: the stored numbers, and what is planted."""

import ast

import mutation
import pytest
import torch

from rlhf_lab.maths import returns

ROWS, SURVIVORS = mutation.read_rows(mutation.RESULTS), mutation.read_rows(mutation.SURVIVORS)


def test_results_are_of_this_mathematics():
    assert {row["module"]: row["key"] for row in ROWS} == {module: mutation.key(module) for module in mutation.MODULES}


@pytest.mark.parametrize("module", mutation.MODULES)
def test_nine_in_ten_are_noticed_and_the_others_have_a_reason(module):
    (row,) = (row for row in ROWS if row["module"] == module)
    mine = [survivor for survivor in SURVIVORS if survivor["module"] == module]
    assert len(mine) == int(row["survived"]) <= 0.1 * int(row["mutants"])
    assert all(survivor["reason"] for survivor in mine)


SOURCE = '''\
"""A module."""
import torch


@torch.no_grad()
def half(x, by=2):
    """Halve."""
    if by == 0:
        raise ValueError(
            f"by is {by}"
        )
    return x / by


class Box:
    def __init__(self, size=3):
        self.size = size
'''


def test_messages_and_heads_are_marked_and_decorators_become_calls():
    written = mutation.mutable(SOURCE)
    marked = [line.removesuffix(mutation.LEFT_OUT) for line in written.splitlines() if line.endswith(mutation.LEFT_OUT)]
    assert [line.strip() for line in marked] == [
        "def half(x, by=2):", "raise ValueError(", 'f"by is {by}"', ")", "def __init__(self, size=3):",
    ]  # fmt: skip
    assert written.splitlines()[-1] == "half = torch.no_grad()(half)"
    assert "@torch" not in written


def test_the_module_that_is_mutated_does_the_same():
    source = (mutation.ROOT / "rlhf_lab" / "maths" / "returns.py").read_text()
    names = {}
    exec(compile(mutation.mutable(source), "returns", "exec"), names)
    public = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert set(public) <= names.keys()
    rewards = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    result = names["leave_one_out_advantages"](rewards)
    assert not result.requires_grad
    torch.testing.assert_close(result, returns.leave_one_out_advantages(rewards))


def test_a_survivor_keeps_its_reason_as_long_as_it_is_the_same(tmp_path):
    path = tmp_path / "survivors.csv"
    old = {"module": "kl", "function": "f", "was": "a > 0", "becomes": "a >= 0"}
    new, other = old | {"becomes": "a > 1"}, old | {"module": "mdp"}
    mutation.put_survivors(path, "kl", [old])
    mutation.put_survivors(path, "mdp", [other])
    path.write_text(path.read_text().replace("kl,f,a > 0,a >= 0,", 'kl,f,a > 0,a >= 0,"never 0, see f"'))
    mutation.put_survivors(path, "kl", [new, old])
    rows = {(row["module"], row["becomes"]): row["reason"] for row in mutation.read_rows(path)}
    assert rows == {("kl", "a >= 0"): "never 0, see f", ("kl", "a > 1"): "", ("mdp", "a >= 0"): ""}
    mutation.put_survivors(path, "kl", [])
    assert [row["module"] for row in mutation.read_rows(path)] == ["mdp"]
