"""Checks of the exercises, one file a topic: against the definition, with a message that names the cause."""
