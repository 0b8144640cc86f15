"""Experience: what policies did, what it was worth, and how one update learns from it."""
