"""The check of the loop that chapter 15 builds: a language model trained by groups of replies, on probes.

The probes are those of `token_probes`, longer and slower since a group has a noisier baseline than a critic, and one
more: prompts whose rewards lie at different levels. What the loop asked and sampled is watched along the way, so some
mistakes are seen and not inferred. Of the others it is said what a failed probe isolates, and what its numbers tell.

Not seen: a reply's own reward in its baseline, which shrinks the gradient and which Adam undoes; over what the loss is
a mean; division by the group's spread; the clip, which does nothing in one epoch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import exercise, fail, same_tensors
from rlhf_lab.experience.rollouts import TEMPERATURE
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.models.tokens import Rollout
from rlhf_lab.worlds.probe_checks import Check, Report
from rlhf_lab.worlds.token_probes import END, PAD, TOKEN, WORDS, NextToken, TokenProbe, Tokens

Train = Callable[[TokenProbe, int], NextToken]
NAME, SEED = "train_group_by_hand", 0
LEVELS = (0.0, 30.0)  # of the rewards of the two prompts
WANTED = (3, 2)  # tokens b and a


def _at_levels(prompt: int, tokens: Tokens) -> float:
    return LEVELS[prompt] + (tokens[0] == WANTED[prompt])


def _right(probe: TokenProbe, law: Tensor) -> list[Check]:
    share = (probe.world.expected_reward(law) - torch.tensor(LEVELS).double()).min()
    return [Check("P(right | prompt), the worst", float(share), 0.8, unlearned=0.05)]


LEVEL = TokenProbe(
    "levels", "a reply is compared with the other replies to its own prompt",
    ("a", "b"), _at_levels, _right, max_tokens=1,
)  # fmt: skip
SLOWER: dict[str, Any] = {"iterations": 40, "replies": 160, "learning_rate": 0.005}  # a critic is less noisy
SETTINGS = {
    "echo": SLOWER | {"learning_rate": 0.004},
    "way back": SLOWER,
    "law": SLOWER,
    "levels": SLOWER | {"replies": 96, "learning_rate": 0.006},
}
PROBES = tuple(replace(probe, **SETTINGS.get(probe.name, {})) for probe in (*TOKEN, LEVEL))


@dataclass(frozen=True)
class Watched(TokenProbe):
    """A probe that keeps what it was asked about.

    Attributes:
        seen: the Rollout of every call of `reward`.
    """

    seen: list[Rollout] = field(default_factory=list)

    def reward(self, rollout: Rollout) -> Tensor:
        self.seen.append(rollout)
        return super().reward(rollout)


def watched(probe: TokenProbe) -> Watched:
    """The same probe, watched."""
    return Watched(**{part.name: getattr(probe, part.name) for part in fields(probe)})


PADDED = replace(
    TOKEN[-1],
    name="padding",
    isolates="what stands at padding never counts",
    prompts=("a", "b c a"),
    score=lambda prompt, tokens: tokens[0] / 3 + (tokens[-1] == END),
    iterations=2,
    replies=16,
    max_tokens=3,
)


@dataclass(frozen=True)
class OtherPadding(TokenProbe):
    """A probe whose models pad with another token."""

    pad_id: int = PAD

    def reference(self) -> LanguageModel:
        return replace(super().reference(), pad_id=self.pad_id)

    def start(self) -> LanguageModel:
        return replace(super().start(), pad_id=self.pad_id)


def _expect_no_padding(train: Train) -> None:
    """The same short run, padded with other tokens: a law that differs has learned from padding.

    A run that is not the same twice says nothing.
    """
    parts = {part.name: getattr(PADDED, part.name) for part in fields(PADDED)}
    laws = [PADDED.law(train(OtherPadding(**parts, pad_id=token), SEED)) for token in (PAD, PAD, WORDS.index("b"))]
    once, again, other = laws
    if same_tensors(again, once) and not same_tensors(other, once):
        cause = (
            "padding counts: is the mask in the loss and in every sum over a reply, and the attention mask passed on?"
        )
        case = "the same two rounds with another pad token: P of each reply"
        fail(NAME, case, other, once, cause)


@exercise
def check_group_loop(train: Train, probes: Sequence[TokenProbe] = PROBES) -> None:
    """Check `train_group_by_hand(probe, seed) -> next_token(prompt, prefix)`: a loop that learns what each probe pays.

    Args:
        train: starts from `probe.start()`, draws replies to `probe.prompts` at temperature 1, is paid `probe.reward` of
            a Rollout less `probe.kl_coef` times the KL to `probe.reference()`, and returns the law of its model.
        probes: other than all.

    Raises:
        AssertionError: with what was seen, or with a table of the probes and what the failed ones isolate.
    """
    checks = {}
    for probe in probes:
        task = watched(probe)
        agent = train(task, SEED)
        _expect_sampled(task)
        if not callable(agent):
            asked = "a function next_token(prompt, prefix); from_language_model(policy) makes it"
            fail(NAME, f"probe {probe.name!r}", agent, asked, "it returned something else; is there a `return`?")
        checks[probe.name] = probe.judge(agent)
    _expect_no_padding(train)
    report = Report(checks, {})
    if report.failed:
        raise AssertionError(_said(report, probes))
    print(f"{NAME}: passed\n{report}")


def _expect_sampled(probe: Watched) -> None:
    """What the reward saw: whether replies were drawn as asked, and from a policy that moves."""
    case = f"probe {probe.name!r}"
    if not probe.seen:
        fail(NAME, case, "no call of probe.reward", "one a round", "the loop never asks for rewards")
    first, last = probe.seen[0], probe.seen[-1]
    if (longest := first.batch.mask.shape[1]) > probe.max_tokens:
        asked = f"at most {probe.max_tokens}, probe.max_tokens"
        fail(NAME, case, f"replies of {longest} tokens", asked, "max_new_tokens of sample_responses")
    start = probe.start()
    known = {heat: _apart(first, response_log_probs(start, first.batch, heat)) for heat in (1.0, TEMPERATURE)}
    if known[1.0] > 1e-3:
        cause = "the first replies come from another model than probe.start(), or at another temperature"
        if known[TEMPERATURE] < 1e-3:
            cause = f"replies are drawn at temperature {TEMPERATURE}: a probe is judged at 1"
        elif probe.displaced and _apart(first, response_log_probs(probe.reference(), first.batch)) < 1e-3:
            cause = "the first replies come from probe.reference(): the policy starts as probe.start()"
        apart = f"log-probs of the first replies, up to {known[1.0]:.2f} nats from those of probe.start()"
        fail(NAME, case, apart, "those of probe.start() at temperature 1", cause)
    scores = TokenProbe.reward(probe, first)
    if (
        bool((scores != scores[0]).any())
        and len(probe.seen) > 1
        and _apart(last, response_log_probs(start, last.batch)) < 1e-5
    ):
        cause = "is the model that replies the one that is trained, has the loss a gradient, and is step() called?"
        fail(NAME, case, "the last replies have the first policy's log-probs", "a policy that has moved", cause)


def _apart(rollout: Rollout, log_probs: Tensor) -> float:
    return float((rollout.log_probs - log_probs)[rollout.batch.mask].abs().max())


def _said(report: Report, probes: Sequence[TokenProbe]) -> str:
    table, _, _ = str(report).rpartition("\n\n")
    failed = [probe for probe in probes if probe.name in report.failed]
    lines = [f"{NAME}, on its probes:", table, "", "What the failed ones isolate:"]
    lines += [f"  {probe.name}: {probe.isolates}" for probe in failed]
    lines += [f"  perhaps: {cause}" for probe in failed for cause in READ[probe.name](report.checks[probe.name])]
    return "\n".join(lines)


def _read_rewards(checks: Sequence[Check]) -> list[str]:
    fell = checks[0].symptom == "-"
    return ["what is paid became rarer than it was: the sign of the advantages, or of the loss"] if fell else []


def _read_way(checks: Sequence[Check]) -> list[str]:
    (share,) = (check.got or 0.0 for check in checks)
    if share < -0.5:
        return ["the policy went away from the reference: the sign of the leash"]
    if abs(share) < 0.02:
        return ["the policy stayed where it began: there is no leash, or it is tied to probe.start()"]
    return ["not the whole way, or another one: is the log-ratio of all tokens of a reply summed, times kl_coef?"]


def _read_law(checks: Sequence[Check]) -> list[str]:
    earned = checks[1].symptom
    if earned == "+":
        return ["it earns more than the optimum does: the leash is too weak, or missing"]
    return (
        ["it earns less than the optimum: the leash is too strong, or not the KL of replies"] if earned == "-" else []
    )


def _read_levels(checks: Sequence[Check]) -> list[str]:
    return ["prompts are paid at different levels, and the baseline is not that of the reply's own prompt"]


# Of a probe that failed: the causes that its numbers tell, as those of the planted mistakes in the tests did.
READ: dict[str, Callable[[Sequence[Check]], list[str]]] = {probe.name: _read_rewards for probe in PROBES}
READ |= {"way back": _read_way, "law": _read_law, "levels": _read_levels}
