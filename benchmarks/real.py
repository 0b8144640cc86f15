"""What the demo does with a public model and 72 preferences: what it costs, how far it goes, what is said then.

    python run.py real                         writes the model to runs/real
    python run.py bench real                   every run that data/results/real.jsonl does not hold yet
    python run.py bench real --arms default --seeds 0
    python run.py bench real --print           the verdicts of the runs that are there

A run is the command itself, `demo --model runs/real --feedback data/preferences/everyday.jsonl`, in a process of its
own; a line of the file holds its options, its stages with seconds and peak memory, every PPO iteration, the reward
model on judgements that it did not learn from, what got better and worse, and all replies to the held-out prompts.

    default     as the command is: so few judgements take the linear reward, nine iterations and a stiff leash
    network     `--few 0`: the whole network learns the reward, and stops early on held-out pairs; nine iterations too
    rates 30    `--rates 30`: the policy's rate is that of the shipped model, which is 142 times smaller

Seconds are those of one machine under whatever load it had. Two threads, some 20 minutes a run on two cores.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rows import RESULTS as FOLDER, at_least

from rlhf_lab.training.files import write_text_atomic

ROOT = Path(__file__).resolve().parents[1]
RESULTS = FOLDER / "real.jsonl"
FEEDBACK = ROOT / "data" / "preferences" / "everyday.jsonl"
ARMS = {"default": [], "network": ["--few", "0", "--iterations", "9"], "rates 30": ["--rates", "30"]}
SEEDS = {"default": (0,)}  # which are stored; --arms and --seeds take others
ITERATION = ("step", "approx_kl", "kl", "clip_fraction", "score", "length")
NEAR = 0.05  # nats a token: what the default run promises for every iteration


def run_arm(arm: str, seed: int, model: Path, feedback: Path = FEEDBACK, extra: Sequence[str] = ()) -> dict:
    """The record of one run of the command."""
    options = [*ARMS[arm], "--seed", str(seed), *extra]
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        given = ["--model", str(model), "--feedback", str(feedback), "--out", str(folder)]
        command = [sys.executable, "-m", "rlhf_lab", "demo", *given, *options]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "TQDM_DISABLE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        said = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        return {"arm": arm, "seed": seed, "options": options, "exit": done.returncode, "said": said} | read_run(folder)


def read_run(folder: Path) -> dict:
    """What a run left in its folder; less where it was stopped."""
    record = {}
    for name, wanted in (("rlhf", ITERATION), ("reward_model", None)):
        if (file := folder / f"{name}_history.json").exists():
            rows = json.loads(file.read_text())
            record[name] = [{key: short(row[key]) for key in wanted or row if key in row} for row in rows]
    if (file := folder / "metrics.json").exists():
        metrics = json.loads(file.read_text())
        record |= {name: metrics[name] for name in ("opening", "names", "seconds", "megabytes")}
        record["device"], record["labels"] = metrics["run"]["device"], metrics["run"]["labels"]
        record["changes"] = {
            label: [{key: short(change[key]) for key in change} for change in changes]
            for label, changes in metrics["changes"].items()
        }
        replies = map(json.loads, (folder / "replies.jsonl").read_text().splitlines())
        record["replies"] = [
            {"prompt": row["prompt"][-1]["content"]} | {name: kept["reply"] for name, kept in row["models"].items()}
            for row in replies
        ]
    return record


def short(value: object) -> object:
    """The same with five significant digits."""
    if isinstance(value, dict):
        return {name: short(item) for name, item in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


# -- the file ---------------------------------------------------------------------------------------------------------
def read_records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def put_record(path: Path, record: dict) -> None:
    """In the place of the run with the same arm and seed."""
    name = lambda one: (list(ARMS).index(one["arm"]), one["seed"])  # noqa: E731
    kept = [one for one in read_records(path) if name(one) != name(record)]
    lines = [json.dumps(one, ensure_ascii=False) for one in sorted([*kept, record], key=name)]
    write_text_atomic(path, "\n".join(lines) + "\n")


# -- what is printed --------------------------------------------------------------------------------------------------
def judged_loss(record: dict) -> float | None:
    """The reward model's loss in nats on judgements that it did not learn from, at the settings that were kept."""
    rows = [row for row in record.get("reward_model", ()) if row.get("held_out_loss") is not None]
    losses = [row["held_out_loss"] for row in rows]
    chosen = min if "ridge" in (rows or [{}])[0] else lambda steps: steps[-1]  # of ridges the best, of steps the last
    return chosen(losses) if losses else None


def verdicts(record: dict) -> list[str]:
    """What the run shows, a line each."""
    lines = [f"{record['arm']}, seed {record['seed']}"]
    if record["exit"]:
        return [*lines, f"  stopped: {' '.join(record['said'])}"]
    furthest = max(row["approx_kl"] for row in record["rlhf"] if "approx_kl" in row)
    lines.append(f"  approximate KL at most {furthest:.4f} nats a token in an iteration ({near(furthest)} {NEAR})")
    loss = judged_loss(record)
    if loss is not None:
        lines.append(f"  reward model: held-out loss {loss:.3f} nats, a coin's is {math.log(2):.3f}")
    lines.append(f"  {record['opening']}")
    for stage, seconds in record["seconds"].items():
        lines.append(f"  {stage:13} {seconds:6.0f} s {record['megabytes'][stage]:8,.0f} MB")
    for change in record["changes"]["RLHF - SFT"]:
        interval = change["interval"]
        found = f"{interval['mean']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]"
        lines.append(f"  RLHF - SFT {change['quantity']:15} {found} {change['verdict']}")
    return lines


def near(furthest: float) -> str:
    return "below" if furthest < NEAR else "not below"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench real", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "runs" / "real", help="folder of the model (runs/real)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(SEEDS))
    parser.add_argument("--seeds", type=at_least(0), nargs="+")
    parser.add_argument("--print", action="store_true", help="say what the runs show that are there")
    options = parser.parse_args(arguments)
    there = {(record["arm"], record["seed"]): record for record in read_records(RESULTS)}
    if options.print:
        print("\n".join(line for record in there.values() for line in verdicts(record)))
        return 0
    if not options.model.is_dir():
        parser.error(f"there is no folder {options.model}; write it with: python run.py real")
    for arm in options.arms:
        for seed in options.seeds or SEEDS.get(arm, (0,)):
            if (arm, seed) not in there:
                record = run_arm(arm, seed, options.model)
                put_record(RESULTS, record)
                print("\n".join(verdicts(record)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
