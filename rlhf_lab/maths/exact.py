"""A sequence world small enough to enumerate: every expectation is a sum, so every estimator can be checked.

    world = TokenWorld(vocab_size=3, length=2, scores=lambda prompt, tokens: float(sum(tokens)), eos=0)
    logits = torch.zeros(1, world.num_prefixes, 3, dtype=torch.float64)
    law = world.law(logits)                       # [prompts, N] probability of every sequence
    world.expected_reward(law)                    # [prompts]
    world.reward_gradient(logits)                 # [prompts, prefixes, V]

A *sequence* is what a reply is: `length` tokens, or fewer where `eos` came (the eos is its last token). A
*prefix* is a state in which one more token is drawn: every sequence of fewer than `length` tokens without
eos.

Sequences are numbered in lexicographic order, prefixes by length and then in lexicographic order. Without
eos, sequence number n is n written in base V, and prefix number 0 is empty, 1 .. V hold one token, the next
V^2 two. With V = 3, length = 2, eos = 0, the world of the example:

    sequences  0: (0,)   1: (1, 0)   2: (1, 1)   3: (1, 2)   4: (2, 0)   5: (2, 1)   6: (2, 2)
    prefixes   0: ()     1: (1,)     2: (2,)

A policy is a table of logits [prompts, prefixes, V]. The prompts do not interact: whatever comes per prompt
is that prompt's own, and the gradient of the mean over prompts is the gradient given here divided by their
number.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.maths.tensors import check_shapes, length_mask

Scores = Tensor | Callable[[int, tuple[int, ...]], float]
LARGEST = 200_000  # sequences; beyond this the sums take seconds and gigabytes


def enumerate_sequences(vocab_size: int, length: int, eos: int | None = None) -> list[tuple[int, ...]]:
    """All sequences that end at the first eos or after `length` tokens, in lexicographic order.

    Example:
        >>> enumerate_sequences(2, 2, eos=1)
        [(0, 0), (0, 1), (1,)]
    """
    alphabet = [(a,) for a in range(vocab_size)]
    sequences: list[tuple[int, ...]] = [()]
    for _ in range(length):
        sequences = [(*s, *more) for s in sequences for more in ([()] if eos in s else alphabet)]
    return sequences


class TokenWorld:
    """All sequences over a small vocabulary, with their scores; the module says how they are numbered.

    Args:
        vocab_size: V >= 2.
        length: most tokens of a sequence, >= 1.
        scores: the true reward of a whole sequence: [prompts, N], or [N] for all prompts alike, or a function
            (prompt number, tuple of tokens) -> float.
        prompts: number of prompts.
        eos: the token that ends a sequence; None: all have `length` tokens.

    Attributes:
        scores: [prompts, N] float64.
        sequences: [N, length] tokens, right-padded with 0.
        mask: [N, length] bool, True at real tokens.
        lengths: [N].
        ended: [N] bool, True where eos came; False where the limit cut the sequence.
        prefix_ids: [N, length] number of the prefix in which each token is drawn; 0 at padding.
        num_sequences, num_prefixes: N and the number of prefixes.

    Raises:
        ValueError: an impossible size, more than 200,000 sequences, or scores of another shape.

    Example:
        >>> world = TokenWorld(2, 2, lambda prompt, tokens: float(tokens == (1, 1)))
        >>> world.num_sequences, world.num_prefixes
        (4, 3)
        >>> world.expected_reward(world.law(torch.zeros(1, 3, 2))).tolist()
        [0.25]

    Chapter 02 and every chapter with an exact check.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        scores: Scores,
        prompts: int = 1,
        eos: int | None = None,
    ):
        _check_sizes(vocab_size, length, prompts, eos)
        self.vocab_size, self.length, self.prompts, self.eos = vocab_size, length, prompts, eos
        self._tuples = enumerate_sequences(vocab_size, length, eos)
        prefixes = sorted({s[:t] for s in self._tuples for t in range(len(s))}, key=lambda p: (len(p), p))
        self._prefix_number = {prefix: number for number, prefix in enumerate(prefixes)}
        self._sequence_number = {tokens: number for number, tokens in enumerate(self._tuples)}
        self.num_sequences, self.num_prefixes = len(self._tuples), len(prefixes)
        self.lengths = torch.tensor([len(s) for s in self._tuples])
        self.mask = length_mask(self.lengths, length)
        self.sequences = _padded(self._tuples, length)
        numbers = [[self._prefix_number[s[:t]] for t in range(len(s))] for s in self._tuples]
        self.prefix_ids = _padded(numbers, length)
        self.ended = torch.tensor([s[-1] == eos for s in self._tuples])
        self.scores = self._as_scores(scores)

    def tokens(self, number: int) -> tuple[int, ...]:
        """The tokens of sequence `number`, without padding."""
        return self._tuples[number]

    def sequence_id(self, tokens: tuple[int, ...]) -> int:
        """The number of a whole sequence; KeyError if it is none."""
        return self._sequence_number[tuple(tokens)]

    def prefix_id(self, tokens: tuple[int, ...]) -> int:
        """The number of a prefix: the row of logits for its next token; KeyError if it is none."""
        return self._prefix_number[tuple(tokens)]

    # -- a policy and its law --------------------------------------------------------------------------------

    def token_log_probs(self, logits: Tensor) -> Tensor:
        """log pi(a_t | prefix_t) of every token of every sequence, [prompts, N, length]; 0 at padding.

        Differentiable: with `scores`, `law`, `mask` and `prefix_ids` it is all an estimator needs.

        Raises:
            ValueError: logits is not [prompts, prefixes, V].
        """
        self._check_logits(logits)
        log_probs = logits.log_softmax(-1)[:, self.prefix_ids, self.sequences]
        return torch.where(self.mask, log_probs, 0)

    def law(self, logits: Tensor) -> Tensor:
        """Probability of every sequence: the exponential of the sum of its tokens' log-probs.

        Args:
            logits: [prompts, prefixes, V].

        Returns:
            [prompts, N], rows sum to 1; differentiable.

        Raises:
            ValueError: logits has another shape.
        """
        return self.token_log_probs(logits).sum(-1).exp()

    def logits(self, law: Tensor) -> Tensor:
        """A policy that has a given law: log of the probability of passing through (prefix, token).

        Every law is the law of a policy, so an optimum or a best-of-n law can be put where a policy is
        expected. Prefixes that the law never reaches get logits 0.

        Args:
            law: [prompts, N].

        Returns:
            [prompts, prefixes, V]; -inf for tokens that never follow a prefix.

        Raises:
            ValueError: law has another shape.
        """
        through = self._flow(self._check_law("law", law))
        return torch.where(through.sum(-1, keepdim=True) > 0, through.log(), 0)

    # -- expectations ----------------------------------------------------------------------------------------

    def expected_reward(self, law: Tensor, scores: Scores | None = None) -> Tensor:
        """J = sum_n law_n score_n, per prompt.

        Args:
            law: [prompts, N].
            scores: in place of the world's own, for example a proxy; any form that TokenWorld takes.

        Returns:
            [prompts].

        Raises:
            ValueError: wrong shapes.
        """
        return (self._check_law("law", law) * self._as_scores(scores).to(law)).sum(-1)

    def values(self, law: Tensor, scores: Scores | None = None) -> Tensor:
        """V(prefix) = E[score | prefix]: the exact value function where the score is all the reward there is.

        Args:
            law: [prompts, N].
            scores: in place of the world's own.

        Returns:
            [prompts, prefixes]; NaN at prefixes that the law never reaches.

        Raises:
            ValueError: wrong shapes.
        """
        law = self._check_law("law", law)
        return self._flow(law * self._as_scores(scores).to(law)).sum(-1) / self._flow(law).sum(-1)

    def score_gradient(self, logits: Tensor, weights: Tensor) -> Tensor:
        """sum_n weights_n grad log pi(sequence n): the expectation of a policy-gradient estimator.

        The expectation of f grad log pi over a law is this with weights = law * f.

        Args:
            logits: [prompts, prefixes, V].
            weights: [prompts, N].

        Returns:
            [prompts, prefixes, V] with respect to the logits.

        Raises:
            ValueError: wrong shapes.
        """
        self._check_logits(logits)
        # grad log pi(a | s) is onehot(a) - pi(. | s) in the row of s, and 0 elsewhere.
        flow = self._flow(self._check_law("weights", weights))
        return flow - logits.softmax(-1) * flow.sum(-1, keepdim=True)

    def reward_gradient(self, logits: Tensor, scores: Scores | None = None) -> Tensor:
        """Exact gradient of the expected reward: sum_n law_n score_n grad log pi(n).

        Args:
            logits: [prompts, prefixes, V].
            scores: in place of the world's own.

        Returns:
            [prompts, prefixes, V], detached; of each prompt's own J.

        Raises:
            ValueError: wrong shapes.

        Example:
            >>> world = TokenWorld(2, 1, torch.tensor([0.0, 1.0]))
            >>> world.reward_gradient(torch.zeros(1, 1, 2)).tolist()    # p (1 - p) = 1/4
            [[[-0.25, 0.25]]]

        Source: Williams 1992. Chapter 02.
        """
        logits = logits.detach()
        law = self.law(logits)
        return self.score_gradient(logits, law * self._as_scores(scores).to(law))

    def kl(self, law: Tensor, ref_law: Tensor) -> Tensor:
        """KL(law || ref_law) of whole sequences, in nats: the expected sum of the per-token KL.

        Args:
            law, ref_law: [prompts, N].

        Returns:
            [prompts]; infinite where the reference never gives what the law gives. Differentiable where neither has
            zeros.

        Raises:
            ValueError: wrong shapes.
        """
        law, ref_law = self._check_law("law", law), self._check_law("ref_law", ref_law)
        log_ratio = kl_k1(law.log(), ref_law.log())
        return (law * torch.where(law > 0, log_ratio, 0)).sum(-1)

    def kl_gradient(self, logits: Tensor, ref_law: Tensor) -> Tensor:
        """Exact gradient of KL(policy || reference): sum_n law_n log(law_n / ref_n) grad log pi(n).

        (The gradient of the other KL, KL(reference || policy), is `score_gradient(logits, -ref_law)`.)

        Args:
            logits: [prompts, prefixes, V] of the policy.
            ref_law: [prompts, N], positive where the policy is.

        Returns:
            [prompts, prefixes, V], detached.

        Raises:
            ValueError: wrong shapes.

        Chapter 10.
        """
        logits, ref_law = logits.detach(), self._check_law("ref_law", ref_law).detach()
        law = self.law(logits)
        return self.score_gradient(logits, law * torch.where(law > 0, law.log() - ref_law.log(), 0))

    # -- known optima ----------------------------------------------------------------------------------------

    def optimum(self, ref_law: Tensor, kl_coef: float, scores: Scores | None = None) -> Tensor:
        """The law that maximises expected score - kl_coef KL(law || reference).

        law*_n = ref_n exp(score_n / kl_coef) / Z,    maximum = kl_coef log Z

        Any other law falls short of the maximum by exactly kl_coef KL(law || law*).

        Args:
            ref_law: [prompts, N].
            kl_coef: > 0, in units of the score per nat.
            scores: in place of the world's own.

        Returns:
            [prompts, N].

        Raises:
            ValueError: wrong shapes, or kl_coef <= 0.

        Source: Ziebart et al. 2008 for the form; Rafailov et al. 2023, equation 4. Chapters 10 and 15.
        """
        if not kl_coef > 0:
            raise ValueError(f"kl_coef must be positive, got {kl_coef}; without a leash there is no single optimum")
        ref_law = self._check_law("ref_law", ref_law)
        return (ref_law.log() + self._as_scores(scores).to(ref_law) / kl_coef).softmax(-1)

    def shortfall(self, law: Tensor, ref_law: Tensor, kl_coef: float, scores: Scores | None = None) -> Tensor:
        """How far a policy is from the best one on its leash: the figure that the series draws for every algorithm.

        J* - J = kl_coef KL(law || law*),    J = expected score - kl_coef KL(law || reference)

        Args:
            law: [prompts, N] of the policy.
            ref_law, kl_coef, scores: as in `optimum`.

        Returns:
            [prompts] in units of the score, >= 0 up to rounding.

        Raises:
            ValueError: wrong shapes, or kl_coef <= 0.

        Example:
            >>> world = TokenWorld(2, 1, torch.tensor([0.0, 1.0]))
            >>> even = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
            >>> world.shortfall(even, even, kl_coef=0.5).item()    # 1/2 log((1 + e^2) / 2) - 1/2
            0.2169

        Chapters 05 and 15.
        """
        return kl_coef * self.kl(law, self.optimum(ref_law, kl_coef, scores))

    def best_of_n(self, ref_law: Tensor, n: int, scores: Scores | None = None) -> Tensor:
        """The law of the best of n samples of the reference; among equally good ones the draw is uniform.

        law_n(x) = ref(x) / ref(level of x) * (F(x)^n - F(x-)^n)

        F(x) is the reference's probability of a score up to that of x, F(x-) of a lower one, and the level of
        x is everything with exactly its score. With continuous scores KL(law_n || ref) is close to
        log n - (n - 1)/n, and never above; with ties far below.

        Args:
            ref_law: [prompts, N].
            n: number of samples, >= 1; 1 gives the reference.
            scores: by which the best is chosen, in place of the world's own. Scores tie only if they are
                exactly equal.

        Returns:
            [prompts, N].

        Raises:
            ValueError: wrong shapes, or n < 1.

        Example:
            >>> world = TokenWorld(2, 1, torch.tensor([0.0, 1.0]))
            >>> world.best_of_n(torch.tensor([[0.5, 0.5]]), n=2).tolist()
            [[0.25, 0.75]]

        Source: Stiennon et al. 2020; the KL: Beirami et al. 2024. Chapters 12 and 15.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        ref_law, scores = self._check_law("ref_law", ref_law), self._as_scores(scores)
        return torch.stack([_best_of_n(law, n, row) for law, row in zip(ref_law, scores, strict=True)])

    # -- helpers ---------------------------------------------------------------------------------------------

    def _flow(self, weights: Tensor) -> Tensor:
        """Sum of the weights of all sequences that draw a token in a prefix, [prompts, prefixes, V]."""
        cells = (self.prefix_ids * self.vocab_size + self.sequences)[self.mask]  # [tokens of all sequences]
        owner = torch.arange(self.num_sequences).repeat_interleave(self.lengths)
        flow = weights.new_zeros(self.prompts, self.num_prefixes * self.vocab_size)
        flow = flow.index_add(1, cells, weights[:, owner])
        return flow.view(self.prompts, self.num_prefixes, self.vocab_size)

    def _check_logits(self, logits: Tensor) -> None:
        expected = (self.prompts, self.num_prefixes, self.vocab_size)
        if logits.shape != expected:
            raise ValueError(f"logits has shape {list(logits.shape)}, expected {list(expected)}: prompts, prefixes, V")

    def _check_law(self, name: str, law: Tensor) -> Tensor:
        check_shapes(**{"scores": self.scores, name: law})
        return law

    def _as_scores(self, scores: Scores | None) -> Tensor:
        if scores is None:
            return self.scores
        numbers = [[scores(p, s) for s in self._tuples] for p in range(self.prompts)] if callable(scores) else scores
        table = torch.as_tensor(numbers, dtype=torch.float64).detach()
        expected = (self.prompts, self.num_sequences)
        if table.shape not in (expected, expected[1:]):
            raise ValueError(
                f"scores has shape {list(table.shape)}, expected {list(expected)} or {list(expected[1:])}: "
                "one for every sequence, in the order of `sequences`"
            )
        if not table.isfinite().all():
            raise ValueError("scores holds NaN or infinity, expected finite numbers")
        return table.expand(expected)


def _check_sizes(vocab_size: int, length: int, prompts: int, eos: int | None) -> None:
    if vocab_size < 2 or length < 1 or prompts < 1:
        raise ValueError(f"vocab_size must be >= 2, length and prompts >= 1, got {vocab_size}, {length} and {prompts}")
    if eos is not None and not 0 <= eos < vocab_size:
        raise ValueError(f"eos must be a token in [0, {vocab_size}), got {eos}; None means no end token")
    # With eos, (V - 1)^t sequences end after t + 1 tokens, and (V - 1)^length never do.
    count = vocab_size**length if eos is None else sum((vocab_size - 1) ** t for t in range(length + 1))
    if count > LARGEST:
        raise ValueError(
            f"vocab_size {vocab_size} and length {length} give {count} sequences; "
            f"choose a smaller world, of at most {LARGEST}"
        )


def _padded(rows: list, width: int) -> Tensor:
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def _best_of_n(ref_law: Tensor, n: int, scores: Tensor) -> Tensor:
    """The law [N] of the best of n samples for one prompt."""
    levels, level_of = scores.unique(return_inverse=True)  # ascending
    mass = ref_law.new_zeros(len(levels)).index_add(0, level_of, ref_law)
    up_to = mass.cumsum(0)
    share = mass / up_to
    # F^n - F-^n without cancellation, for a level that is a tiny part of what is up to it.
    wins = up_to.pow(n) * -torch.expm1(n * torch.log1p(-share))
    per_mass = torch.where(mass > 0, wins / mass, 0)  # also where nothing is up to a level, 0 / 0
    return ref_law * per_mass[level_of]
