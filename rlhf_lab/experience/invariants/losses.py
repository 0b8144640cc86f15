"""Facts about the loss: what it does to each log-prob, each logit and each value is what was declared, and no more."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from rlhf_lab.experience.invariants.violation import InvariantViolation, unlike
from rlhf_lab.maths.tensors import check_shapes


def derivatives(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """d loss / d input for tensors inside its graph, which is kept; 0 where the loss does not depend on one."""
    return torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def check_fresh_gradient(network: nn.Module) -> None:
    """Before the first backward pass of a minibatch no parameter holds a gradient.

    Raises:
        InvariantViolation: named "fresh_gradient".

    Example:
        >>> check_fresh_gradient(nn.Linear(2, 2))

    Chapter 05.
    """
    left = [name for name, p in network.named_parameters() if p.grad is not None and bool(p.grad.any())]
    if left:
        raise InvariantViolation(
            "fresh_gradient",
            f"a gradient in {len(left)} parameters ({left[0]} first) before the backward pass",
            "none",
            "the gradient of an earlier minibatch is still there, so every step repeats the steps before it",
            "optimiser.zero_grad() before each minibatch, on the optimiser that steps",
            "05",
        )


def check_kept_gradient(network: nn.Module) -> None:
    """After the first micro-batch of a minibatch its gradient is still there: the micro-batches add up.

    Raises:
        InvariantViolation: named "kept_gradient".

    Chapter 05.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    if trained and not any(p.grad is not None and bool(p.grad.any()) for p in trained):
        raise InvariantViolation(
            "kept_gradient",
            "no gradient in any parameter after the first micro-batch",
            "that of the first micro-batch, to which the next ones add theirs",
            "gradients are set to 0 before each micro-batch, so only the last one is learned from",
            "optimiser.zero_grad() once a minibatch",
            "05",
        )


def check_ratio(ratio: Tensor, log_probs: Tensor, sampled: Tensor, mask: Tensor, tolerance: float) -> None:
    """The ratio is that of the policy now to the policy that sampled, at every step of the update.

        ratio = exp(log_probs - sampled)

    Args:
        ratio: [B, T] as the loss uses it. log_probs: [B, T] nats, of the policy now.
        sampled: [B, T] nats, kept from sampling. mask: [B, T] bool. tolerance: nats.

    Raises:
        InvariantViolation: named "ratio": it stays 1 although the policy has moved, is upside down, or is taken to
            log-probs of another iteration.

    Example:
        >>> log_probs, sampled = torch.tensor([[-1.0]]), torch.tensor([[-1.2]])
        >>> check_ratio(torch.exp(log_probs - sampled), log_probs, sampled, torch.tensor([[True]]), 1e-4)

    Chapters 05, 06.
    """
    check_shapes(ratio=ratio, log_probs=log_probs, sampled=sampled, mask=mask)
    ratio, moved = ratio.detach(), (log_probs - sampled).detach()
    wrong = unlike(ratio, moved.exp(), 10 * tolerance) & mask
    if not wrong.any():
        return
    if bool((ratio == 1)[mask].all()):
        cause = (
            "the ratio is exactly 1 although the policy has moved: it is taken to the policy itself, so nothing clips"
        )
    elif not (unlike(ratio, (-moved).exp(), 10 * tolerance) & mask).any():
        cause = "the ratio is upside down: old over new"
    else:
        cause = "the old log-probs are of another iteration or were scored again after a step; or exp is missing"
    row, column = (int(i) for i in wrong.nonzero()[0])
    raise InvariantViolation(
        "ratio",
        f"{float(ratio[row, column]):.4g} at token {column} of row {row}",
        f"{float(moved[row, column].exp()):.4g}, since its log-prob moved by {float(moved[row, column]):.3g} nats",
        cause,
        "exp(log_probs - old_log_probs), the old ones kept from sampling until the next rollout",
        "05 or 06",
    )


def check_surrogate(
    gradient: Tensor,
    log_probs: Tensor,
    sampled: Tensor,
    advantages: Tensor,
    mask: Tensor,
    count: Tensor | float,
    clip_epsilon: float,
    tolerance: float,
) -> None:
    """What the policy loss does to each log-prob is the derivative of the declared surrogate.

        d loss / d log pi_t = -ratio_t A_t / count,    0 where the clip has stopped the token

    On the first minibatch the ratio is 1 and this is -A_t / count. The derivative is taken at the log-probs, so
    what reaches the network by other ways (an entropy bonus, a KL over the whole vocabulary) does not count here.

    Args:
        gradient: [B, T], from `derivatives(policy_loss, log_probs)`.
        log_probs: [B, T] nats, of the policy now. sampled: [B, T] nats, kept from sampling.
        advantages: [B, T] as declared. mask: [B, T] bool.
        count: what the sum over tokens is divided by, the real tokens of the whole minibatch.
        clip_epsilon: infinity without a clip. tolerance: relative to 1 + |advantage|.

    Raises:
        InvariantViolation: named "surrogate".

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms, equation 7. Chapters 05, 06.
    """
    check_shapes(gradient=gradient, log_probs=log_probs, sampled=sampled, advantages=advantages, mask=mask)
    ratio, advantages = (log_probs - sampled).detach().exp(), advantages.detach()
    edge = 10 * tolerance  # so near to the edge of the band rounding decides which side a token is on
    over, under = ratio - 1 - clip_epsilon, 1 - clip_epsilon - ratio
    stopped = ((over > 0) & (advantages > 0)) | ((under > 0) & (advantages < 0))
    judged = (over.abs() > edge) & (under.abs() > edge)
    expected = torch.where(mask & ~stopped, -ratio * advantages, 0.0)
    got = gradient.detach() * count
    wrong = unlike(got, expected, 10 * tolerance) & judged
    if not wrong.any():
        return
    fitted = float((got * expected)[judged].sum() / expected[judged].square().sum().clamp(min=1e-30))
    row, column = (int(i) for i in wrong.nonzero()[0])
    raise InvariantViolation(
        "surrogate",
        f"a derivative of {float(got[row, column]):.4g} by the log-prob of token {column} of row {row}, times the "
        f"{float(count):g} tokens; fitted to all tokens, {fitted:.3g} of what it should be",
        f"{float(expected[row, column]):.4g}: minus ratio times advantage, 0 where the clip has stopped a token",
        _surrogate_cause(got, expected, mask, judged, fitted, tolerance),
        "-masked_mean(clipped_surrogate_objective(log_probs, old_log_probs, advantages, clip_epsilon), mask, count)",
        "05 or 06",
    )


def _surrogate_cause(
    got: Tensor, expected: Tensor, mask: Tensor, judged: Tensor, fitted: float, tolerance: float
) -> str:
    if not got.any():
        return "log-probs or ratio are cut off from the gradient: nothing is learned"
    if got[~mask].abs().sum() > 10 * tolerance:
        return "padding is trained: the mean is not masked"
    if not (unlike(got, -expected, 10 * tolerance) & judged).any():
        return "the sign: an objective is climbed, so the loss is its negative"
    if not (unlike(got, fitted * expected, 100 * tolerance) & judged).any():
        return "a constant factor: the sum over tokens is divided by something else than their number"
    return (
        "tokens weigh differently (a mean by row or by micro-batch), the advantages are not the declared ones, the "
        "clip is another, or an undeclared term such as a KL stands in the loss"
    )


def check_bonus(
    logit_gradient: Tensor,
    gradient: Tensor,
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor,
    count: Tensor | float,
    entropy_coef: float,
    tolerance: float,
) -> None:
    """What the policy loss does to the logits beside the surrogate is the declared entropy bonus, with its sign.

        d loss / d z = gradient (onehot(token) - p) + (entropy_coef / count) p (log p + H),   p = softmax(z)

    The first part is the surrogate's, since d log p(token) / dz = onehot - p; the second is minus the derivative of
    the entropy H, which the loss lowers. With entropy_coef = 0 nothing else may be there: a KL in the loss is seen.

    Args:
        logit_gradient: [B, T, V] by the logits z, which are divided by the temperature already.
        gradient: [B, T] by the log-probs of the tokens. logits: [B, T, V]. tokens: [B, T]. mask: [B, T] bool.
        count: real tokens of the whole minibatch. entropy_coef: declared, >= 0. tolerance: relative.

    Raises:
        InvariantViolation: named "bonus".

    Chapters 05, 06.
    """
    check_shapes(gradient=gradient, tokens=tokens, mask=mask, logits=logits[..., 0])
    law, logits = torch.softmax(logits.detach(), -1), torch.log_softmax(logits.detach(), -1)
    surrogate = gradient.detach()[..., None] * (one_hot(tokens, logits.shape[-1]) - law)
    # Some laws take the derivative by normalised logits; both forms agree on changes that keep the sum at 1.
    rest = logit_gradient.detach() - surrogate
    rest = torch.where(mask[..., None], rest - law * rest.sum(-1, keepdim=True), 0.0) * count
    terms = torch.where(law > 0, law * logits, 0.0)
    pull = torch.where(mask[..., None], terms - law * terms.sum(-1, keepdim=True), 0.0)
    scale = 1 + (gradient.detach() * count).abs().max()
    if not ((rest - entropy_coef * pull).abs() > 10 * tolerance * scale).any():
        return
    fitted = float((rest * pull).sum() / pull.square().sum().clamp(min=1e-30))
    alone = not ((rest - fitted * pull).abs() > 100 * tolerance * scale).any()
    if alone and fitted * entropy_coef < 0:
        cause = "the sign: a bonus is added to what is maximised, so it is subtracted from the loss"
    elif alone:
        cause = "another coefficient, or a mean over other tokens"
    else:
        cause = "an undeclared term depends on the logits: a KL in the loss, a regulariser, an entropy that is none"
    raise InvariantViolation(
        "bonus",
        f"a pull on the logits like that of {fitted:.3g} times the entropy",
        f"{entropy_coef:g} times the entropy, and nothing else beside the surrogate",
        cause,
        "loss = -mean(surrogate + entropy_coef * entropy(logits))",
        "05 or 06",
    )


def check_value_loss(
    gradient: Tensor, values: Tensor, returns: Tensor, mask: Tensor, count: Tensor | float, tolerance: float
) -> None:
    """On the first minibatch the value loss pulls each value towards its target, by the error.

        d loss / d V_t = (V_t - returns_t) / count

    Args:
        gradient: [B, T], from `derivatives(value_loss, values)`, before the value coefficient.
        values, returns: [B, T]. mask: [B, T] bool. count: real tokens of the whole minibatch. tolerance: relative.

    Raises:
        InvariantViolation: named "value_loss". Later steps may be clipped and are not judged.

    Chapters 04, 05.
    """
    check_shapes(gradient=gradient, values=values, returns=returns, mask=mask)
    expected = torch.where(mask, values.detach() - returns, 0.0)
    got = gradient.detach() * count
    if unlike(got, expected, 100 * tolerance).any():
        fitted = float((got * expected).sum() / expected.square().sum().clamp(min=1e-30))
        worst = float((got - expected).abs().max())
        raise InvariantViolation(
            "value_loss",
            f"a pull on the values that is {fitted:.3g} times the error, up to {worst:.3g} off",
            "the error of each real token, once: half of its square, averaged over the real tokens",
            "the sign, the targets, a missing half, the mean over padding or by row, or values that get no gradient",
            "masked_mean(clipped_value_loss(values, old_values, returns, clip), mask, count)",
            "04 or 05",
        )


def check_first_updates(approx_kl: float, limit: float) -> None:
    """The first updates leave the policy near the one that sampled; rates made for a small model throw a large one off.

    Args:
        approx_kl: nats a token, k3 between the policy that sampled and the one after some updates of an iteration.
        limit: nats a token.

    Raises:
        InvariantViolation: named "first_updates".

    Example:
        >>> check_first_updates(0.01, 0.18)

    Chapter 10.
    """
    if approx_kl > limit:
        raise InvariantViolation(
            "first_updates",
            f"{approx_kl:.2g} nats a token between the policy that sampled and the one after some updates",
            f"at most {limit:.2g} while a run begins",
            "the learning rate is too high for this model, so the first steps already leave the leash",
            "a tenth of learning_rate (demo: --rates 0.1); models from 100 million parameters on take 1e-5 or less",
            "10",
        )


SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # d estimate / d log pi, by the log-ratio x to the reference
    "k1": torch.ones_like,
    "k2": lambda x: x,
    "k3": lambda x: -torch.expm1(-x),
}


def check_leash_in_loss(
    pull: Tensor, away: Tensor, weights: Tensor, mask: Tensor, estimate: str, kl_coef: float, tolerance: float
) -> None:
    """A KL in the loss pulls each log-prob as the declared estimate does, and not as k1, which pulls nowhere.

        count * d leash / d log pi_t = kl_coef w_t * slope(x_t),    x = log pi - log ref

    k2 has slope x, k3 has 1 - exp(-x). k1 has slope 1 at every token: its expectation is that of grad log pi, 0.

    Args:
        pull: [B, T], from `derivatives(leash, log_probs)`, times the tokens of the whole minibatch.
        away: [B, T] x. weights: [B, T] of each token in the mean. mask: [B, T] bool.
        estimate: as declared, "k1", "k2" or "k3". kl_coef: declared. tolerance: relative.

    Raises:
        InvariantViolation: named "leash_in_loss".

    Source: Tang and Munos 2025, On a few pitfalls in KL divergence gradient estimation for RL. Chapter 15.
    """
    check_shapes(pull=pull, away=away, weights=weights, mask=mask)
    away, got, edge = away.detach(), pull.detach(), 10 * tolerance
    expected = {name: torch.where(mask, kl_coef * weights * slope(away), 0.0) for name, slope in SLOPES.items()}
    fits = [name for name, slope in expected.items() if not unlike(got, slope, edge).any()]
    if estimate in fits and (estimate != "k1" or kl_coef == 0):
        return
    declared = expected[estimate]
    fitted = float((got * declared).sum() / declared.square().sum().clamp(min=1e-30))
    if "k1" in fits:
        cause = "k1 in the loss: the same pull at every token, with expectation 0, so it is noise and no leash"
    elif fits:
        cause = f"another estimate ({fits[0]})"
    elif not unlike(got, -declared, edge).any():
        cause = "the sign: distance from the reference is paid for; a KL is added to what is minimised"
    elif not unlike(got, fitted * declared, edge).any():
        cause = f"the leash counts {fitted:.3g} times: added more than once, or with another coefficient or mean"
    else:
        cause = "another mean or another reference"
    raise InvariantViolation(
        "leash_in_loss",
        f"a mean pull of {float(got[mask].mean()):.3g} on the log-probs from the KL in the loss",
        f"{float(expected['k3' if estimate == 'k1' else estimate][mask].mean()):.3g}, kl_coef times the slope of "
        f"{'k2 or k3' if estimate == 'k1' else estimate}",
        cause,
        "k1 belongs into the reward; in the loss kl_coef * masked_mean(kl_k3(log_probs, ref_log_probs), mask)",
        "15",
    )


def check_leash_once(leash: tuple[str, float] | None, in_reward: bool = False, in_loss: bool | None = None) -> None:
    """The leash stands where it was declared: in the reward or in the loss, and not in both or in neither.

    Args:
        leash: declared for the loss, estimate and coefficient; None: it is declared for the reward, or there is none.
        in_reward: the rewards hold a KL with a coefficient that is not 0.
        in_loss: the losses hold a KL; None where they are not known yet.

    Raises:
        InvariantViolation: named "leash_in_loss".

    Example:
        >>> check_leash_once(("k3", 0.04), in_loss=True)

    Chapter 15.
    """
    if leash is not None and leash[1] == 0:
        return
    if leash is not None and in_reward:
        got, cause = "a KL in the rewards too", "the leash is counted twice, in the reward and in the loss"
    elif leash is not None and in_loss is False:
        got, cause = "no KL in the loss", "the leash is absent: nothing holds the policy to its reference"
    elif leash is None and in_loss:
        got, cause = "a KL in the loss", "a leash that was not declared; beside one in the reward it counts twice"
    else:
        return
    raise InvariantViolation(
        "leash_in_loss",
        got,
        "none in the loss" if leash is None else f"{leash[1]:g} times {leash[0]} in the loss, and nowhere else",
        cause,
        "one leash: kl_coef * kl_k1 taken off the rewards, or kl_coef * masked_mean(kl_k3, mask) added to the loss",
        "15",
    )


def check_initial_loss(losses: Tensor, tolerance: float) -> None:
    """Where the policy is its reference, DPO has no opinion yet: each pair costs log 2.

        loss = -log sigmoid(beta (0 - 0)) = log 2

    Args:
        losses: [N] nats, of the pairs of the first step. tolerance: nats.

    Raises:
        InvariantViolation: named "initial_loss".

    Example:
        >>> check_initial_loss(torch.tensor([0.6931, 0.6932]), 1e-3)

    Source: Rafailov et al. 2023, Direct Preference Optimization, equation 7. Chapter 15.
    """
    apart = (losses.detach() - math.log(2)).abs()
    if not apart.max() <= tolerance:
        pair = int(apart.argmax())
        raise InvariantViolation(
            "initial_loss",
            f"a loss of {float(losses[pair]):.4g} for pair {pair} before the first step",
            "log 2 = 0.6931 for every pair, since policy and reference are one model",
            "the reference is missing from the loss, or its log-probs are those of other replies",
            "dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta), all four in one order",
            "15",
        )


def check_distillation(
    logit_gradient: Tensor,
    logits: Tensor,
    wanted: Tensor,
    tokens: Tensor,
    mask: Tensor,
    count: int,
    credit: str,
    tolerance: float,
) -> None:
    """What distillation does to the logits of the student is the derivative of the declared reverse KL.

        token   count * d loss / d z_t = p (log p - log q - KL_t),           p, q of student and teacher
        rest    count * d loss / d z_t = G_t (onehot(token) - p),            G_t = sum from t on of log p - log q

    Args:
        logit_gradient: [B, T, V] by z = logits. logits, wanted: [B, T, V] of student and teacher, temperature divided
            out. tokens: [B, T]. mask: [B, T] bool. count: replies of the whole minibatch.
        credit: "token" or "rest". tolerance: relative.

    Raises:
        InvariantViolation: named "distillation", with the usual slip that reproduces the numbers where one does.

    Source: as `recipes.distil`. Chapter 15.
    """
    check_shapes(tokens=tokens, mask=mask, logits=logits[..., 0], wanted=wanted[..., 0])
    log_p, log_q = logits.detach().log_softmax(-1), wanted.detach().log_softmax(-1)
    p, away, got = log_p.exp(), log_p - log_q, logit_gradient.detach() * count
    score = one_hot(tokens, p.shape[-1]) - p  # d log p(token) / dz
    k1 = torch.where(mask, away.gather(-1, tokens[..., None]).squeeze(-1), 0.0)
    ahead = k1.flip(1).cumsum(1).flip(1)
    pulls = {"token": p * (away - (p * away).sum(-1, keepdim=True)), "rest": ahead[..., None] * score}
    slips = {
        "k1 in the loss: its gradient is that of log p, with expectation 0, so it is noise": score,
        "the other direction: KL(teacher || student), which belongs on replies of the teacher": p - log_q.exp(),
        "the sign: the student is pushed away from its teacher": -pulls[credit],
        "the KL of a token alone, as if it changed nothing later": k1[..., None] * score,
    }
    edge, expected = 10 * tolerance, torch.where(mask[..., None], pulls[credit], 0.0)
    if not unlike(got, expected, edge).any():
        return
    fits = (why for why, slip in slips.items() if not unlike(got, torch.where(mask[..., None], slip, 0.0), edge).any())
    fitted = float((got * expected).sum() / expected.square().sum().clamp(min=1e-30))
    raise InvariantViolation(
        "distillation",
        f"a pull on the logits that is {fitted:.3g} times that of the reverse KL, up to "
        f"{float((got - expected).abs().max()):.3g} off",
        f"that of KL(student || teacher) with credit {credit!r}, averaged over the replies",
        next(fits, "another mean or temperature, another teacher, tokens of padding, or an undeclared term"),
        "categorical_kl(logits, wanted) * mask, summed over the tokens, divided by the replies",
        "15",
    )
