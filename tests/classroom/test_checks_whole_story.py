"""Each check of chapter 00 passes the solution and fails on realistic mistakes, naming the cause."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from rlhf_lab.classroom.checks.whole_story import check_agreement, check_pairs_of_ranking, check_win_rate


def pairs_of_ranking(tiers):
    return [(b, w) for i, tier in enumerate(tiers) for later in tiers[i + 1 :] for b in tier for w in later]


def agreement(scores, pairs):
    return sum((scores[b] > scores[w]) + (scores[b] == scores[w]) / 2 for b, w in pairs) / len(pairs)


def win_rate(after, before):
    return sum((a > b) + (a == b) / 2 for a, b in zip(after, before, strict=True)) / len(after)


def win_rate_of_tensors(after, before, dtype):
    after, before = torch.tensor(after, dtype=dtype), torch.tensor(before, dtype=dtype)
    return ((after > before).to(dtype) + (after == before).to(dtype) / 2).mean()


def agreement_of_arrays(scores, pairs):
    better, worse = np.float32(scores)[np.array(pairs)].T
    return np.mean((better > worse) + np.float32(0.5) * (better == worse), dtype=np.float32)


def pairs_in_turn(tiers):
    yield from pairs_of_ranking(tiers)


SOLUTIONS = {
    "list": (check_pairs_of_ranking, pairs_of_ranking),
    "lists, other order": (check_pairs_of_ranking, lambda t: [list(pair) for pair in reversed(pairs_of_ranking(t))]),
    "generator": (check_pairs_of_ranking, pairs_in_turn),
    "set": (check_pairs_of_ranking, lambda t: set(pairs_of_ranking(t))),
    "array": (check_pairs_of_ranking, lambda t: np.array(pairs_of_ranking(t))),
    "tensor": (check_pairs_of_ranking, lambda t: torch.tensor(pairs_of_ranking(t))),
    "agreement": (check_agreement, agreement),
    "agreement, float32": (check_agreement, agreement_of_arrays),
    "win rate": (check_win_rate, win_rate),
    "win rate, float32": (check_win_rate, lambda a, b: win_rate_of_tensors(a, b, torch.float32)),
    "win rate, float32 number": (check_win_rate, lambda a, b: float(np.float32(win_rate(a, b)))),
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_of_any_type_passes(name, capsys):
    check, solution = SOLUTIONS[name]
    check(solution)
    assert "passed" in capsys.readouterr().out


def flat(tiers):
    return [reply for tier in tiers for reply in tier]


MISTAKES = {
    "worse first": (
        check_pairs_of_ranking,
        lambda t: [(w, b) for b, w in pairs_of_ranking(t)],
        "better reply comes first",
    ),
    "neighbours": (
        check_pairs_of_ranking,
        lambda t: [(b, w) for x, y in pairwise(t) for b in x for w in y],
        "only neighbouring tiers",
    ),
    "ties paired": (check_pairs_of_ranking, lambda t: list(combinations(flat(t), 2)), "a tie says nothing"),
    "first of a tier": (
        check_pairs_of_ranking,
        lambda t: list(combinations([x[0] for x in t], 2)),
        "a tier may hold several",
    ),
    "places": (check_pairs_of_ranking, lambda t: list(combinations(range(len(t)), 2)), "the places of the tiers"),
    "both orders": (
        check_pairs_of_ranking,
        lambda t: pairs_of_ranking(t) + [(w, b) for b, w in pairs_of_ranking(t)],
        "in both orders",
    ),
    "no return": (check_pairs_of_ranking, lambda t: None, "is there a `return`"),
    "not pairs": (check_pairs_of_ranking, flat, "every reply of a tier"),
    "raises": (check_pairs_of_ranking, lambda t: t[9], "IndexError"),
    "last against first": (check_agreement, lambda s, p: 1 - agreement(s, p), "the sign"),
    "ties right": (check_agreement, lambda s, p: sum(s[b] >= s[w] for b, w in p) / len(p), "count as right"),
    "ties wrong": (check_agreement, lambda s, p: sum(s[b] > s[w] for b, w in p) / len(p), "count as wrong"),
    "per reply": (check_agreement, lambda s, p: agreement(s, p) * len(p) / len(s), "number of replies"),
    "sum": (check_agreement, lambda s, p: agreement(s, p) * len(p), "the sum and not the mean"),
    "differences": (check_agreement, lambda s, p: sum(s[b] - s[w] for b, w in p) / len(p), "count pairs instead"),
    "direction": (check_win_rate, lambda a, b: win_rate(b, a), "the direction"),
    "ties lost": (check_win_rate, lambda a, b: sum(x > y for x, y in zip(a, b, strict=True)) / len(a), "as losses"),
    "ties won": (check_win_rate, lambda a, b: sum(x >= y for x, y in zip(a, b, strict=True)) / len(a), "as wins"),
    "ties out": (
        check_win_rate,
        lambda a, b: (
            sum(x > y for x, y in zip(a, b, strict=True)) / max(1, sum(x != y for x, y in zip(a, b, strict=True)))
        ),
        "ties are left out",
    ),
    "unpaired": (
        check_win_rate,
        lambda a, b: sum((x > y) + (x == y) / 2 for x in a for y in b) / (len(a) * len(b)),
        "the two of one prompt",
    ),
    "how much": (
        check_win_rate,
        lambda a, b: sum(x - y for x, y in zip(a, b, strict=True)) / len(a),
        "how much better",
    ),
    "number of wins": (check_win_rate, lambda a, b: win_rate(a, b) * len(a), "and not their share"),
    "worse first, in turn": (
        check_pairs_of_ranking,
        lambda t: ((w, b) for b, w in pairs_of_ranking(t)),
        "better reply comes first",
    ),
    "first tier eaten": (check_pairs_of_ranking, lambda t: pairs_of_ranking(t) * (t.pop() is not None), "in place"),
    "float16": (check_win_rate, lambda a, b: win_rate_of_tensors(a, b, torch.float16), "prompt by prompt"),
    "not a number": (check_agreement, lambda s, p: "0.5", "mean over the pairs"),
    "constant": (check_win_rate, lambda a, b: 0.4, "prompt by prompt"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name):
    check, mistake, cause = MISTAKES[name]
    with pytest.raises(AssertionError, match=cause) as caught:
        check(mistake)
    assert "\n  or  " not in str(caught.value)  # no second cause beside the right one


def test_unfinished_exercise_says_so():
    def unfinished(tiers):
        raise NotImplementedError("your turn")

    with pytest.raises(NotImplementedError, match="your turn"):
        check_pairs_of_ranking(unfinished)
