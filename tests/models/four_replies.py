"""Four prompts with replies of different length for the tests of this folder, as text and as tokens."""

from rlhf_lab.models.tokens import encode_prompts, encode_responses, make_batch
from rlhf_lab.records import Message, as_conversation

TURNS = (Message("user", "Where is the zoo?"), Message("assistant", "By the river."), Message("user", "Thanks."))
PROMPTS = [as_conversation("Hi"), TURNS, as_conversation("When does the library close?"), as_conversation("Go")]
REPLIES = ["At six.", "You are very kind, thank you!", "", "Away"]


def rows_of(lm):
    """Token ids of prompts and responses of different lengths; the second response has no end token."""
    return encode_prompts(lm, PROMPTS), [row[: None if i != 1 else -1] for i, row in enumerate(
        encode_responses(lm, REPLIES))]  # fmt: skip


def batch_of(lm, rows=range(4)):
    prompts, responses = rows_of(lm)
    return make_batch([prompts[i] for i in rows], [responses[i] for i in rows], lm.pad_id)
