"""The recorded session of chapter 08 is what its script writes, and holds what the chapter says of it."""

from collections import Counter
from dataclasses import replace

import pytest
import sessions

from rlhf_lab.feedback.events import read_events, standing
from rlhf_lab.feedback.questions import question_stem
from rlhf_lab.worlds.town.people import COLLEAGUES


@pytest.fixture(scope="module")
def stored():
    return read_events(sessions.RECORDED)


def test_the_script_writes_what_is_stored(stored):
    made = sessions.record(sessions.questions(), sessions.segments())
    untimed = [[replace(event, time=0.0, duration=0.0) for event in events] for events in (made, stored)]
    assert untimed[0] == untimed[1]
    assert [e.duration for e in made] == pytest.approx([e.duration for e in stored], rel=1e-9)


def test_everybody_answers_every_question_and_nobody_is_a_person(stored):
    assert all(event.simulated for event in stored)
    assert Counter(event.rater for event in stored) == dict.fromkeys([c.name for c in COLLEAGUES], 78)
    assert len(standing(stored)) == len(stored)


def test_the_first_dozen_shows_every_form_and_something_is_asked_twice():
    asked = sessions.questions()
    assert {question.form for question in asked[:12]} == {question.form for question in asked}
    assert len({question.form for question in asked}) == 7
    assert sum(count - 1 for count in Counter(map(question_stem, asked)).values()) == 4  # ratings; the rest is swapped
