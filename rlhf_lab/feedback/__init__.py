"""Feedback from people and from AI: records, exchange formats, storage, cleaning, aggregation."""
