"""Schematic drawings of the series, one function each."""
