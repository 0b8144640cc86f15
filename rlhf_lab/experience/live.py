"""The checks of a run, made while it runs, and what they cost."""
