"""A repair is put into its patient and compared with the exact answer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import changed, compare, exercise
from rlhf_lab.classroom.clinic.cases import Case
from rlhf_lab.classroom.clinic.oracles import (
    cosine,
    gradient_oracle,
    moved_oracle,
    pairs_oracle,
    reduction_oracle,
    rows_oracle,
    scores_oracle,
)
from rlhf_lab.classroom.clinic.parts import Parts
from rlhf_lab.classroom.clinic.ward import CASES

STEP = "the expected first step, over all 728 songs"
LATER = "the expected later step, over all 728 songs"
PAIRS = "the expected step of groups of two, over all pairs of songs"
ADVANTAGES = "the advantages of six random rows"
WEIGHTS = "the weight of every token in the loss"
SCORES = "the scores of 24 replies, each judged alone"
WHAT: dict[Callable[[Parts | None], Tensor], str] = {
    gradient_oracle: STEP,
    moved_oracle: LATER,
    pairs_oracle: PAIRS,
    rows_oracle: ADVANTAGES,
    reduction_oracle: WEIGHTS,
    scores_oracle: SCORES,
}


class Measured:
    """A tensor beside the truth; printed as angle, length and error."""

    def __init__(self, tensor: Tensor, truth: Tensor):
        self.tensor, self.truth = tensor.detach().double(), truth

    @property
    def error(self) -> float:
        return float((self.tensor - self.truth).abs().max())

    def __repr__(self) -> str:
        cos, length = cosine(self.tensor, self.truth), float(self.tensor.norm() / self.truth.norm())
        return f"cosine {cos:.4f}, {length:.3f} of the length, largest error {self.error:.1e}"


def _same(got: Measured, expected: Measured) -> bool:
    if got.tensor.shape != expected.tensor.shape:
        return False
    return torch.allclose(got.tensor, expected.tensor, rtol=0, atol=1e-6)


def _answers(repair: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The reader's function, with a word for slips that would otherwise end in a puzzling error or in none."""

    def part(*inputs: Any) -> Tensor:
        given = [x.clone() if isinstance(x, Tensor) else x for x in inputs]  # some of them are cached
        answer = repair(*given)
        if answer is None:
            raise ValueError("it returned None; is there a `return`?")
        if any(map(changed, inputs, given)):
            raise ValueError("an in-place change of an argument, which the loop still needs")
        return answer

    return part


@exercise
def grade(name: str, repair: Callable) -> None:
    """Put the repair into the patient and compare with the exact answer.

    Args:
        name: of the case. repair: takes the place of the part that `CASES[name].part` names, same arguments.

    Raises:
        AssertionError: the answer differs; the message says by how much and what usually causes it.
        NotImplementedError: the exercise has not been started.
    """
    case = CASES[name]
    truth = case.oracle(None)
    sick = Measured(case.oracle(case.parts()), truth)
    now = compare(
        f"{case.part} of patient {name}",
        WHAT[case.oracle],
        lambda: Measured(case.oracle(case.parts(_answers(repair))), truth),
        Measured(truth, truth),
        {cause: partial(_mistaken, case, wrong, truth) for cause, wrong in case.mistakes.items()},
        case.hint,
        same=_same,
    )
    length = float(sick.tensor.norm() / truth.norm())
    print(f"patient {name}, {case.part}: repaired. {WHAT[case.oracle][0].upper() + WHAT[case.oracle][1:]}:")
    print(f"  before  cosine {cosine(sick.tensor, truth):6.3f} with the exact one, {length:.2f} of its length")
    print(f"  now     the exact one to {'nine' if now.error < 1e-9 else 'six'} digits")
    print(f"  means   {case.means}")


def _mistaken(case: Case, wrong: Callable, truth: Tensor) -> Measured:
    return Measured(case.oracle(case.parts(wrong)), truth)
