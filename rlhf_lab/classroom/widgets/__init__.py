"""Widgets in which the reader gives feedback: `session` holds the state and the rules, the views show it."""
