"""The bug clinic of chapter 06: sabotaged runs to diagnose, faults to repair, exact oracles to be graded by."""
