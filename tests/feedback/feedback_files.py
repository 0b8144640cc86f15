"""Files of feedback for the tests of this folder: one good line, how lines are saved, conversations of any text."""

import json

from hypothesis import strategies as st

from rlhf_lab.records import Message

GOOD = {"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."}


def saved(folder, *lines, name="mine.jsonl"):
    path = folder / name
    path.write_bytes(
        b"".join(
            x if isinstance(x, bytes) else (json.dumps(x) if not isinstance(x, str) else x).encode() + b"\n"
            for x in lines
        )
    )
    return path


any_text = st.text(max_size=20)


def conversations(text):
    roles = st.sampled_from(["system", "user", "assistant"])
    start = st.lists(st.builds(Message, roles, text), max_size=2)
    return st.builds(lambda messages, last: (*messages, Message("user", last)), start, text)
