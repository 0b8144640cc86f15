"""Explorables: figures with a number that the reader drags, recomputed exactly."""
