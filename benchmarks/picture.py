"""The picture of the README, from a finished demo: python run.py bench picture runs/demo-1"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from rlhf_lab.classroom import plots
from rlhf_lab.training.history import History

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Draw the two curves of rlhf_history.json side by side with KL, as data/results/whole_story.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output folder of a finished demo")
    run = parser.parse_args().run
    try:
        history = History.from_list(json.loads((run / "rlhf_history.json").read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        parser.error(f"{run} is no output folder of a finished demo, which holds rlhf_history.json: {error}")
    with plots.style():
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        plots.reward_curves(left, history)
        plots.history_curve(right, history, "kl")
        figure.savefig(ROOT / "data" / "results" / "whole_story.png", dpi=110)


if __name__ == "__main__":
    main()
