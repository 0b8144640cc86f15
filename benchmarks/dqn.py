"""The study behind chapter 03: DQN on CartPole-v1, seed by seed.

    python run.py bench dqn                every seed that data/results/dqn_cartpole.csv does not hold yet
    python run.py bench dqn --seeds 0 1    those seeds

Settings are the defaults of `DQNConfig`; nothing was tuned on these seeds. What is reported is the final network, not
the best one of the run: 100 fresh episodes without exploration. On the way there are 20 episodes every 50 bursts. One
core, one to two minutes a run.
"""

from dataclasses import replace

import torch
from rows import RESULTS as FOLDER, Arm, compute, flatten, numbers_of, options
from torch import nn

from rlhf_lab.experience.episodes import collect_episodes, make_envs, play
from rlhf_lab.maths.returns import discounted_returns
from rlhf_lab.recipes.dqn import DQNConfig, train_dqn

RESULTS = FOLDER / "dqn_cartpole.csv"
ENV, SEEDS, ON_THE_WAY, AT_THE_END = "CartPole-v1", 5, 20, 100
MEASURED = ("greedy_return", "true_value", "said_value")
VARIANTS = {"dqn": DQNConfig()}  # another setting is another entry, with rows of its own


def greedy(network: nn.Module):
    """Observations -> actions with the highest value."""
    return lambda observations: network(observations).argmax(-1)


def measure(network: nn.Module, seed: int, gamma: float) -> dict[str, float]:
    """Of fresh greedy episodes: return, discounted return from the start, and what the network says of the start."""
    episodes = collect_episodes(make_envs(ENV, ON_THE_WAY, seed), greedy(network), gamma)
    true = discounted_returns(episodes.rewards, episodes.discounts, episodes.mask)[:, 0]
    with torch.no_grad():
        said = network(episodes.observations[:, 0]).amax(-1)
    returns = torch.tensor(episodes.returns)
    return {name: float(x.mean()) for name, x in zip(MEASURED, (returns, true, said), strict=True)}


def run_rows(seed: int, config: DQNConfig, at_the_end: int = AT_THE_END) -> list[dict]:
    """A row for every evaluation on the way, and a last one of other episodes with the final network."""
    config = replace(config, seed=seed)
    result = train_dqn(ENV, config, evaluate=lambda network: measure(network, seed + 10_000, config.gamma))
    measured = [row for row in result.history.to_list() if row.get(MEASURED[0]) is not None]
    rows = [{"step": row["step"], "episodes": ON_THE_WAY} | {name: row[name] for name in MEASURED} for row in measured]
    returns = play(ENV, greedy(result.model), at_the_end, seed + 20_000)
    return [*rows, rows[-1] | {"episodes": at_the_end, MEASURED[0]: sum(returns) / len(returns)}]


def probe(config: DQNConfig) -> dict[str, float]:
    """Two bursts that learn, after the steps that fill the memory."""
    short = replace(config, total_steps=config.learning_starts + 2 * config.train_every, evaluate_every=1)
    history = train_dqn(ENV, short).history
    return dict(flatten(run_rows(0, short, at_the_end=2)[-1:])) | numbers_of(history)


def arm(variant: str) -> Arm:
    config = VARIANTS[variant]
    settings = {"config": config, "env": ENV, "on_the_way": ON_THE_WAY, "at_the_end": AT_THE_END}
    names = {"variant": variant}
    return Arm(names, settings, range(SEEDS), lambda seed: run_rows(seed, config), lambda: probe(config))


if __name__ == "__main__":
    chosen = options(__doc__)
    torch.set_num_threads(1)
    compute(RESULTS, [arm(variant) for variant in VARIANTS], chosen.seeds, chosen.dry_run)
