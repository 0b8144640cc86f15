"""Facts about the loss: what it does to each log-prob, each logit and each value is what was declared, and no more."""

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
    away, got = away.detach(), pull.detach()
    expected = {name: torch.where(mask, kl_coef * weights * slope(away), 0.0) for name, slope in SLOPES.items()}
    fits = [name for name, slope in expected.items() if not unlike(got, slope, 10 * tolerance).any()]
    if estimate in fits and (estimate != "k1" or kl_coef == 0):
        return
    if "k1" in fits:
        cause = "k1 in the loss: the same pull at every token, with expectation 0, so it is noise and no leash"
    else:
        cause = f"another estimate ({fits[0]})" if fits else "another coefficient, mean or reference, or the sign"
    raise InvariantViolation(
        "leash_in_loss",
        f"a mean pull of {float(got[mask].mean()):.3g} on the log-probs from the KL in the loss",
        f"{float(expected['k3' if estimate == 'k1' else estimate][mask].mean()):.3g}, kl_coef times the slope of "
        f"{'k2 or k3' if estimate == 'k1' else estimate}",
        cause,
        "k1 belongs into the reward; in the loss kl_coef * masked_mean(kl_k3(log_probs, ref_log_probs), mask)",
        "15",
    )
