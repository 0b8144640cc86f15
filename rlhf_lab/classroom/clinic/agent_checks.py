"""The agent's methods, graded: each on random rows, against the healthy one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import compare, exercise, same_tensors
from rlhf_lab.classroom.clinic.agent import (
    TutorialPPO,
    accumulate_of_agent,
    ratio_of_agent,
    ready_of_agent,
    remember_of_agent,
    td_errors_of_agent,
    value_loss_of_agent,
    values_of_agent,
)
from rlhf_lab.maths.tensors import length_mask, masked_whiten
from rlhf_lab.training.randomness import generator_for


@dataclass(frozen=True)
class Method:
    """How a method of the agent is graded: inputs after self, the healthy one, cause -> a wrong one.

    Attributes:
        others: as right as the healthy one.
        mask: of the inputs; only what stands under it is compared.
    """

    inputs: Callable[[], tuple]
    healthy: Callable
    mistakes: Mapping[str, Callable]
    hint: str
    means: str
    others: tuple[Callable, ...] = ()
    mask: Callable[[], Tensor] | None = None


class Answer:
    """What a method gave, and whether a gradient flows through it."""

    def __init__(self, value: object):
        self.value, self.attached = value, isinstance(value, Tensor) and value.requires_grad

    def __repr__(self) -> str:
        if not isinstance(self.value, Tensor):
            return repr(self.value)
        numbers = [round(x, 3) for x in self.value.detach().flatten().tolist()[:6]]
        return f"{numbers} of shape {list(self.value.shape)}, {'with' if self.attached else 'without'} a gradient"

    def same(self, other: "Answer") -> bool:
        if not isinstance(self.value, Tensor) or not isinstance(other.value, Tensor):
            return self.value is other.value
        return self.attached == other.attached and same_tensors(self.value, other.value)


def _draws(*shapes: tuple[int, ...], seed: int = 7) -> list[Tensor]:
    generator = generator_for(seed, "method")
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _rows() -> tuple[Tensor, ...]:
    rewards, values, errors = _draws((4, 3), (4, 4), (4, 3))
    mask = length_mask(torch.tensor([3, 1, 2, 3]), 3)
    discounts = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0.5, 0], [1, 1, 1]])
    zero = torch.zeros(())
    return torch.where(mask, rewards, zero), values, discounts, torch.where(mask, errors, zero), mask


def _weights() -> tuple[Tensor, ...]:
    """Advantages, targets, live values and their mask, with junk at padding."""
    mask = _rows()[4]
    advantages, targets, values = (torch.where(mask, x, torch.nan) for x in _draws((4, 3), (4, 3), (4, 3), seed=9))
    return advantages, targets, values.requires_grad_(True), mask


def _live(*shape: int) -> Tensor:
    return _draws(shape, seed=8)[0].requires_grad_(True)


def _forwards(self: TutorialPPO, errors: Tensor, discounts: Tensor) -> Tensor:
    advantage, columns = torch.zeros(len(errors)), []
    for t in range(errors.shape[1]):
        advantage = errors[:, t] + self.lam * discounts[:, t] * advantage
        columns.append(advantage)
    return torch.stack(columns, dim=1)


def _accumulate(decay: Callable) -> Callable:
    def method(self: TutorialPPO, errors: Tensor, discounts: Tensor) -> Tensor:
        advantage, columns = torch.zeros(len(errors)), []
        for t in reversed(range(errors.shape[1])):
            advantage = errors[:, t] + decay(self.lam, discounts[:, t]) * advantage
            columns.append(advantage)
        return torch.stack(columns[::-1], dim=1)

    return method


METHODS: dict[str, Method] = {
    "td_errors": Method(
        lambda: _rows()[:3],
        td_errors_of_agent,
        {
            "the value of the next state is missing": TutorialPPO.td_errors,
            "the next value counts behind the end too: multiply it by the discount": lambda self, r, v, d: (
                r + v[:, 1:] - v[:, :-1]
            ),
            "the value of the state itself is missing": lambda self, r, v, d: r + d * v[:, 1:],
            "the sign: what came minus what was expected": lambda self, r, v, d: v[:, :-1] - r - d * v[:, 1:],
        },
        "reward + discount * next value - value, with values [B, T + 1]",
        "a reply hears of what comes after it",
    ),
    "accumulate": Method(
        lambda: (_draws((4, 3))[0], _rows()[2]),
        accumulate_of_agent,
        {
            "the running sum is reset in every step, before it is used": TutorialPPO.accumulate,
            "lambda is missing": _accumulate(lambda lam, discount: discount),
            "the discount is missing: the sum runs over the end of the dialogue": _accumulate(
                lambda lam, discount: lam
            ),
            "from first to last: advantages look ahead, so begin with the last step": _forwards,
        },
        "set it to 0 once, before the loop; then errors[:, t] + self.lam * discounts[:, t] * advantage",
        "surprises of later replies reach the earlier ones",
    ),
    "values": Method(
        lambda: (torch.tensor([[3, 5, 0], [4, 0, 0]]),),
        values_of_agent,
        {
            "values are read off the policy's logits": TutorialPPO.values,
            "the largest logit of the policy is no value either": lambda self, o: self.policy(o).logits.amax(-1),
            "detached: the critic could never learn": lambda self, o: self.value(o).detach(),
        },
        "the agent has a value head, self.value(observations)",
        "there is a critic",
    ),
    "value_loss": Method(
        lambda: (_live(4, 3), _draws((4, 3))[0]),
        value_loss_of_agent,
        {
            "nothing is trained": TutorialPPO.value_loss,
            "the difference without a square pushes all values down for ever": lambda self, v, t: v - t,
            "detached: the critic could never learn": lambda self, v, t: (v.detach() - t).square() / 4,
            "twice as much as asked: the weight 1/2 is missing": lambda self, v, t: (v - t).square() / 2,
        },
        "half the squared error, with weight 1/2: (values - targets)^2 / 4",
        "the critic is trained",
    ),
    "ratio": Method(
        lambda: (_live(4, 3), _draws((4, 3))[0]),
        ratio_of_agent,
        {
            "the ratio is taken to the policy itself and is always 1": TutorialPPO.ratio,
            "upside down: new over old": lambda self, new, old: torch.exp(old - new),
            "the exponential is missing": lambda self, new, old: 1 + new - old,
            "the gradient is cut: the new log-probs must stay attached": lambda self, new, old: torch.exp(
                new.detach() - old
            ),
        },
        "exp(log_probs - old_log_probs)",
        "the clip can act",
    ),
    "remember": Method(
        lambda: (_draws((1, 4, 5))[0],),
        remember_of_agent,
        {
            "the state is still carried into the next reply": TutorialPPO.remember,
            "without a gradient, and carried into the next reply all the same": lambda self, s: s.detach().clone(),
            "weaker, and still carried into the next reply": lambda self, s: s / 2,
        },
        "begin as the update does: from an empty state, which is None or zeros",
        "the law that acts is the law that is scored",
        others=(lambda self, state: torch.zeros_like(state),),
    ),
    "ready": Method(
        _weights,
        ready_of_agent,
        {
            "the values are still attached: the surrogate trains the critic": TutorialPPO.ready,
            "whitened, and the values are still attached": lambda self, a, t, v, m: masked_whiten(t - v, m),
            "the sign: what came minus what was expected": lambda self, a, t, v, m: (v - t).detach(),
            "the value is missing as a baseline: right in the mean, with far more noise": lambda self, a, t, v, m: t,
        },
        "no gradient may pass: take advantages, or (targets - values).detach(); whiten them with masked_whiten or not",
        "the surrogate moves the policy and nothing else",
        others=(
            lambda self, advantages, targets, values, mask: advantages,
            lambda self, advantages, targets, values, mask: (targets - values).detach(),
            lambda self, advantages, targets, values, mask: masked_whiten((targets - values).detach(), mask),
        ),
        mask=lambda: _rows()[4],
    ),
}


@exercise
def grade_method(function: Callable) -> None:
    """Compare a method of the agent, by its name, with the healthy one.

    Raises:
        AssertionError: with what usually causes the difference.
        KeyError: a function whose name is no key of `METHODS`.
    """
    name = function.__name__
    if name not in METHODS:
        raise KeyError(f"{name} is no method that is graded; expected one of {sorted(METHODS)}")
    method, agent = METHODS[name], _small_agent()
    inputs = method.inputs()
    answer = partial(_answer, agent, None if method.mask is None else method.mask())
    right = answer(method.healthy, *inputs)
    as_right = [right, *(answer(other, *inputs) for other in method.others)]
    compare(
        name,
        "random rows of different length",
        partial(answer, function),
        right,
        {cause: partial(answer, wrong, *inputs) for cause, wrong in method.mistakes.items()},
        method.hint,
        same=lambda got, expected: any(map(got.same, as_right if expected is right else [expected])),
        odd=_nothing,
        inputs=inputs,
    )
    print(f"{name}: repaired; {method.means}")


def _answer(agent: TutorialPPO, mask: Tensor | None, function: Callable, *inputs: Tensor) -> Answer:
    """What the function gives; under the mask, if there is one."""
    given = function(agent, *inputs)
    masked = mask is not None and isinstance(given, Tensor) and given.shape == mask.shape
    return Answer(given[mask] if masked else given)


def _nothing(got: Answer, expected: Answer) -> str | None:
    if got.value is None and expected.value is not None:
        return "it returned None; is there a `return`?"
    broken = isinstance(got.value, Tensor) and not torch.isfinite(got.value).all()
    return "not a number: what stands at padding, NaN here, was counted" if broken else None


@cache
def _small_agent() -> TutorialPPO:
    return type("SmallAgent", (TutorialPPO,), {"width": 5})(vocabulary=9, actions=3)
