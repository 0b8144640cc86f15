"""Were the tokens drawn from the law that is scored? Bets against it, which can hardly ever win if they were.

Somebody suspects that the tokens come from another law q_theta than the q that the loss believes in: tempered, cut to
the top k, without its end token. She bets on it, token by token, at the odds of q: one unit of stake becomes

    M_n = prod_{t <= n} q_theta(a_t) / q(a_t)

If q is right, the stake is a martingale: E[q_theta(a) / q(a)] = sum_a q_theta(a) = 1, whatever came before. A stake
that starts at 1 and is never negative reaches 1 / alpha with probability at most alpha, *at any time* (Ville 1939), so
the bet may be looked at after every token. If she is right, log M_n grows by KL(q_theta || q) a token.

A comparison of sampled and scored log-probs cannot see what these bets see: where replies are scored again after
sampling with top-k, both log-probs are those of the wrong law. And the mean of log q(a) + H(q) is blind where a
temperature above 1 and a truncation cancel.

False alarms: `SampledLaw` and `KLSum` get half of `ALPHA` each, so by the union bound a healthy run raises either of
them with probability at most ALPHA = 1e-3, however long it is. No other check is statistical.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.experience.invariants.violation import InvariantViolation
from rlhf_lab.maths.tensors import check_shapes

ALPHA = 1e-3  # probability of a false alarm in a run, of all statistical checks together


@dataclass(frozen=True)
class Alternative:
    """A law from which tokens may have been drawn, made from the scored law as samplers do it, in this order.

    Attributes:
        repetition_penalty: >= 1; logits of tokens seen before are divided by it where positive, else multiplied.
        temperature: > 0. top_k: most likely tokens that stay, 0 for all. top_p: least mass that stays, 1 for all.
        without_end: the end token is never drawn.
        uniform: share of draws that are uniform over all tokens, as by an exploring agent.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    without_end: bool = False
    uniform: float = 0.0

    def __str__(self) -> str:
        parts = {
            f"temperature {self.temperature:g}": self.temperature != 1,
            f"top-k {self.top_k}": self.top_k,
            f"top-p {self.top_p:g}": self.top_p < 1,
            f"repetition penalty {self.repetition_penalty:g}": self.repetition_penalty != 1,
            "no end token": self.without_end,
            f"{self.uniform:.0%} uniform draws": self.uniform,
        }
        return " and ".join(name for name, there in parts.items() if there)

    def log_law(self, logits: Tensor, seen: Tensor, end_id: int | None, order: Tensor | None = None) -> Tensor:
        """[N, V] nats, its log-probs for the scored law softmax(logits).

        Args:
            logits: [N, V]. seen: [N, V] bool, tokens that stand before. end_id: None where there is no end token.
            order: [N, V] tokens from the likeliest on, where a caller with many alternatives has sorted them.
        """
        if self.repetition_penalty != 1:
            weaker = torch.where(logits > 0, logits / self.repetition_penalty, logits * self.repetition_penalty)
            logits = torch.where(seen, weaker, logits)
        logits = logits / self.temperature
        if self.without_end and end_id is not None:
            logits = logits.index_fill(-1, torch.tensor([end_id], device=logits.device), -math.inf)
        if self.top_k or self.top_p < 1:
            if order is None or self.repetition_penalty != 1 or self.without_end:
                order = logits.argsort(descending=True)
            logits = self._cut(logits, order)
        log_law = logits.log_softmax(-1)
        if self.uniform:
            log_law = (log_law.exp() * (1 - self.uniform) + self.uniform / logits.shape[-1]).log()
        return log_law

    def _cut(self, logits: Tensor, order: Tensor) -> Tensor:
        if self.top_k:
            logits = logits.where(logits >= logits.gather(-1, order[:, self.top_k - 1 : self.top_k]), -math.inf)
        if self.top_p < 1:
            ordered = logits.softmax(-1).gather(-1, order)
            kept = ordered.cumsum(-1) - ordered < self.top_p  # the token that crosses the mass stays
            logits = logits.where(torch.zeros_like(kept).scatter(-1, order, kept), -math.inf)
        return logits


GRID = (
    *(Alternative(temperature=t) for t in (0.5, 0.7, 0.85, 1.2, 1.5, 2.0)),
    *(Alternative(top_k=k) for k in (1, 2, 3, 5, 10, 20, 30, 50, 100)),
    *(Alternative(top_p=p) for p in (0.8, 0.9, 0.95, 0.99)),
    *(Alternative(temperature=0.7, top_k=k) for k in (5, 20, 50)),
    *(Alternative(temperature=1.25, top_k=k) for k in (5, 10, 20, 30, 50)),
    *(Alternative(temperature=t, top_p=0.9) for t in (0.7, 1.25)),
    *(Alternative(repetition_penalty=r) for r in (1.1, 1.3)),
    Alternative(without_end=True),
    Alternative(uniform=0.1),
)


def log_stakes(
    logits: Tensor,
    tokens: Tensor,
    seen: Tensor,
    end_id: int | None = None,
    grid: Sequence[Alternative] = GRID,
) -> Tensor:
    """[len(grid)] log of prod q_theta(a) / q(a) over N tokens, for every alternative; nats.

    Args:
        logits: [N, V] of the scored law. tokens: [N]. seen: [N, V] bool, tokens that stand before each.

    Raises:
        InvariantViolation: a token has probability 0 under the scored law.
    """
    logits = logits.detach().double()
    scored = logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    if not scored.isfinite().all():
        place = int((~scored.isfinite()).nonzero()[0])
        raise _violation(f"token {int(tokens[place])} with probability 0 (or NaN) under the scored law", "another law")
    order = logits.argsort(descending=True)
    laws = (law.log_law(logits, seen, end_id, order).gather(-1, tokens[:, None]).squeeze(-1) for law in grid)
    return torch.stack([(law - scored).sum() for law in laws])


@dataclass
class SampledLaw:
    """Bets on all of `GRID` while a run goes on.

        M_n = mean over theta of prod_t q_theta(a_t) / q(a_t),     alarm at M_n >= 1 / alpha

    In round n a share 1 / (n (n + 1)) of the stake is bet afresh: a fault that begins late is seen although the older
    bets were lost, and M_n stays a martingale, since the shares add up to 1.

    Attributes:
        alpha: probability of a false alarm, in (0, 1), over all rounds together.
        end_id: of the end token; None where there is none.
        book: what a checkpoint keeps: rounds, tokens, and log_stakes (name of an alternative -> nats).

    Example:
        >>> law, generator = SampledLaw(), torch.Generator().manual_seed(0)
        >>> logits = torch.randn(1, 400, 8, generator=generator)
        >>> cooler = torch.multinomial((logits[0] / 0.6).softmax(-1), 1, generator=generator).T
        >>> try:
        ...     law.update(logits, cooler, torch.ones(1, 400, dtype=torch.bool))
        ... except InvariantViolation as violation:
        ...     print("temperature 0.7 explains them best" in str(violation))
        True

    Source: Ville 1939; as tests with bets: Shafer 2021, Testing by betting. Chapters 06, 07.
    """

    alpha: float = ALPHA / 2
    end_id: int | None = None
    book: dict[str, Any] = field(default_factory=dict)

    @property
    def log_wealth(self) -> float:
        """log M_n: what all bets and the stake that is still in hand are worth; 0 before the first token."""
        stakes, rounds = self.book.get("log_stakes", {}), self.book.get("rounds", 0)
        hand = -math.log(rounds + 1)
        if not stakes:
            return hand
        bets = torch.tensor(list(stakes.values()), dtype=torch.float64).logsumexp(0).item() - math.log(len(stakes))
        return max(hand, bets) + math.log1p(math.exp(-abs(hand - bets)))

    def update(
        self,
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor,
        forced: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> None:
        """One round: bet on the tokens of these rows, all that were sampled, before any row is left out.

        Args:
            logits: [B, T, V] of the scored law, temperature divided out, from the very pass that sampled: those of a
                second pass in bf16 are another law. What scoring forbids, such as the end before a declared minimum
                length, must be -inf here too.
            tokens: [B, T] as sampled. mask: [B, T] bool.
            forced: [B, T] bool, tokens that were not drawn; they are left out.
            prompts: [B, P] token ids that stand before, -1 for padding; only a repetition penalty looks at them.

        Raises:
            InvariantViolation: named "sampled_law"; says which alternative gained most.
        """
        check_shapes(logits=logits[..., 0], tokens=tokens, mask=mask)
        drawn = mask if forced is None else mask & ~forced
        rounds = self.book.get("rounds", 0) + 1
        gained = {}
        if drawn.any():
            grid = [law for law in GRID if law.top_k < logits.shape[-1]]
            seen = _seen(tokens, mask, prompts, logits.shape[-1])[drawn]
            gains = log_stakes(logits[drawn], tokens[drawn], seen, self.end_id, grid)
            gained = {str(law): float(gain) for law, gain in zip(grid, gains, strict=True)}
        before, fresh = self.book.get("log_stakes", {}), -math.log(rounds * (rounds + 1))
        self.book["log_stakes"] = {
            name: _log_add(before.get(name, -math.inf), fresh) + gain for name, gain in gained.items()
        } or before
        self.book["rounds"] = rounds if gained else rounds - 1
        self.book["tokens"] = self.book.get("tokens", 0) + int(drawn.sum())
        if self.log_wealth >= -math.log(self.alpha):
            stakes = self.book["log_stakes"]
            best = max(stakes, key=stakes.__getitem__)
            raise _violation(f"M = e^{self.log_wealth:.1f} after {self.book['tokens']} tokens", best, self.alpha)


def _log_add(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def _seen(tokens: Tensor, mask: Tensor, prompts: Tensor | None, vocabulary: int) -> Tensor:
    """[B, T, V] bool: which tokens stand before each place of a reply."""
    seen = torch.zeros(*tokens.shape, vocabulary, dtype=torch.bool, device=tokens.device)
    now = seen.new_zeros(len(tokens), vocabulary)
    rows = torch.arange(len(tokens), device=tokens.device)
    if prompts is not None:
        for column in prompts.T:
            now[rows[column >= 0], column[column >= 0]] = True
    for t in range(tokens.shape[1]):
        seen[:, t] = now
        now[rows[mask[:, t]], tokens[mask[:, t], t]] = True
    return seen


def _violation(got: str, best: str, alpha: float = ALPHA / 2) -> InvariantViolation:
    return InvariantViolation(
        "sampled_law",
        got,
        f"a stake below 1 / alpha = {1 / alpha:,.0f}; tokens of the scored law reach it once in as many runs",
        f"the tokens were not drawn from the law that is scored; of the tried ones {best} explains them best. A "
        "sampler has defaults (top-k 50, top-p, a penalty) that scoring lacks; scoring the replies again hides it",
        "sample from softmax(logits / temperature) and nothing else, and score with the same temperature",
        "06 or 07",
    )


@dataclass
class KLSum:
    """Sampled against exact KL: two bets, which need no grid.

    Under the right law the sum of k1 = log q(a) - log r(a) over all tokens of a run can hardly be very negative:

        E[prod r(a) / q(a)] = 1,   so   P(sum k1 <= -log(1 / alpha)) <= alpha,   however many tokens

    Single terms of either sign prove nothing, and a positive sum proves nothing either. Above, where both laws are
    known at a token, the price of a bet on large k1 is exact:  E[exp(k1 / 2)] = sum_a q(a)^(3/2) / r(a)^(1/2).
    Half of the stake is bet on each side.

    Attributes:
        alpha: probability of a false alarm over all updates together.
        slack: nats a token by which both bets are lowered, for log-probs that are rounded.
        book: what a checkpoint keeps: tokens, low and high (nats).

    Source: as `SampledLaw`. Chapters 06, 10.
    """

    alpha: float = ALPHA / 2
    slack: float = 0.0
    book: dict[str, Any] = field(default_factory=dict)

    @property
    def log_wealth(self) -> float:
        """log of what both bets are worth; 0 before the first token."""
        return _log_add(self.book.get("low", 0.0), self.book.get("high", 0.0)) - math.log(2)

    def update(self, log_ratio: Tensor, mask: Tensor, log_price: Tensor | None = None) -> None:
        """Bet on these tokens.

        Args:
            log_ratio: [B, T] nats, the logged k1 of policy to reference. mask: [B, T] bool.
            log_price: [B', T'] from `log_price`, for the first B' rows and T' columns; None: only the lower bet.

        Raises:
            InvariantViolation: named "kl_sum".
        """
        check_shapes(log_ratio=log_ratio, mask=mask)
        log_ratio = torch.where(mask, log_ratio.detach(), 0.0).double()
        count = int(mask.sum())
        self.book["tokens"] = self.book.get("tokens", 0) + count
        self.book["low"] = self.book.get("low", 0.0) - float(log_ratio.sum()) - self.slack * count
        if log_price is not None:
            rows, columns = log_price.shape
            part = mask[:rows, :columns]
            gains = log_ratio[:rows, :columns] / 2 - log_price.double() - self.slack
            self.book["high"] = self.book.get("high", 0.0) + float(torch.where(part, gains, 0.0).sum())
        if not self.log_wealth < -math.log(self.alpha):
            low = self.book["low"] >= self.book.get("high", 0.0)
            raise InvariantViolation(
                "kl_sum",
                f"a sum of sampled k1 of {-self.book['low']:.3g} nats over {self.book['tokens']} tokens"
                if low
                else f"sampled k1 above the exact KL, as seldom as once in e^{self.book['high']:.1f} runs",
                f"a sum above {math.log(self.alpha / 2):.1f} nats, however long the run"
                if low
                else f"at most once in {2 / self.alpha:,.0f} runs",
                "the log-ratio is the wrong way round, or the tokens are not drawn from the policy that is scored "
                "(truncated, tempered, old or forced ones)",
                "k1 = log_probs - ref_log_probs, on tokens sampled from the policy of log_probs",
                "10",
            )


def log_price(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """[...] log sum_a q(a)^(3/2) / r(a)^(1/2), nats: the exact mean of exp(k1 / 2), for the upper bet of `KLSum`.

    Example:
        >>> float(log_price(torch.zeros(3), torch.zeros(3))) < 1e-6
        True
    """
    q, r = logits.detach().double().log_softmax(-1), ref_logits.detach().double().log_softmax(-1)
    return (1.5 * q - 0.5 * r).logsumexp(-1)
