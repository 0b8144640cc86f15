"""Simulated raters of the model itself: rankings in Plackett-Luce's law with an inverse temperature of each rater."""

import numpy as np

from rlhf_lab.records import Message, Ranking

VICES = {"careful": 2.0, "noisy": 0.5, "spammer": 0.0, "malicious": -1.5}  # inverse temperatures


def judged(seed, prompts=30, replies=4, raters=VICES):
    """Rankings of `replies` replies to each prompt by each rater, and the true scores [prompts, replies] ~ N(0, 1)."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(prompts, replies))
    rankings = [
        Ranking(
            (Message("user", f"prompt {i}"),), tuple(f"reply {k}" for k in range(replies)),
            tuple((int(k),) for k in np.argsort(-temperature * truth[i] - generator.gumbel(size=replies))),
            rater=name, simulated=True,
        )
        for i in range(prompts)
        for name, temperature in raters.items()
    ]  # fmt: skip
    return rankings, truth


def errors(found, truth):
    """Root mean square over all replies of score minus truth, both minus their mean over the replies to the prompt."""
    squares = []
    for i, (replies, scores) in enumerate(zip(found.replies, found.scores, strict=True)):
        true = truth[i][[int(reply.split()[1]) for reply in replies]]
        squares += ((scores - scores.mean() - true + true.mean()) ** 2).tolist()
    return float(np.sqrt(np.mean(squares)))
