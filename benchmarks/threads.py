"""How threads should wait: the time of sampling and of training for each setting, on an idle and on a busy machine.

    python run.py bench threads                five rounds, some ten minutes; rows in data/results/threads.csv
    python run.py bench threads --rounds 1     a quick look that stores nothing

Threads of OpenMP that wait may spin, which is fast while every thread has a core of its own, and waste the cores that
other programs keep from the thread that is waited for. Each setting runs in a process of its own; on the busy machine
another process computes on every core. Settings take turns, so that a slow minute hits all of them alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from rows import RESULTS as FOLDER, at_least, put_rows

RESULTS = FOLDER / "threads.csv"
CORES = os.cpu_count() or 1
NONE_SET = "as it comes"
POLICIES = {  # of PyTorch's OpenMP on Linux, which counts rounds of its waiting loop: 300,000 as it comes
    NONE_SET: {},
    "short spin": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
WORK = """
import json, statistics, time, torch
from transformers import GPT2Config, GPT2LMHeadModel
from rlhf_lab import load_language_model, sample_responses, train_sft, SFTConfig, Demonstration
from rlhf_lab.models.language_model import wrap_model
from rlhf_lab.recipes.pretrain import SIZES
tiny = load_language_model("tiny")
shape = GPT2Config(vocab_size=1024, n_positions=192, eos_token_id=2, **SIZES["medium"])
large = wrap_model(GPT2LMHeadModel(shape), tiny.tokenizer)
def sample(lm, rows, tokens):
    sample_responses(lm, ["When does the library close?"] * rows, max_new_tokens=tokens, generator=torch.Generator())
def seconds(work):
    work()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
config = SFTConfig(steps=5, demonstrations_per_step=64)
records = [Demonstration("When does the library close?", "At six.")]
times = {
    "sample 4 x 8, 121 M": seconds(lambda: sample(large, 4, 8)),
    "sample 64 x 32, 1 M": seconds(lambda: sample(tiny, 64, 32)),
    "SFT, 5 steps of 64, 1 M": seconds(lambda: train_sft(tiny, records, config)),
}
print(json.dumps(times))
"""


def settings() -> list[tuple[int, str]]:
    """(threads, policy); with one thread nobody waits."""
    more = [(threads, policy) for threads in sorted({2, min(4, CORES), CORES} - {1}) for policy in POLICIES]
    return [(1, NONE_SET), *more]


def measured(threads: int, policy: str) -> dict[str, float]:
    """Seconds of each piece of work in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env |= {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"} | POLICIES[policy]
    done = subprocess.run([sys.executable, "-c", WORK], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class Busy:
    """Another process that computes on every core, for the block."""

    def __enter__(self) -> None:
        self._others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CORES)]
        time.sleep(0.5)

    def __exit__(self, *error: object) -> None:
        for other in self._others:
            other.kill()
            other.wait()


def rounds_of(count: int) -> dict[tuple[str, str, int, str], list[float]]:
    """(machine, work, threads, policy) -> seconds, one of each round."""
    found: dict[tuple[str, str, int, str], list[float]] = {}
    for number in range(count):
        for machine in ("idle", "busy"):
            for threads, policy in settings():
                if machine == "idle":
                    times = measured(threads, policy)
                else:
                    with Busy():
                        times = measured(threads, policy)
                for work, seconds in times.items():
                    found.setdefault((machine, work, threads, policy), []).append(seconds)
                print(f"round {number + 1}, {machine}, {threads} threads, {policy}: {times}", file=sys.stderr)
    return found


def table(found: dict[tuple[str, str, int, str], list[float]]) -> list[dict[str, float | int | str | None]]:
    """Median seconds, and how many times the best setting's on the same machine and work."""
    medians = {key: statistics.median(times) for key, times in found.items()}
    rows: list[dict[str, float | int | str | None]] = []
    for (machine, work, threads, policy), seconds in medians.items():
        best = min(other for key, other in medians.items() if key[:2] == (machine, work))
        names = {"cores": CORES, "machine": machine, "work": work, "threads": threads, "policy": policy}
        rows.append(names | {"seconds": seconds, "times_the_best": seconds / best})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=at_least(1), default=5)
    count = parser.parse_args().rounds
    rows = table(rounds_of(count))
    for row in rows:
        print("  ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    if count >= 3:
        put_rows(RESULTS, rows, ("cores", "machine", "work", "threads", "policy"))


if __name__ == "__main__":
    main()
