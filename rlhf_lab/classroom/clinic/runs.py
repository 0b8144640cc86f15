"""A training run of these parts: its curves, its songs, and the live checks that it violated."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_lab.classroom.clinic.parts import CLIP, KL_COEF, Parts, Prepared, forward, prepare, rows_of, values_of
from rlhf_lab.classroom.clinic.songs import (
    LENGTH,
    PROMPTS,
    Replies,
    reference_logits,
    sample,
    score_tokens,
    song,
    world,
)
from rlhf_lab.classroom.clinic.watch import Watch
from rlhf_lab.maths.kl import kl_k3
from rlhf_lab.maths.objectives import entropy, explained_variance
from rlhf_lab.maths.tensors import length_mask, masked_mean, masked_sum
from rlhf_lab.training.history import History
from rlhf_lab.training.randomness import generator_for

ITERATIONS, EPOCHS, REPLIES = 30, 3, 32


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        history: a row an iteration, every number as the (faulty) code would log it.
        samples: six of the last songs, in words.
        fired: name of a live check -> (iterations in which it was violated, first message).
        logits: [2, 121, 4] the policy at the end.
        reward, kl: exact, of the policy at the end: expected score, nats from the reference.
    """

    history: History
    samples: tuple[str, ...]
    fired: dict[str, tuple[int, str]]
    logits: Tensor
    reward: float
    kl: float

    @property
    def objective(self) -> float:
        """What the run should have made as large as it can: expected score - KL_COEF KL."""
        return self.reward - KL_COEF * self.kl


def train(parts: Parts, seed: int = 0, iterations: int = ITERATIONS, epochs: int = EPOCHS) -> Run:
    """PPO on the world of songs, with these parts."""
    logits = nn.Parameter(reference_logits().clone())
    table = nn.Parameter(torch.zeros(logits.shape[:2], dtype=torch.float64))
    optimiser = torch.optim.Adam([{"params": [logits], "lr": 0.1}, {"params": [table], "lr": 0.1}], eps=1e-5)
    generator, passes, history = generator_for(seed, "clinic"), generator_for(seed, "passes"), History()
    earlier, watch = logits.detach().clone(), Watch()
    for number in range(1, iterations + 1):
        replies = sample(parts.sampling(logits), REPLIES, generator)
        data = prepare(parts, replies, logits, table, earlier, passes)
        earlier, ratios = logits.detach().clone(), []
        for epoch in range(epochs):
            step = forward(parts, replies, data, logits, number, epoch)
            watch.look(step)
            errors = (values_of(replies, table)[:, :-1] - data.targets).square() / 2
            loss = step.policy_loss + parts.reduction(errors / 2, data.mask)
            optimiser.zero_grad()
            loss.backward(retain_graph=data.advantages.requires_grad)  # a fault may leave a graph behind
            optimiser.step()
            ratios.append(step.ratio.detach())
        history.add(step=number, **vital_signs(parts, replies, data, logits.detach(), table.detach(), ratios))
    law, ref_law = world().law(logits.detach()), world().law(reference_logits())
    songs = [f"{PROMPTS[p]}: {song(world().tokens(n))}" for p, n in zip(*_few(replies), strict=True)]
    reward, kl = world().expected_reward(law).mean(), world().kl(law, ref_law).mean()
    return Run(history, tuple(songs), watch.fired, logits.detach(), float(reward), float(kl))


def _few(replies: Replies) -> tuple[list[int], list[int]]:
    rows = [*range(3), *range(REPLIES, REPLIES + 3)]
    return replies.prompts[rows].tolist(), replies.numbers[rows].tolist()


@torch.no_grad()
def vital_signs(
    parts: Parts, replies: Replies, data: Prepared, logits: Tensor, table: Tensor, ratios: list[Tensor]
) -> dict[str, float]:
    """The numbers of one iteration; over the mask that the code believes in, where a mask is needed."""
    mask = data.mask
    rows = rows_of(replies, logits)
    now = score_tokens(logits, replies.prompts, replies.prefixes, replies.tokens, length_mask(replies.lengths, LENGTH))
    before = replies.log_probs
    outside = torch.stack([((ratio - 1).abs() > CLIP).double() for ratio in ratios]).mean(0)
    values = values_of(replies, table)[:, :-1]
    return {
        "score": float(data.scores.mean()),
        "kl": float(masked_sum(parts.log_ratio(data.old_log_probs, data.ref_log_probs), mask, dim=1).mean()),
        "entropy": float(masked_mean(entropy(rows), mask)),
        "length": float(replies.lengths.double().mean()),
        "clip_fraction": float(masked_mean(outside, mask)),
        "step_kl": float(masked_mean(kl_k3(before, now), mask)),
        "value": float(masked_mean(values, mask)),
        "explained_variance": float(explained_variance(values, data.targets, mask)),
    }
