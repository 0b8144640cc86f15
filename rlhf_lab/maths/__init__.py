"""The mathematics: pure functions of tensors, each with its formula, its source and an exact test.

No input or output, no optimiser, no device moves, no hidden randomness.
"""
