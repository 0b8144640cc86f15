"""Probe environments: tiny tasks, each of which isolates one component of an agent (after A. Jones)."""
