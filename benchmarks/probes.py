"""The fault x probe matrix: which planted fault fails which probe, and how, over seeds.

    python run.py bench probes                       every fault that data/results/probe_faults.csv lacks
    python run.py bench probes --print               the matrix, and the faults that no pattern tells apart
    python run.py bench probes --healthy 20          the recipes of the library on seeds 0 to 19, and their seconds
    python run.py bench probes --sb3 20              PPO of stable-baselines3 on the same

The faults are planted in two small agents made of parts: an actor-critic with PPO's loss on tables, and the same on the
tokens of short replies, with a law that is linear in what stands where. All seeds are run at once: they are rows of one
table, and Adam treats every number apart. Probes, rates and bands were chosen on seeds 100 and above.

A row is one fault on one probe: the share of `runs` that pass, and how many showed each symptom, the most frequent
first. The patterns in the library are the symptoms that at least one run in ten showed; a test compares them.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from rows import RESULTS as FOLDER, Arm, at_least, compute, options, read_rows
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.maths.intervals import proportion_interval
from rlhf_lab.worlds import probes
from rlhf_lab.worlds.probes import CONTROL, TOKEN, Probe, Trained
from rlhf_lab.worlds.token_probes import END, PAD, WORDS, TokenProbe

RESULTS = FOLDER / "probe_faults.csv"
SEEN = 0.1  # the share of runs from which on a symptom belongs to the pattern of a fault


# -- an agent for control, in parts -----------------------------------------------------------------------------------
class TableAgent:
    """An actor-critic with PPO's loss on tables; R runs side by side are R blocks of rows. A fault replaces a part.

    [T, N] throughout: T steps of N environments, of which `environments` belong to each run.
    """

    environments, steps, epochs, clip, lam, rate = 4, 16, 4, 0.2, 0.95, 0.05

    def gamma(self, gamma: float) -> float:
        return gamma

    def discounts(self, gamma: float, terminated: Tensor, over: Tensor) -> Tensor:
        """What the value after a step is multiplied with."""
        return gamma * (~terminated).float()

    def carry(self, gamma: float, over: Tensor) -> Tensor:
        """What the advantage of the step after is multiplied with, besides lambda."""
        return gamma * (~over).float()

    def rewards(self, rewards: Tensor) -> Tensor:
        return rewards

    def states(self, before: Tensor, after: Tensor) -> Tensor:
        """What is stored as the observation of a step."""
        return before

    def next_states(self, after: Tensor, begun: Tensor) -> Tensor:
        """Where to bootstrap from: what was seen after the step, or what the next step begins with."""
        return after

    def policy_sees(self, states: Tensor, count: int) -> Tensor:
        return states

    def value_sees(self, states: Tensor, count: int) -> Tensor:
        return states

    def targets(self, advantages: Tensor, values: Tensor) -> Tensor:
        return advantages + values

    def scored(self, log_law: Tensor, actions: Tensor) -> Tensor:
        """Log-probs of the actions, of [..., A]."""
        return log_law.gather(-1, actions[..., None]).squeeze(-1)

    def ratio(self, log_probs: Tensor, old: Tensor) -> Tensor:
        return torch.exp(log_probs - old)

    def policy_loss(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        return -torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)

    def value_loss(self, values: Tensor, targets: Tensor) -> Tensor:
        return (values - targets).square() / 2

    # -- what follows is healthy --------------------------------------------------------------------------------------
    def __init__(self, probe: Probe, seeds: Sequence[int], steps: int | None = None):
        self.probe, self.count, self.runs = probe, probe.kind.observations, len(seeds)
        self.envs = [probe.make(discrete=True) for _ in seeds for _ in range(self.environments)]
        for i, env in enumerate(self.envs):
            env.reset(seed=1000 * seeds[i // self.environments] + i % self.environments)
        self.block = torch.arange(len(self.envs)) // self.environments * self.count  # first row of each env's run
        self.generator = torch.Generator().manual_seed(seeds[0])
        self.logits = torch.zeros(self.runs * self.count, probe.kind.actions, requires_grad=True)
        self.table = torch.zeros(self.runs * self.count, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.logits, self.table], lr=self.rate)
        for _ in range(-(-(steps or probe.steps) // (self.environments * self.steps))):
            self.learn()

    def policy_rows(self, states: Tensor) -> Tensor:
        return self.logits[self.block + self.policy_sees(states, self.count)].log_softmax(-1)

    def values(self, states: Tensor) -> Tensor:
        return self.table[self.block + self.value_sees(states, self.count)]

    @torch.no_grad()
    def collect(self) -> list[Tensor]:
        rows = []
        for _ in range(self.steps):
            before = torch.tensor([env._state for env in self.envs])
            drawn = torch.multinomial(self.policy_rows(before).exp(), 1, generator=self.generator).squeeze(-1)
            seen = [env.step(action)[:4] for env, action in zip(self.envs, drawn.tolist(), strict=True)]
            for env, step in zip(self.envs, seen, strict=True):
                if step[2] or step[3]:
                    env.reset()
            after, rewards, terminated, truncated = (
                torch.tensor(np.array(column)) for column in zip(*seen, strict=True)
            )
            begun = torch.tensor([env._state for env in self.envs])
            rows.append((before, drawn, rewards.float(), after, begun, terminated, terminated | truncated))
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def learn(self) -> None:
        before, actions, rewards, after, begun, terminated, over = self.collect()
        gamma, states = self.gamma(self.probe.gamma), self.states(before, after)
        with torch.no_grad():
            values, later = self.values(states), self.values(self.next_states(after, begun))
            errors = self.rewards(rewards) + self.discounts(gamma, terminated, over) * later - values
            decay, running, columns = self.lam * self.carry(gamma, over), torch.zeros(len(self.envs)), []
            for t in reversed(range(self.steps)):
                running = errors[t] + decay[t] * running
                columns.append(running)
            advantages = torch.stack(columns[::-1])
            targets, old = self.targets(advantages, values), self.scored(self.policy_rows(states), actions)
        for _ in range(self.epochs):
            ratio = self.ratio(self.scored(self.policy_rows(states), actions), old)
            losses = self.policy_loss(ratio, advantages) + self.value_loss(self.values(states), targets)
            self.optimiser.zero_grad()
            (losses.sum() * self.runs / losses.numel()).backward()  # the mean of each run
            self.optimiser.step()

    def trained(self) -> list[Trained]:
        """The agent of each run, as it sees the world."""
        see = lambda f, state: int(f(torch.tensor(state), self.count))  # noqa: E731
        laws = self.logits.detach().softmax(-1).view(self.runs, self.count, -1).numpy()
        tables = self.table.detach().view(self.runs, self.count).numpy()
        return [
            Trained(
                lambda state, law=law: law[see(self.policy_sees, state)],
                lambda state, table=table: float(table[see(self.value_sees, state)]),
            )
            for law, table in zip(laws, tables, strict=True)
        ]


def late(x: Tensor) -> Tensor:
    """Each row one step later; the first one 0."""
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


Parts = dict[str, Callable]
CONTROL_FAULTS: dict[str, Parts] = {
    "a cut is taken for an end": {"discounts": lambda self, gamma, terminated, over: gamma * (~over).float()},
    "the value goes on beyond an end": {
        "discounts": lambda self, gamma, terminated, over: gamma * torch.ones(over.shape)
    },
    "gamma is forgotten": {"gamma": lambda self, gamma: 1.0},
    "what follows a step is forgotten": {
        "discounts": lambda self, gamma, terminated, over: torch.zeros(over.shape),
        "carry": lambda self, gamma, over: torch.zeros(over.shape),
    },
    "advantages leak from the next episode": {"carry": lambda self, gamma, over: gamma * torch.ones(over.shape)},
    "bootstrap from what is seen after the reset": {"next_states": lambda self, after, begun: begun},
    "rewards are one step late": {"rewards": lambda self, rewards: late(rewards)},
    "the observation after the step is stored": {"states": lambda self, before, after: after},
    "the sign of the policy's loss": {
        "policy_loss": lambda self, ratio, advantages: -TableAgent.policy_loss(self, ratio, advantages)
    },
    "the ratio has no gradient": {"ratio": lambda self, log_probs, old: torch.exp(log_probs.detach() - old)},
    "log-prob of the likeliest action": {"scored": lambda self, log_law, actions: log_law.amax(-1)},
    "the policy ignores the observation": {"policy_sees": lambda self, states, count: states * 0},
    "the value ignores the observation": {"value_sees": lambda self, states, count: states * 0},
    "the value is not trained": {"value_loss": lambda self, values, targets: values * 0},
    "the value learns advantages": {"targets": lambda self, advantages, values: advantages},
}
CONTROL_UNSEEN: dict[str, Parts] = {
    "the ratio is taken to the policy itself": {
        "ratio": lambda self, log_probs, old: torch.exp(log_probs - log_probs.detach())
    },
    "the value's loss is 20 times too small": {
        "value_loss": lambda self, values, targets: (values - targets).square() / 40
    },
}


# -- an agent for tokens, in parts ------------------------------------------------------------------------------------
class TokenAgent:
    """PPO with a leash on short replies. The law of the next token is linear in what stands where:

        logits[v] = sum over the columns that are read of weights[position of the column, token in it, v]

    so that positions and padding matter as in a transformer. R runs are R blocks; [R, B, ...] throughout. Advantages
    are rewards to go less their mean over the replies to the same prompt.
    """

    epochs, clip, rate, width = 2, 0.2, 0.1, 12

    def positions(self, real: Tensor) -> Tensor:
        """Position of each column, from which of them hold real tokens [..., W]."""
        return (real.long().cumsum(-1) - 1).clamp(min=0)

    def read(self, real: Tensor) -> Tensor:
        """Which columns are read, [..., W] bool."""
        return real

    def prompts(self, real: Tensor) -> Tensor:
        """Which columns of the prompts are there at all."""
        return real

    def sampling(self, logits: Tensor) -> Tensor:
        return logits

    def scored(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probs of the tokens [..., T], of logits [..., T + 1, V] before each token and after the last."""
        return logits[..., :-1, :].log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)

    def mask(self, mask: Tensor, tokens: Tensor) -> Tensor:
        """Which tokens belong to the reply."""
        return mask

    def scores(self, scores: Tensor) -> Tensor:
        """[R, B]"""
        return scores

    def place(self, mask: Tensor) -> Tensor:
        """[..., T], 1 where the score is paid."""
        return one_hot((mask.sum(-1) - 1).clamp(min=0), mask.shape[-1])

    def reference(self, reference: Tensor, start: Tensor) -> Tensor:
        """The weights at the other end of the leash."""
        return reference

    def penalty(self, log_ratio: Tensor) -> Tensor:
        """The leash in the reward, for a coefficient of 1."""
        return -log_ratio

    def kl_loss(self, log_ratio: Tensor) -> Tensor:
        """A leash in the loss, for a coefficient of 1."""
        return log_ratio * 0

    def to_go(self, rewards: Tensor) -> Tensor:
        return rewards.flip(-1).cumsum(-1).flip(-1)

    def policy_loss(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        return -torch.minimum(ratio * advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * advantages)

    def bonus(self, log_law: Tensor) -> Tensor:
        """What is earned besides, [..., T], of log-probs [..., T, V]."""
        return log_law[..., 0] * 0

    def reduce(self, losses: Tensor, mask: Tensor) -> Tensor:
        """A number for each run."""
        return torch.where(mask, losses, 0).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)

    # -- what follows is healthy --------------------------------------------------------------------------------------
    def __init__(self, probe: TokenProbe, seeds: Sequence[int], iterations: int | None = None):
        self.probe, self.runs = probe, len(seeds)
        self.generator = torch.Generator().manual_seed(seeds[0])
        self.ids = [[WORDS.index(word) for word in prompt.split()] for prompt in probe.prompts]
        start, reference = weights_of(probe)
        self.weights = start.repeat(self.runs, 1, 1, 1).requires_grad_()
        self.leash = self.reference(reference, start).repeat(self.runs, 1, 1, 1)
        optimiser = torch.optim.Adam([self.weights], lr=self.rate)
        rounds = iterations or probe.iterations
        for i in range(rounds):
            optimiser.param_groups[0]["lr"] = self.rate * (1 - 0.9 * i / rounds)
            self.learn(optimiser)

    def logits(self, weights: Tensor, ids: Tensor, real: Tensor) -> Tensor:
        """[R, B, V] of the next token after rows [R, B, W] of left-padded ids."""
        run = torch.arange(len(ids))[:, None, None]
        parts = weights[run, self.positions(real), ids]  # [R, B, W, V]
        return torch.where(self.read(real)[..., None], parts, 0).sum(-2)

    def asked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts in turn [R, B]: their numbers, and their left-padded ids and columns [R, B, W]."""
        number = torch.arange(self.probe.replies) % len(self.ids)
        width = max(map(len, self.ids))
        ids = torch.tensor([[PAD] * (width - len(row)) + row for row in self.ids])
        real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in self.ids])
        several = lambda x: x[number].expand(self.runs, -1, -1)  # noqa: E731
        return number.expand(self.runs, -1), several(ids), self.prompts(several(real))

    @torch.no_grad()
    def sample(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [R, B, T] and which of them belong to the reply."""
        tokens, mask = [], []
        alive = torch.ones(ids.shape[:2], dtype=torch.bool)
        for _ in range(self.probe.max_tokens):
            law = self.sampling(self.logits(self.weights, ids, real)).softmax(-1)
            token = torch.multinomial(law.flatten(0, 1), 1, generator=self.generator).view(alive.shape)
            tokens.append(token.where(alive, PAD))
            mask.append(alive)
            ids, real = torch.cat([ids, token[..., None]], -1), torch.cat([real, alive[..., None]], -1)
            alive = alive & (token != END)
        return torch.stack(tokens, -1), torch.stack(mask, -1)

    def all_logits(self, weights: Tensor, ids: Tensor, real: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """[R, B, T + 1, V] before each token, and after the last."""
        ids, real, width = torch.cat([ids, tokens], -1), torch.cat([real, mask], -1), ids.shape[-1]
        columns = [self.logits(weights, ids[..., :t], real[..., :t]) for t in range(width, ids.shape[-1] + 1)]
        return torch.stack(columns, -2)

    def learn(self, optimiser: torch.optim.Optimizer) -> None:
        number, ids, real = self.asked()
        tokens, mask = self.sample(ids, real)
        where, scores = (ids, real, tokens, mask), scores_of(self.probe, number, tokens, mask)
        mask = self.mask(mask, tokens)
        with torch.no_grad():
            old = self.scored(self.all_logits(self.weights, *where), tokens)
            ref = self.scored(self.all_logits(self.leash, *where), tokens)
            leash = self.probe.kl_coef * self.penalty(old - ref)
            rewards = torch.where(mask, leash, 0) + self.scores(scores)[..., None] * self.place(mask)
            advantages = less_the_mean(self.to_go(rewards), mask, len(self.ids))
        for _ in range(self.epochs):
            logits = self.all_logits(self.weights, *where)
            new = self.scored(logits, tokens)
            losses = self.policy_loss(torch.exp(new - old), advantages) + self.probe.kl_coef * self.kl_loss(new - ref)
            losses = losses - self.bonus(logits[..., :-1, :].log_softmax(-1))
            optimiser.zero_grad()
            self.reduce(losses, mask).sum().backward()
            optimiser.step()

    @torch.no_grad()
    def trained(self) -> list[Callable]:
        """The law of each run's next token, for a prompt without padding."""

        def next_token(prompt: str, prefix: tuple[int, ...], run: int) -> Tensor:
            row = [WORDS.index(word) for word in prompt.split()]
            real = torch.ones(1, 1, len(row) + len(prefix), dtype=torch.bool)
            real[..., : len(row)] = self.prompts(real[..., : len(row)])
            weights = self.weights.detach()[run : run + 1]
            return self.logits(weights, torch.tensor([[[*row, *prefix]]]), real)[0, 0].softmax(-1)

        return [lambda prompt, prefix, run=run: next_token(prompt, prefix, run) for run in range(self.runs)]


def less_the_mean(to_go: Tensor, mask: Tensor, prompts: int) -> Tensor:
    """Rewards to go less their mean over the replies to the same prompt that are as long at least."""
    groups = [slice(number, None, prompts) for number in range(prompts)]
    advantages = torch.zeros_like(to_go)
    for group in groups:
        rows, there = to_go[:, group], mask[:, group]
        mean = torch.where(there, rows, 0).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        advantages[:, group] = torch.where(there, rows - mean, 0)
    return advantages


@cache
def table_of_scores(probe: TokenProbe) -> Tensor:
    """[prompts, 6, ..., 6] scores by the tokens, PAD after the end."""
    world, size = probe.world, len(WORDS)
    table = torch.zeros(world.prompts, *[size] * probe.max_tokens)
    for n in range(world.num_sequences):
        table[(slice(None), *world.sequences[n].tolist())] = world.scores[:, n].float()
    return table


def scores_of(probe: TokenProbe, number: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """[R, B] scores of replies. A reply that is over is padded with PAD, as in `TokenWorld.sequences`."""
    return table_of_scores(probe)[(number, *torch.where(mask, tokens, PAD).unbind(-1))]


@cache
def weights_of(probe: TokenProbe) -> tuple[Tensor, Tensor]:
    """[width, V, V] weights of start and reference: the probe's models where there is a leash, else an even law."""
    laws = []
    for lm in (probe.start(), probe.reference()):
        weights = torch.zeros(TokenAgent.width, len(WORDS), len(WORDS))
        if probe.kl_coef > 0:
            law, (prompt,) = probes.from_language_model(lm), probe.prompts
            weights[0, WORDS.index(prompt)] = law(prompt, ()).log()
            weights[1] = torch.stack(
                [law(prompt, (token,)).log() - law(prompt, ()).log() for token in range(len(WORDS))]
            )
        laws.append(weights)
    return laws[0], laws[1]


def mean_of_replies(self: TokenAgent, losses: Tensor, mask: Tensor) -> Tensor:
    return (torch.where(mask, losses, 0).sum(-1) / mask.sum(-1).clamp(min=1)).mean(-1)


def one_late(self: TokenAgent, logits: Tensor, tokens: Tensor) -> Tensor:
    return logits[..., 1:, :].log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def columns(self: TokenAgent, real: Tensor) -> Tensor:
    return torch.arange(real.shape[-1]).expand(real.shape)


def first(mask: Tensor) -> Tensor:
    return one_hot(torch.zeros_like(mask.sum(-1)), mask.shape[-1])


NO_LEASH: Parts = {"penalty": lambda self, log_ratio: log_ratio * 0}
TOKEN_FAULTS: dict[str, Parts] = {
    "the mask leaves out the end token": {"mask": lambda self, mask, tokens: mask & (tokens != END)},
    "the score is paid at the first token": {"place": lambda self, mask: first(mask)},
    "the score is paid at every token": {"place": lambda self, mask: mask.long()},
    "a token gets its own reward alone": {"to_go": lambda self, rewards: rewards},
    "positions count the padding": {"positions": columns},
    "padding is read": {
        "positions": columns,
        "read": lambda self, real: torch.ones_like(real),
    },
    "the prompt is not read": {"prompts": lambda self, real: torch.zeros_like(real)},
    "log-probs are those of the position after": {"scored": one_late},
    "sampled at temperature 2, scored at 1": {"sampling": lambda self, logits: logits / 2},
    "the sign of the leash": {"penalty": lambda self, log_ratio: log_ratio},
    "the leash is tied to the start": {"reference": lambda self, reference, start: start},
    "there is no leash": NO_LEASH,
    "k1 in the loss in place of the leash": NO_LEASH | {"kl_loss": lambda self, log_ratio: log_ratio},
    "k3 in the loss in place of the leash": NO_LEASH
    | {"kl_loss": lambda self, log_ratio: torch.exp(-log_ratio) - 1 + log_ratio},
    "the scores are whitened": {
        "scores": lambda self, scores: (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)
    },
    "the sign of an entropy bonus": {"bonus": lambda self, log_law: 0.3 * (log_law.exp() * log_law).sum(-1)},
    "the sign of the loss": {
        "policy_loss": lambda self, ratio, advantages: -TokenAgent.policy_loss(self, ratio, advantages)
    },
}
TOKEN_UNSEEN: dict[str, Parts] = {"the mean of each reply first": {"reduce": mean_of_replies}}


# -- the matrix -------------------------------------------------------------------------------------------------------
HEALTHY = {"healthy": {}, "healthy, tokens": {}}
FAULTS = CONTROL_FAULTS | TOKEN_FAULTS
UNSEEN = CONTROL_UNSEEN | TOKEN_UNSEEN
EVERY = HEALTHY | FAULTS | UNSEEN


def cell(fault: str, probe: Probe | TokenProbe, seeds: Sequence[int], length: int | None = None) -> list[str]:
    """The symptoms of each run of a fault on a probe."""
    kind = TableAgent if isinstance(probe, Probe) else TokenAgent
    agents = type("Faulty", (kind,), EVERY[fault])(probe, seeds, length).trained()
    tables = {"discrete": True} if kind is TableAgent else {}
    return ["".join(check.symptom for check in probe.judge(agent, **tables)) for agent in agents]


def probes_of(fault: str) -> Sequence[Probe | TokenProbe]:
    return TOKEN if fault in TOKEN_FAULTS | TOKEN_UNSEEN or "tokens" in fault else CONTROL


def runs_of(fault: str) -> int:
    """Seeds of a cell: what is healthy must pass nearly always, so it is run more often."""
    return 20 if fault in HEALTHY else 10


def run(fault: str, block: int) -> list[dict]:
    """A row for each probe."""
    rows, runs = [], runs_of(fault)
    for probe in probes_of(fault):
        seen = Counter(cell(fault, probe, range(block * runs, (block + 1) * runs)))
        passed = sum(count for symptoms, count in seen.items() if not set(symptoms) - {"."})
        counts = " ".join(f"{symptoms}={count}" for symptoms, count in seen.most_common())
        rows.append({"probe": probe.name, "runs": runs, "passed": passed / runs, "symptoms": counts})
    return rows


def probe_of(fault: str) -> dict[str, float]:
    """Two iterations of the same agent on each of its probes: the numbers of its checks."""
    numbers = {}
    for probe in probes_of(fault):
        tables = isinstance(probe, Probe)
        kind, length = (TableAgent, 2 * TableAgent.environments * TableAgent.steps) if tables else (TokenAgent, 2)
        (agent,) = type("Faulty", (kind,), EVERY[fault])(probe, [0], length).trained()
        for check in probe.judge(agent, **({"discrete": True} if tables else {})):
            numbers[f"{probe.name} {check.what}"] = check.got
    return numbers


def arm(fault: str) -> Arm:
    kind, names = (TokenAgent, "epochs clip rate") if probes_of(fault) is TOKEN else (
        TableAgent, "environments steps epochs clip lam rate"
    )  # fmt: skip
    settings = {name: getattr(kind, name) for name in names.split()} | {"runs": runs_of(fault)}
    settings["probes"] = {probe.name: described(probe) for probe in probes_of(fault)}
    return Arm({"fault": fault}, settings, range(1), lambda block: run(fault, block), lambda: probe_of(fault))


def described(probe: Probe | TokenProbe) -> dict:
    """What of a probe the rows depend on."""
    names = (
        "gamma steps values better"
        if isinstance(probe, Probe)
        else "prompts kl_coef displaced max_tokens iterations replies"
    ).split()
    return {name: getattr(probe, name) for name in names}


def patterns(faults: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """{fault: {probe: the symptoms that at least SEEN of the runs showed}} of the stored rows."""
    found: dict[str, dict[str, list[str]]] = {fault: {} for fault in faults}
    for row in read_rows(RESULTS):
        if row["fault"] in found:
            counts = dict(pair.rsplit("=", 1) for pair in row["symptoms"].split(" "))
            found[row["fault"]][row["probe"]] = [s for s, n in counts.items() if int(n) >= SEEN * int(row["runs"])]
    return found


def alike(table: dict[str, dict[str, list[str]]]) -> list[tuple[str, str]]:
    """Pairs of faults that some pattern does not tell apart: on every probe they share a symptom."""
    names = list(table)
    same = lambda a, b: all(set(table[a][p]) & set(table[b][p]) for p in table[a])  # noqa: E731
    return [
        (a, b) for i, a in enumerate(names) for b in names[i + 1 :] if table[a].keys() == table[b].keys() and same(a, b)
    ]


def print_matrix() -> None:
    for kind, probes_, faults in (
        ("control", CONTROL, CONTROL_FAULTS | CONTROL_UNSEEN),
        ("tokens", TOKEN, TOKEN_FAULTS | TOKEN_UNSEEN),
    ):
        healthy = "healthy" if kind == "control" else "healthy, tokens"
        table = patterns([healthy, *faults])
        width = max(map(len, table))
        print(f"{kind:{width}}", *(f"{probe.name:>16}" for probe in probes_))
        for fault, row in table.items():
            print(f"{fault:{width}}", *(f"{'|'.join(row[probe.name]):>16}" for probe in probes_))
        pairs = alike({fault: table[fault] for fault in faults if fault in FAULTS})
        print("not told apart:", *(f"\n  {a}  /  {b}" for a, b in pairs))
        print()


# -- healthy agents ---------------------------------------------------------------------------------------------------
def ppo(probe: Probe, seed: int) -> Trained:
    from rlhf_lab.recipes.ppo import PPOConfig, train_ppo

    config = PPOConfig(
        total_steps=probe.steps, environments=8, steps=16, epochs=4, minibatch=64, gamma=probe.gamma,
        learning_rate=probe.learning_rate, final_fraction=1.0, seed=seed,
    )  # fmt: skip
    result = train_ppo(probe.env_id, config)
    return probes.from_torch(result.model, result.value)


def reinforce(probe: Probe, seed: int) -> Trained:
    from rlhf_lab.recipes.reinforce import ReinforceConfig, train_reinforce

    episodes = 32
    rates = {"learning_rate": probe.learning_rate, "value_learning_rate": probe.learning_rate}
    config = ReinforceConfig(
        iterations=probe.steps // episodes, episodes=episodes, gamma=probe.gamma, seed=seed, **rates
    )
    result = train_reinforce(probe.env_id, config)
    return probes.from_torch(result.model, result.value)


def dqn(probe: Probe, seed: int) -> Trained:
    from rlhf_lab.recipes.dqn import DQNConfig, train_dqn

    config = DQNConfig(
        total_steps=probe.steps, learning_starts=128, train_every=32, gradients=16, target_every=16, hidden=(64,),
        gamma=probe.gamma, learning_rate=probe.learning_rate, exploration=0.5, seed=seed,
    )  # fmt: skip
    network = train_dqn(probe.env_id, config).model
    q_values = torch.no_grad()(lambda seen: network(torch.as_tensor(seen)[None])[0].numpy())
    return Trained(lambda seen: q_values(seen).argmax(), lambda seen: float(q_values(seen).max()))


def q_learning(probe: Probe, seed: int) -> Trained:
    from rlhf_lab.recipes.q_learning import QLearningConfig, train_q_learning

    config = QLearningConfig(steps=probe.steps, gamma=probe.gamma, seed=seed)
    q_values = train_q_learning(lambda: probe.make(discrete=True), config).model
    return Trained(lambda seen: q_values[seen.argmax()].argmax(), lambda seen: float(q_values[seen.argmax()].max()))


def sb3(probe: Probe, seed: int) -> Trained:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "MlpPolicy", make_vec_env(probe.make, n_envs=8, seed=seed), n_steps=16, batch_size=64, n_epochs=4,
        gamma=probe.gamma, learning_rate=probe.learning_rate, seed=seed, device="cpu",
    ).learn(probe.steps)  # fmt: skip
    value = torch.no_grad()(lambda seen: float(model.policy.predict_values(torch.as_tensor(seen)[None])))
    return Trained(lambda seen: model.predict(seen)[0], value)


def rlhf(probe: TokenProbe, seed: int) -> Callable:
    from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf

    rates = {"learning_rate": probe.learning_rate, "value_learning_rate": probe.learning_rate}
    config = RLHFConfig(
        iterations=probe.iterations, prompts_per_iteration=probe.replies, minibatch_rows=probe.replies, micro_batch=64,
        epochs=2, max_new_tokens=probe.max_tokens, temperature=1.0, value="policy_head", kl_coef=probe.kl_coef,
        missing_end_penalty=0.0, check_invariants=CHECKED, seed=seed, **rates,
    )  # fmt: skip
    reference = probe.reference() if probe.displaced else None
    return probes.from_language_model(
        train_rlhf(probe.start(), probe.prompts, probe.reward, config, reference=reference).model
    )


CHECKED = True  # whether train_rlhf makes its live checks; a planted fault would be found by them first
OURS = {
    "train_ppo": ppo,
    "train_reinforce": reinforce,
    "train_dqn": dqn,
    "train_q_learning": q_learning,
    "train_rlhf": rlhf,
}


def healthy(agents: dict[str, Callable], seeds: Sequence[int]) -> None:
    """Which healthy agents fail what, and how long a probe takes."""
    for name, train in agents.items():
        passed, failures, start = 0, Counter(), time.process_time()
        chosen = TOKEN if name == "train_rlhf" else CONTROL
        for seed in seeds:
            report = probes.check_probes(train, chosen, seed)
            passed += report.passed
            failures.update((probe, report.symptoms[probe]) for probe in report.failed)
        share = proportion_interval(passed, len(seeds))
        seconds = (time.process_time() - start) / len(seeds) / len(chosen)
        passing = f"{passed}/{len(seeds)} pass all (95 %: {share.low:.2f} to {share.high:.2f})"
        print(f"{name:18} {passing}, {seconds:.2f} s a probe", dict(failures), flush=True)


def arguments(parser) -> None:
    parser.add_argument("--print", action="store_true", help="print the stored matrix")
    parser.add_argument("--healthy", type=at_least(1), metavar="SEEDS")
    parser.add_argument("--sb3", type=at_least(1), metavar="SEEDS")
    parser.add_argument("--first", type=at_least(0), default=0, help="the first of those seeds")
    parser.add_argument("--agents", choices=tuple(OURS), nargs="+", default=tuple(OURS))


if __name__ == "__main__":
    chosen = options(__doc__, arguments)
    torch.set_num_threads(1)
    if chosen.healthy:
        healthy({name: OURS[name] for name in chosen.agents}, range(chosen.first, chosen.first + chosen.healthy))
    elif chosen.sb3:
        healthy({"stable-baselines3": sb3}, range(chosen.first, chosen.first + chosen.sb3))
    elif chosen.print:
        print_matrix()
    else:
        compute(RESULTS, [arm(fault) for fault in EVERY], chosen.seeds, chosen.dry_run)
