"""RLHF that can be derived, verified, felt and broken: offline, on a laptop, in an afternoon.

Importing the package loads nothing heavy; import the module you need, for example
`from rlhf_lab import returns` or `from rlhf_lab.recipes import rlhf`.

    maths        tensors, returns, kl, objectives, preferences, mdp, exact
    models       language_model, reward_model, checkpoints
    experience   rollouts, invariants, town, feedback, evaluation
    recipes      pretrain, sft, reward, rlhf
    for readers  plots, widgets, checks, course
"""

__version__ = "0.1.0.dev0"
