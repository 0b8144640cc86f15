"""The study behind chapter 03: DQN on CartPole-v1, seed by seed.

    python run.py bench dqn                every seed that data/results/dqn_cartpole.csv does not hold yet
    python run.py bench dqn --seeds 0 1    those seeds

Settings are the defaults of `DQNConfig`; nothing was tuned on these seeds. What is reported is the final network, not
the best one of the run: 100 fresh episodes without exploration. On the way there are 20 episodes every 50 bursts. Each
row carries a key of its config and of the code that measures, and a row with another key is computed again. One core,
one to two minutes a run.
"""

import argparse
import inspect
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rows import RESULTS as FOLDER, key_of, put_rows, read_rows
from torch import nn

from rlhf_lab.episodes import collect_episodes, make_envs, play
from rlhf_lab.recipes import DQNConfig, dqn
from rlhf_lab.returns import discounted_returns

RESULTS = FOLDER / "dqn_cartpole.csv"
ENV, SEEDS, ON_THE_WAY, AT_THE_END = "CartPole-v1", 5, 20, 100
MEASURED = ("greedy_return", "true_value", "said_value")
VARIANTS = {"dqn": DQNConfig()}  # another setting is another entry, with rows of its own


def key(variant: str) -> str:
    """What the results of a variant depend on, as a short hash: its config and the code that measures it."""
    code = [inspect.getsource(function) for function in (greedy, measure, run_rows)]
    parts = [asdict(VARIANTS[variant]), ENV, ON_THE_WAY, AT_THE_END, code]
    return key_of(parts)


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


def run_rows(variant: str, seed: int, config: DQNConfig) -> list[dict]:
    """A row for every evaluation on the way, and a last one of 100 other episodes with the final network."""
    config = replace(config, seed=seed)
    result = dqn(ENV, config, evaluate=lambda network: measure(network, seed + 10_000, config.gamma))
    measured = [row for row in result.history.to_list() if row.get(MEASURED[0]) is not None]
    rows = [{"step": row["step"], "episodes": ON_THE_WAY} | {name: row[name] for name in MEASURED} for row in measured]
    returns = play(ENV, greedy(result.network), AT_THE_END, seed + 20_000)
    rows.append(rows[-1] | {"episodes": AT_THE_END, MEASURED[0]: sum(returns) / len(returns)})
    return [{"variant": variant, "seed": seed} | row for row in rows]


def add_rows(path: Path, rows: list[dict]) -> None:
    """Put the rows of one run into the file, in the place of old ones of that run."""
    put_rows(path, [{"key": key(row["variant"])} | row for row in rows], ("variant", "seed"))


def main() -> None:
    """Compute what is missing, one run after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for variant in VARIANTS:
        for seed in options.seeds or range(SEEDS):
            wanted = {"variant": variant, "seed": str(seed), "key": key(variant)}
            if any(wanted.items() <= row.items() for row in read_rows(RESULTS)):
                print(f"{variant}, seed {seed}: there already", file=sys.stderr)
                continue
            rows = run_rows(variant, seed, VARIANTS[variant])
            add_rows(RESULTS, rows)
            print(f"{variant}, seed {seed}: {rows[-1]['greedy_return']:.1f}", flush=True)


if __name__ == "__main__":
    main()
