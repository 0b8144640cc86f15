"""Worlds to learn in: Pebble Town, whose true reward is known, and environments in the form of gymnasium."""
