"""Pebble Town: a small world of language whose true reward is known.

`facts` what is true, `sentences` the grammar, `skills` what is asked and who answers, `oracle` what a reply is worth,
`corpus` what is written, `raters` the simulated people who rank.
"""

from rlhf_lab.worlds.town.corpus import demonstrations, documents
from rlhf_lab.worlds.town.oracle import Verdict, score, score_replies
from rlhf_lab.worlds.town.raters import CAREFUL, HURRIED, INATTENTIVE, MALICIOUS, SPAMMER, Rater
from rlhf_lab.worlds.town.skills import (
    BAD,
    DEMONSTRATOR,
    GOOD,
    SKILLS,
    WEB,
    Author,
    Prompt,
    prompts,
    recognise,
    reference_reply,
)

__all__ = [
    "BAD", "CAREFUL", "DEMONSTRATOR", "GOOD", "HURRIED", "INATTENTIVE", "MALICIOUS", "SKILLS", "SPAMMER", "WEB",
    "Author", "Prompt", "Rater", "Verdict", "demonstrations", "documents", "prompts", "recognise", "reference_reply",
    "score", "score_replies",
]  # fmt: skip
