"""Pebble Town: a small world of language whose true reward is known.

`facts` what is true, `sentences` the grammar, `questions` what is asked, `skills` who answers, `corpus` the writings,
`oracle` what a reply is worth, `raters` the simulated people who rank.
"""

from rlhf_lab.worlds.town.corpus import demonstrations, documents
from rlhf_lab.worlds.town.oracle import Verdict, score, score_replies
from rlhf_lab.worlds.town.questions import SKILLS, Prompt, distinct_prompts, prompts, recognise
from rlhf_lab.worlds.town.raters import CAREFUL, HURRIED, INATTENTIVE, MALICIOUS, SPAMMER, Rater
from rlhf_lab.worlds.town.skills import BAD, DEMONSTRATOR, GOOD, WEB, Author, reference_reply

__all__ = [
    "BAD", "CAREFUL", "DEMONSTRATOR", "GOOD", "HURRIED", "INATTENTIVE", "MALICIOUS", "SKILLS", "SPAMMER", "WEB",
    "Author", "Prompt", "Rater", "Verdict", "demonstrations", "distinct_prompts", "documents", "prompts", "recognise",
    "reference_reply", "score", "score_replies",
]  # fmt: skip
