"""A conversation with models: what they are given, what is known of each token, and what the reader judges."""

import dataclasses
import json
import random

import pytest
import torch

from rlhf_lab.classroom.widgets.chat import Chat
from rlhf_lab.classroom.widgets.dialogue import Dialogue
from rlhf_lab.classroom.widgets.plain_chat import PlainChat
from rlhf_lab.classroom.widgets.writing import KL_BORDERS, LOG_PROB_BORDERS, fit_prompt, level, token_pieces
from rlhf_lab.feedback.store import NotSaved, Store
from rlhf_lab.models.language_model import load_language_model
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.models.tokens import encode_prompts, make_batch
from rlhf_lab.records import Choice, Comment, Demonstration, Edit, Mark, Message, Ranking, Rating
from rlhf_lab.worlds import town

LIBRARY = "When does the library close?"
HOSTILE = {
    "script": "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> $x^2$ </textarea>",
    "control characters": "a\0b \x1b[31mred\x07 \u202eright to left\u202c \u2028 \r\n\t",
    "half a character": "half \ud83d of it \udc00",
    "emoji": "🐘" * 10,
    "formula": "=HYPERLINK(1)",
}


@pytest.fixture(scope="module")
def shipped():
    return load_language_model("tiny")


def nudged(lm, seed=0):
    """A model near to `lm`, and not it."""
    other = lm.copy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in other.model.parameters():
            parameter.data += 0.1 * parameter.std(correction=0) * torch.randn_like(parameter)
    return other


@pytest.fixture(scope="module")
def models(shipped):
    return {"base": shipped, "SFT": nudged(shipped, 1), "RLHF": nudged(shipped, 2)}


def texts(dialogue):
    return [[[reply.text for reply in column] for column in turn.replies] for turn in dialogue.turns]


# ---- talking ---------------------------------------------------------------------------------------------------


def test_the_conversation_goes_on_with_the_reply_that_was_chosen(models):
    dialogue = Dialogue(models, max_new_tokens=12)
    dialogue.say(LIBRARY)
    first = dialogue.turns[0]
    assert first.prompt == (Message("user", LIBRARY),)
    assert [len(column) for column in first.replies] == [1, 1, 1]
    assert dialogue.conversation()[1] == Message("assistant", first.replies[0][0].text)  # the first, until one chooses
    dialogue.again(0, 1)
    dialogue.again(0, 1)
    dialogue.leaf(0, 1, 1)
    dialogue.go_on(1)
    dialogue.say("And who runs it?")
    chosen = dialogue.turns[0].replies[1][1].text
    history = (Message("user", LIBRARY), Message("assistant", chosen), Message("user", "And who runs it?"))
    assert dialogue.turns[1].prompt == history
    dialogue.leaf(0, 1, 0)  # to look at another one afterwards changes nothing of what was said
    assert dialogue.conversation()[:3] == history
    assert dialogue.turns[0].goes_on == (1, 1)
    last = dialogue.turns[1].replies[0][0].text
    assert dialogue.transcript() == [Demonstration(LIBRARY, chosen), Demonstration(history, last)]


def test_alternatives_are_kept_and_differ(shipped):
    dialogue = Dialogue(shipped)
    dialogue.say("Write a story about Mia and a fox.")
    for _ in range(3):
        dialogue.again(0, 0)
    [[replies]] = texts(dialogue)
    assert len(replies) == 4
    assert len(set(replies)) > 1
    assert dialogue.turns[0].leaves == (3,)
    dialogue.leaf(0, 0, 0)
    assert dialogue.turns[0].leaves == (0,)
    assert texts(dialogue) == [[replies]]


def test_sampling_depends_on_seed_turn_and_model_alone(models):
    def talk(seed, blind=False, detour=False):
        dialogue = Dialogue(models, seed=seed, blind=blind, max_new_tokens=16)
        dialogue.say(LIBRARY)
        if detour:  # what is done between the turns draws nothing from their streams
            dialogue.again(0, 2)
            dialogue.rate(0, 0, 0, 1)
            dialogue.leaf(0, 2, 0)
        dialogue.go_on(dialogue._names.index("base"))
        dialogue.say("And who runs it?")
        return [
            {name: column[0].text for name, column in zip(dialogue._names, turn.replies, strict=True)}
            for turn in dialogue.turns
        ]

    assert talk(0) == talk(0) == talk(0, detour=True) == talk(0, blind=True)
    assert talk(0) != talk(1)


def test_a_new_conversation_forgets_the_old_one_and_keeps_its_judgements(shipped):
    dialogue = Dialogue(shipped, max_new_tokens=8)
    dialogue.say("Hi")
    dialogue.rate(0, 0, 0, 2)
    dialogue.restart()
    assert dialogue.turns == ()
    assert len(dialogue.events()) == 1
    with pytest.raises(ValueError, match="nothing to take back in this conversation"):
        dialogue.undo()
    dialogue.say("Hi")
    dialogue.rate(0, 0, 0, 3)  # of another reply: it replaces nothing
    assert [event.record.score for event in dialogue.events()] == [2, 3]


def test_an_interrupt_keeps_the_dialogue(models, monkeypatch):
    dialogue = Dialogue(models, max_new_tokens=8)
    dialogue.say(LIBRARY)
    before, written = dialogue.turns, []
    write = Dialogue._write

    def interrupted(self, turn, column, *rest):
        if column == 1:
            raise KeyboardInterrupt
        written.append(column)
        return write(self, turn, column, *rest)

    monkeypatch.setattr(Dialogue, "_write", interrupted)
    for step in (lambda: dialogue.say("And who runs it?"), lambda: dialogue.again(0, 1)):
        with pytest.raises(KeyboardInterrupt):
            step()
        assert dialogue.turns is before
        assert before[0].taken is None
    assert written == [0]
    monkeypatch.undo()
    dialogue.say("And who runs it?")
    assert len(dialogue.turns) == 2


# ---- what is known of each token -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_log_probs_are_those_of_scoring(tiny_lm, shipped, temperature):
    for lm in (tiny_lm, shipped):
        dialogue = Dialogue(lm, temperature=temperature, max_new_tokens=24)
        dialogue.say(LIBRARY)
        [reply] = dialogue.turns[0].replies[0]
        [ids] = encode_prompts(lm, [LIBRARY])
        row = reply.batch.response_ids[0].tolist()
        scored = response_log_probs(lm, make_batch([ids], [row], lm.pad_id), temperature)[0]
        torch.testing.assert_close(torch.tensor(reply.log_probs), scored, atol=2e-5, rtol=2e-5)
        assert len(reply.pieces) == len(row)
        assert "".join(reply.pieces) == reply.text


def test_greedy_replies_have_the_log_probs_of_temperature_one(shipped):
    dialogue = Dialogue(shipped, temperature=0)
    dialogue.say(LIBRARY)
    [reply] = dialogue.turns[0].replies[0]
    scored = response_log_probs(shipped, reply.batch)[0]
    torch.testing.assert_close(torch.tensor(reply.log_probs), scored, atol=2e-5, rtol=2e-5)


def test_pieces_are_the_text_whatever_the_tokens(tiny_lm):
    """Random tokens break characters apart, end in their midst, and hold special ones."""
    draw = random.Random(0)
    for _ in range(200):
        ids = [draw.randrange(len(tiny_lm.tokenizer)) for _ in range(draw.randrange(1, 12))]
        whole = tiny_lm.tokenizer.decode(ids[:-1] if ids[-1] == tiny_lm.end_id else ids)
        pieces = token_pieces(tiny_lm, ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == whole


def test_a_character_belongs_to_the_token_that_completes_it(tiny_gpt2):
    ids = tiny_gpt2.tokenizer("a🐘b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6  # one for each byte
    assert token_pieces(tiny_gpt2, ids) == ("a", "", "", "", "🐘", "b")


def test_kl_to_itself_is_zero(shipped):
    dialogue = Dialogue(shipped, reference=shipped)
    dialogue.say(LIBRARY)
    kl = dialogue.kl(0, 0, 0)
    assert len(kl) == len(dialogue.turns[0].replies[0][0].log_probs)
    assert max(kl) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_kl_is_the_sum_over_the_vocabulary(shipped, models, temperature):
    """Against the definition: both laws from a plain pass over prompt and reply, the sum written out."""
    dialogue = Dialogue(models, reference=shipped, temperature=temperature, max_new_tokens=16)
    dialogue.say("Where is the zoo?")
    dialogue.say("And who runs it?")
    for turn in (0, 1):
        for column, lm in enumerate(models.values()):
            reply = dialogue.turns[turn].replies[column][0]
            [prompt] = encode_prompts(lm, [dialogue.turns[turn].prompt])
            row = reply.batch.response_ids[0].tolist()
            logs = []
            for model in (lm, shipped):
                with torch.no_grad():
                    logits = model.model(torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1].double()
                logs.append(torch.log_softmax(logits / temperature, -1))
            expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
            found = torch.tensor(dialogue.kl(turn, column, 0)).double()
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            assert (column == 0) == (float(expected.max()) < 1e-6)


def test_levels_pass_at_their_borders():
    assert [level(x, KL_BORDERS) for x in (0, 0.0099, 0.01, 0.1, 0.5, 2.0, 9.0)] == [0, 0, 1, 2, 3, 4, 4]
    assert [level(x, LOG_PROB_BORDERS) for x in (0, -0.1, -0.2, -1, -3, -5)] == [0, 0, 1, 2, 3, 4]


def test_kl_needs_a_reference_with_the_same_tokens(tiny_gpt2, tiny_llama):
    dialogue = Dialogue(tiny_gpt2, max_new_tokens=8)
    dialogue.say("Hi")
    for step in (lambda: dialogue.kl(0, 0, 0), lambda: dialogue.colour_by("kl")):
        with pytest.raises(ValueError, match="there is no reference"):
            step()
    with pytest.raises(ValueError, match=r"the reference .* has another vocabulary"):
        Dialogue(tiny_gpt2, reference=tiny_llama)


# ---- the context -----------------------------------------------------------------------------------------------


def test_a_full_context_drops_the_oldest_turns_whole(shipped):
    dialogue = Dialogue(shipped, max_new_tokens=32)
    for number in range(12):
        dialogue.say(f"Tell me about place {number}, the street it is in, and when it opens.")
    dropped = [turn.dropped for turn in dialogue.turns]
    assert dropped[0] == 0
    assert dropped[-1] > 1
    assert dropped == sorted(dropped)
    for number, turn in enumerate(dialogue.turns):
        assert [m.role for m in turn.prompt] == ["user", "assistant"] * (number - turn.dropped) + ["user"]
        assert turn.prompt[0].content == dialogue.turns[turn.dropped].text
        [ids] = encode_prompts(shipped, [turn.prompt])
        assert len(ids) + 32 <= shipped.max_length
        if turn.dropped > (dialogue.turns[number - 1].dropped if number else 0):  # one more would not have fitted
            kept = dialogue.conversation()[2 * (turn.dropped - 1) : 2 * number]
            [ids] = encode_prompts(shipped, [(*kept, turn.prompt[-1])])
            assert len(ids) + 32 > shipped.max_length
            assert f"turn {turn.dropped} (“Tell me about place {turn.dropped - 1}" in dialogue.forgotten(number)
        else:
            assert dialogue.forgotten(number) == ""
    assert len(dialogue.conversation()) == 24  # the reader still has all of it


def test_all_models_get_the_prompt_that_fits_the_smallest(shipped):
    small = shipped.copy()
    small.model.config.max_position_embeddings = 96
    for models in ({"large": shipped, "small": small}, {"small": small, "large": shipped}):
        dialogue = Dialogue(models, max_new_tokens=16)
        for _ in range(6):
            dialogue.say("Where is the zoo, and when does it open?")
        assert dialogue.turns[-1].dropped > 0
        assert len(encode_prompts(small, [dialogue.turns[-1].prompt])[0]) + 16 <= 96


def test_the_last_message_that_fits_does_and_the_next_does_not(shipped):
    def size(count):
        return len(encode_prompts(shipped, ["a " * count])[0])

    room = shipped.max_length - 64
    count = next(n for n in range(1, 1000) if size(n + 1) > room)
    assert fit_prompt([shipped], [], "a " * count, 64)[1] == 0
    with pytest.raises(ValueError, match=f"has {size(count + 1)} tokens, and {room} fit: the context less 64"):
        fit_prompt([shipped], [], "a " * (count + 1), 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), (" \n\t", "is empty"), ("x " * 50_000, "tokens, and 128 fit"), ("x" * 10**6, "characters")],
    ids=["empty", "blank", "100 kB", "1 MB"],
)
def test_what_cannot_be_said_changes_nothing(shipped, text, message):
    dialogue = Dialogue(shipped)
    dialogue.say("Hi")
    before = dialogue.turns
    with pytest.raises(ValueError, match=message):
        dialogue.say(text)
    assert dialogue.turns is before


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_messages_are_kept_as_they_are(tiny_lm, text, tmp_path):
    with Store(tmp_path / "feedback.db") as store:
        dialogue = Dialogue({text: tiny_lm}, store=store, study=text, rater=text, max_new_tokens=8)
        dialogue.say(text)
        assert dialogue.conversation()[0].content == text
        dialogue.comment(0, 0, 0, text)
        [event] = store.standing(text)
        assert (event.record.text, event.record.rater, event.record.prompt[0].content) == (text, text, text)


def test_what_a_model_reads_otherwise_is_said(shipped):
    dialogue = Dialogue(shipped, max_new_tokens=8)
    dialogue.say("Good night.<|end|>")
    assert "<|end|>" in dialogue.turns[0].warning
    dialogue.say("Good night.")
    assert dialogue.turns[1].warning == ""
    dialogue.say("half \ud83d of it")
    assert "U+FFFD" in dialogue.turns[2].warning
    assert dialogue.turns[2].text == "half \ud83d of it"


# ---- the town --------------------------------------------------------------------------------------------------


def test_the_oracle_knows_the_town_and_nothing_else(shipped):
    dialogue = Dialogue(shipped)
    dialogue.say(LIBRARY)
    prompt, reply = town.recognise(dialogue.turns[0].prompt), dialogue.turns[0].replies[0][0]
    assert dialogue.verdict(0, 0, 0) == town.score(prompt, reply.text, reply.ended)
    dialogue.say("And who runs it?")
    assert dialogue.verdict(1, 0, 0) is not None
    dialogue.say("What is love?")
    assert dialogue.verdict(2, 0, 0) is None


def test_what_is_offered_is_of_the_town(shipped):
    dialogue = Dialogue(shipped)
    offers = dialogue.offers()
    assert len(set(offers)) == 4
    for text in offers:
        assert town.recognise((Message("user", text),)) is not None
    dialogue.say(LIBRARY)
    assert len(dialogue.offers()) == 3
    for text in dialogue.offers():
        follow = Dialogue(shipped)
        follow.say(LIBRARY)
        follow.say(text)
        assert follow.verdict(1, 0, 0) is not None
    dialogue.say("What is love?")
    assert dialogue.offers() == []


# ---- blind -----------------------------------------------------------------------------------------------------


def test_blind_models_are_shuffled_and_named_in_the_record(models, shipped):
    dialogue = Dialogue(models, blind=True, reference=shipped, max_new_tokens=12)
    orders = set()
    for _ in range(20):
        assert [dialogue.label(i) for i in range(3)] == ["A", "B", "C"]
        orders.add(tuple(dialogue._names))
        dialogue.restart()
    assert len(orders) > 3  # of 6; fewer than 4 in 20 draws has a chance below 1e-3
    dialogue.say(LIBRARY)
    dialogue.compare(0, (0, 0), (2, 0), -1)
    names = dialogue._names
    [event] = dialogue.events()
    choice = event.record
    assert (choice.left_source, choice.right_source, choice.outcome) == (names[0], names[2], -1)
    named = Dialogue({name: models[name] for name in names}, max_new_tokens=12)
    assert [choice.left, choice.right] == [dialogue.turns[0].replies[i][0].text for i in (0, 2)]
    assert event.widget.endswith("blind")
    assert event.question == f"chat/{names[0]}+{names[2]}/1"
    assert not any(name in dialogue.says + dialogue.opinions.undoes for name in models)
    with pytest.raises(ValueError, match="after revealing"):  # a column of zeros would be the reference
        dialogue.colour_by("kl")
    dialogue.reveal()
    dialogue.colour_by("kl")
    assert [dialogue.label(i) for i in range(3)] == names == [named.label(i) for i in range(3)]
    dialogue.rate(0, 0, 0, 3)
    assert not dialogue.events()[-1].widget.endswith("blind")
    dialogue.restart()
    assert dialogue.blind
    assert dialogue.colour == "none"


# ---- judging ---------------------------------------------------------------------------------------------------


def judge_everything(dialogue):
    dialogue.say(LIBRARY)
    dialogue.again(0, 1)
    reply = dialogue.turns[0].replies[1][1].text
    dialogue.rate(0, 1, 1, 4)
    dialogue.edit(0, 1, 1, "The library closes at six.")
    dialogue.mark(0, 1, 1, [[0, 3]])
    dialogue.comment(0, 1, 1, "Too short.")
    dialogue.compare(0, [0, 0], [1, 1], 1)
    dialogue.rank(0, [[[1, 1]], [[0, 0], [1, 0]]])
    return reply


def test_what_is_judged_reaches_the_store(models, tmp_path):
    two = {name: models[name] for name in ("base", "SFT")}
    path = tmp_path / "feedback.db"
    time = iter(range(0, 10_000, 5))
    dialogue = Dialogue(two, store=path, study="talk", rater="Ada", max_new_tokens=12, clock=lambda: float(next(time)))
    reply = judge_everything(dialogue)
    prompt = (Message("user", LIBRARY),)
    base, first = (dialogue.turns[0].replies[i][0].text for i in (0, 1))
    who = {"rater": "Ada"}
    with Store(path) as store:  # another one: what is there is on the disk
        events = store.standing("talk")
    assert [event.record for event in events] == [
        Rating(prompt, reply, 4, 1, 5, **who),
        Edit(prompt, reply, "The library closes at six.", **who),
        Mark(prompt, reply, ((0, 3),), **who),
        Comment(prompt, reply, "Too short.", **who),
        Choice(prompt, base, reply, 1, "base", "SFT", **who),
        Ranking(prompt, (base, first, reply), ((2,), (0, 1)), **who),
    ]
    assert [e.question for e in events[:4]] == ["chat/SFT.2/1"] * 4
    assert [e.question for e in events[4:]] == ["chat/base+SFT.2/1", "chat/base+SFT.1+SFT.2/1"]
    assert [e.duration for e in events] == [5, 10, 15, 20, 25, 30]  # seconds since the latest of the replies came
    assert [e.shown for e in events] == [(0,)] * 4 + [(0, 1), (0, 1, 2)]
    assert {(e.study, e.widget, e.simulated) for e in events} == {("talk", "chat 1", False)}


def test_a_second_judgement_replaces_the_first_and_undo_brings_it_back(models, tmp_path):
    dialogue = Dialogue(models, store=tmp_path / "feedback.db", max_new_tokens=8)
    dialogue.say(LIBRARY)
    dialogue.say("And who runs it?")
    dialogue.rate(0, 0, 0, 2)
    dialogue.rate(1, 0, 0, 5)
    dialogue.rate(0, 0, 0, 4)

    def scores():
        return [event.record.score for event in dialogue.store.standing("chat")]

    assert scores() == [5, 4]
    assert dialogue.judgement("rate", 0, (0, 0)).score == 4
    assert dialogue.opinions.undoes == "4 of 5 for base"
    dialogue.undo()
    assert dialogue.says == "Took back: 4 of 5 for base."
    assert scores() == [2, 5]
    dialogue.rate(0, 0, 0, 1)
    assert scores() == [5, 1]
    for _ in range(3):
        dialogue.undo()
    assert scores() == []
    assert dialogue.judgement("rate", 0, (0, 0)) is None
    with pytest.raises(ValueError, match="nothing to take back"):
        dialogue.undo()
    dialogue.compare(0, (0, 0), (1, 0), 1)
    dialogue.compare(0, (1, 0), (0, 0), 1)  # the same two, the other way round
    [choice] = [event.record for event in dialogue.store.standing("chat")]
    assert (choice.outcome, choice.left_source, choice.right_source) == (-1, "base", "SFT")
    assert dialogue.opinions.undoes == "SFT is better"
    dialogue.all_bad(0)
    assert dialogue.judgement("rank", 0).status == "all_bad"


def test_what_cannot_be_stored_is_kept_and_stored_later(shipped, tmp_path, monkeypatch):
    dialogue = Dialogue(shipped, store=tmp_path / "feedback.db", max_new_tokens=8)
    dialogue.say("Hi")
    with monkeypatch.context() as broken:

        def full(self, *events):
            raise NotSaved("feedback.db cannot be written (no space). Free some space")

        broken.setattr(Store, "add", full)
        dialogue.rate(0, 0, 0, 2)
        dialogue.rate(0, 0, 0, 3)
        assert "Free some space" in dialogue.opinions.error
        assert dialogue.opinions.unsaved == 2
        assert [event.record.score for event in dialogue.events()] == [3]
    dialogue.save()
    assert dialogue.opinions.error == ""
    assert dialogue.opinions.unsaved == 0
    assert [event.record.score for event in dialogue.store.standing()] == [3]


WRONG = {
    "turn": lambda d: d.rate(1, 0, 0, 3),
    "negative turn": lambda d: d.rate(-1, 0, 0, 3),
    "column": lambda d: d.again(0, 3),
    "true is no column": lambda d: d.again(0, True),
    "alternative": lambda d: d.leaf(0, 0, 1),
    "score": lambda d: d.rate(0, 0, 0, 6),
    "score, none": lambda d: d.rate(0, 0, 0, None),
    "no outcome": lambda d: d.compare(0, (0, 0), (1, 0), None),
    "span": lambda d: d.mark(0, 0, 0, [[0, 10_000]]),
    "no spans": lambda d: d.mark(0, 0, 0, 5),
    "edit": lambda d: d.edit(0, 0, 0, " "),
    "comment": lambda d: d.comment(0, 0, 0, 3),
    "comment, too long": lambda d: d.comment(0, 0, 0, "é" * 10**7),
    "the same reply": lambda d: d.compare(0, (0, 0), (0, 0), 1),
    "outcome": lambda d: d.compare(0, (0, 0), (1, 0), 2),
    "place": lambda d: d.compare(0, 0, (1, 0), 1),
    "order, partial": lambda d: d.rank(0, [[(0, 0)]]),
    "order, twice": lambda d: d.rank(0, [[(0, 0), (0, 0)], [(1, 0)], [(2, 0)]]),
    "colour": lambda d: d.colour_by("red"),
    "going on": lambda d: d.go_on(7),
}


@pytest.mark.parametrize("step", WRONG.values(), ids=WRONG)
def test_what_is_no_answer_is_refused(models, step, tmp_path):
    dialogue = Dialogue(models, store=tmp_path / "feedback.db", max_new_tokens=8)
    dialogue.say(LIBRARY)
    before = dialogue.turns
    with pytest.raises(ValueError, match=r"expected|choose|give|Write|Shorten"):
        step(dialogue)
    assert dialogue.turns == before
    assert dialogue.events() == []
    assert dialogue.opinions.unsaved == 0


def test_one_reply_cannot_be_ranked(shipped):
    dialogue = Dialogue(shipped, max_new_tokens=8)
    with pytest.raises(ValueError, match="nothing was said yet"):
        dialogue.go_on(0)
    dialogue.say("Hi")
    for step in (lambda: dialogue.rank(0, [[(0, 0)]]), lambda: dialogue.all_bad(0)):
        with pytest.raises(ValueError, match="one reply only"):
            step()


SETTINGS = {
    "no models": (lambda lm: ({},), {}, "at least one"),
    "the name of a model": (lambda lm: ("tiny",), {}, "expected a LanguageModel"),
    "a name that is no text": (lambda lm: ({1: lm},), {}, "has the name 1"),
    "a blank name": (lambda lm: ({" ": lm},), {}, "has the name ' '"),
    "no model under a name": (lambda lm: ({"SFT": "tiny"},), {}, "expected what load_language_model returns"),
    "temperature": (lambda lm: (lm,), {"temperature": -1}, "temperature is -1"),
    "no temperature": (lambda lm: (lm,), {"temperature": float("nan")}, "temperature is nan"),
    "a limit": (lambda lm: (lm,), {"max_new_tokens": 0}, "max_new_tokens is 0"),
    "a limit beyond the context": (lambda lm: (lm,), {"max_new_tokens": 192}, "less than the context of 192"),
    "a rater": (lambda lm: (lm,), {"rater": 5}, "rater is int"),
    "a study": (lambda lm: (lm,), {"study": None}, "study is NoneType"),
}


@pytest.mark.parametrize(("models_of", "options", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings_are_checked_at_once(shipped, models_of, options, message):
    with pytest.raises(ValueError, match=message):
        Dialogue(*models_of(shipped), **options)


def test_turns_are_frozen(shipped):
    dialogue = Dialogue(shipped, max_new_tokens=8)
    dialogue.say("Hi")
    with pytest.raises(dataclasses.FrozenInstanceError):
        dialogue.turns[0].text = "Ho"


# ---- the widgets, without a browser ----------------------------------------------------------------------------


def sent(chat):
    """All that the browser is given, as text; it must be JSON in UTF-8."""
    text = json.dumps([chat.state, chat.content], allow_nan=False, ensure_ascii=False)
    assert text.encode()
    return text


def ask(chat, op, *args):
    chat.receive({"id": f"t-{op}", "op": op, "args": json.loads(json.dumps(args))})
    assert chat.state["ack"] == f"t-{op}"
    return chat.state["error"]


def test_a_chat_shows_itself_in_one_short_line(models, shipped):
    assert repr(Chat(models)) == "Chat(base, SFT, RLHF)"
    assert repr(Chat(shipped)) == "Chat(model)"
    assert repr(Chat({"\x1b[31m" + "x" * 1000: shipped})) == r"Chat(\x1b[31m" + "x" * 32 + ")"
    assert Chat(models)._repr_mimebundle_()[0]["text/plain"] == "Chat(base, SFT, RLHF)"


def test_names_of_hidden_models_never_reach_the_browser(models, tmp_path, monkeypatch):
    secret = {f"secret-{name}": lm for name, lm in models.items()}
    chat = Chat(secret, blind=True, show_oracle=True, store=tmp_path / "feedback.db", max_new_tokens=8)
    said = [sent(chat)]
    chat.observe(lambda _: said.append(sent(chat)), ["state", "content"])
    steps = [("say", LIBRARY), ("again", 0, 1), ("leaf", 0, 1, 0), ("go_on", 2), ("rate", 0, 0, 0, 5), ("undo",),
             ("compare", 0, [0, 0], [1, 0], 1), ("all_bad", 0), ("colour_by", "log-prob"), ("show_oracle", True),
             ("say", "a " * 60), ("say", "b " * 60), ("edit", 0, 2, 0, "No."), ("restart",), ("say", "Hi")]  # fmt: skip
    for op, *args in steps:
        assert ask(chat, op, *args) == ""
    for op, *args in [("say", ""), ("colour_by", "kl"), ("rate", 9, 0, 0, 1), ("fly",)]:
        assert ask(chat, op, *args) != ""
    monkeypatch.setattr(Store, "add", lambda *_: (_ for _ in ()).throw(NotSaved("the disk is full")))
    assert ask(chat, "comment", 0, 0, 0, "Good.") == "the disk is full"
    assert len(said) > 20
    assert not any("secret" in text for text in said)
    ask(chat, "reveal")
    assert chat.content["columns"] == chat.dialogue._names
    assert all(name in sent(chat) for name in secret)


def test_what_was_not_saved_is_saved_on_request(shipped, tmp_path, monkeypatch):
    chat = Chat(shipped, store=tmp_path / "feedback.db", max_new_tokens=8)
    ask(chat, "say", "Hi")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", lambda *_: (_ for _ in ()).throw(NotSaved("the disk is full")))
        assert ask(chat, "rate", 0, 0, 0, 3) == "the disk is full"
        assert (chat.state["unsaved"], chat.state["stored"], chat.state["count"]) == (1, 0, 1)
        assert ask(chat, "save") == "the disk is full"
    assert ask(chat, "save") == ""
    assert (chat.state["unsaved"], chat.state["stored"], chat.state["count"]) == (0, 1, 1)
    assert [event.record.score for event in chat.dialogue.store.standing("chat")] == [3]


def test_a_new_chat_says_what_is_kept_of_the_one_before(shipped, tmp_path):
    path = tmp_path / "feedback.db"

    def chat(**options):
        return Chat(shipped, store=path, max_new_tokens=8, **options)

    first = chat()
    assert (first.state["kept"], first.state["earlier"]) == ("", 0)
    ask(first, "say", "Hi")
    for score in (3, 4):  # the second one replaces the first
        ask(first, "rate", 0, 0, 0, score)
    other = chat(rater="Mia")
    ask(other, "say", "Hi")
    ask(other, "rate", 0, 0, 0, 1)
    second = chat()
    assert second.state["kept"].startswith(f"1 judgement from before is kept in {path}, with the prompts and replies")
    ask(second, "say", "Hi")
    ask(second, "comment", 0, 0, 0, "Good.")
    assert [second.state[name] for name in ("count", "earlier", "stored")] == [1, 1, 2]
    ask(second, "undo")
    assert [second.state[name] for name in ("count", "earlier", "stored")] == [0, 1, 1]
    assert chat(study="other").state["kept"] == ""
    ask(second, "comment", 0, 0, 0, "Bad.")
    third = chat()
    assert "2 judgements from before are kept in" in third.state["kept"]
    assert "2 judgements from before are kept in" in PlainChat(third.dialogue).problem.value
    assert [event.record.reply for event in third.dialogue.store.standing("chat") if event.rater == "you"] == [
        first.dialogue.turns[0].replies[0][0].text,
        second.dialogue.turns[0].replies[0][0].text,
    ]


def test_a_store_that_cannot_be_read_is_said_and_stops_no_chat(shipped, tmp_path):
    path = tmp_path / "feedback.db"
    path.write_text("This is no database. " * 100)
    chat = Chat(shipped, store=path, max_new_tokens=8)
    assert "cannot be read" in chat.state["kept"]
    assert "Keep the file" in chat.state["kept"]
    assert ask(chat, "say", "Hi") == ""
    assert "is no store, or damaged" in ask(chat, "rate", 0, 0, 0, 3)
    assert (chat.state["unsaved"], chat.state["stored"]) == (1, 0)


def test_the_browser_can_ask_for_what_there_is():
    assert [op for op in Chat.operations if not callable(getattr(Dialogue, op, None))] == []


def test_verdicts_and_numbers_are_sent_only_where_they_are_shown(models, shipped):
    chat = Chat({"base": shipped, "SFT": models["SFT"]}, reference=shipped, max_new_tokens=16)
    assert ask(chat, "say", LIBRARY) == ""
    hidden = sent(chat)
    assert "Oracle" not in hidden
    assert chat.content["turns"][0]["replies"][0][0]["tokens"] is None
    ask(chat, "show_oracle", True)
    ask(chat, "colour_by", "kl")
    base, sft = (column[0] for column in chat.content["turns"][0]["replies"])
    assert "Oracle: " in base["verdict"]
    assert {(row["level"], row["numbers"][2]) for row in base["tokens"]} == {(0, "0.000")}  # the reference itself
    kl = chat.dialogue.kl(0, 1, 0)
    assert [row["numbers"][2] for row in sft["tokens"]] == [f"{value:.3f}" for value in kl]
    assert [row["level"] for row in sft["tokens"]] == [level(value, KL_BORDERS) for value in kl]
    assert "".join(row["text"] for row in sft["tokens"]) == sft["text"]
    assert "nats" in chat.content["legend"]["title"]
    assert "softmax(logits / 0.7)" in chat.content["legend"]["title"]
    ask(chat, "colour_by", "log-prob")
    log_probs = chat.dialogue.turns[0].replies[1][0].log_probs
    rows = chat.content["turns"][0]["replies"][1][0]["tokens"]
    assert [float(row["numbers"][0].replace("−", "-")) for row in rows] == pytest.approx(log_probs, abs=0.0051)
    assert ask(chat, "say", "What is love?") == ""
    assert "not known" in chat.content["turns"][1]["replies"][0][0]["verdict"]


def test_a_chat_says_that_it_writes_before_it_does(shipped):
    chat, seen = Chat(shipped, max_new_tokens=8), []
    chat.observe(lambda change: seen.append((change["new"]["writing"], len(chat.dialogue.turns))), "state")
    ask(chat, "say", "Hi")
    assert seen == [(True, 0), (False, 1)]


def test_an_interrupted_chat_is_as_before_and_goes_on(models, monkeypatch):
    chat = Chat(models, max_new_tokens=8)
    ask(chat, "say", "Hi")
    before = chat.content
    with monkeypatch.context() as patch:
        patch.setattr(Dialogue, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert "Interrupted" in ask(chat, "say", "Ho")
    assert chat.content == before
    assert chat.state["writing"] is False
    assert ask(chat, "say", "Ho") == ""
    assert len(chat.content["turns"]) == 2


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_texts_are_sent_as_json(shipped, text):
    chat = Chat({text: shipped}, show_oracle=True, study=text, rater=text, max_new_tokens=8)
    for op, *args in [("say", text), ("comment", 0, 0, 0, text), ("edit", 0, 0, 0, text), ("colour_by", "log-prob")]:
        assert ask(chat, op, *args) == ""
        sent(chat)
    assert chat.content["turns"][0]["text"] == text.replace("\ud83d", "\ufffd").replace("\udc00", "\ufffd")
    assert chat.events()[0].record.text == text


def test_what_was_judged_is_shown_again(models):
    chat = Chat({name: models[name] for name in ("base", "SFT")}, max_new_tokens=12)
    judge_everything(chat.dialogue)
    chat.refresh()
    [judged] = chat.state["judged"]
    assert judged["replies"][1][1] == {
        "score": 4, "edited": "The library closes at six.", "spans": [[0, 3]], "comment": "Too short."
    }  # fmt: skip
    assert judged["replies"][0][0] == dict.fromkeys(("score", "edited", "spans", "comment"))
    assert judged["ranks"] == [[2], [2, 1]]
    assert judged["choices"] == [{"left": [0, 0], "right": [1, 1], "outcome": 1}]
    assert judged["all_bad"] is False
    ask(chat, "again", 0, 0)
    assert chat.state["judged"][0]["ranks"] == [[None, None], [None, None]]  # the order lacks the new one
    ask(chat, "all_bad", 0)
    assert chat.state["judged"][0]["all_bad"] is True


# ---- the view of standard widgets ------------------------------------------------------------------------------


def parts(widget):
    return [widget, *(found for child in getattr(widget, "children", ()) for found in parts(child))]


def test_the_plain_view_does_the_same(models, shipped, tmp_path):
    two = {name: models[name] for name in ("base", "SFT")}
    dialogue = Dialogue(two, reference=shipped, store=tmp_path / "feedback.db", max_new_tokens=16)
    view = PlainChat(dialogue)
    assert {type(part).__name__ for part in parts(view)} == {
        "PlainChat", "_Column", "VBox", "HBox", "Button", "Label", "Textarea", "TextView"
    }  # fmt: skip
    view.message.value = ""
    view.buttons["Send"].click()
    assert "is empty" in view.problem.value
    view.message.value = LIBRARY
    view.buttons["Send"].click()
    assert view.message.value == view.problem.value == ""
    left, right = view.columns
    right.buttons["Another reply"].click()
    reply = dialogue.turns[0].replies[1][1].text
    assert right.reply.value == reply
    right.buttons["Next reply"].click()
    assert right.reply.value == dialogue.turns[0].replies[1][0].text
    right.buttons["Next reply"].click()
    right.buttons["Go on with this"].click()
    assert right.reply.description == "✓ SFT 2"
    right.buttons["4"].click()
    word = reply.split()[1]
    for text, name in [("Better.", "edit"), ("Too short.", "comment"), (word, "wrong words"), ("zebra", "wrong words")]:
        right.written.value = text
        right.buttons[f"Save as {name}"].click()
    assert "'zebra' is not in" in view.problem.value
    view.buttons["First is better"].click()
    start = reply.index(word)
    records = [event.record for event in dialogue.store.standing("chat")]
    who = {"rater": "you"}
    assert records == [
        Rating(LIBRARY, reply, 4, 1, 5, **who),
        Edit(LIBRARY, reply, "Better.", **who),
        Comment(LIBRARY, reply, "Too short.", **who),
        Mark(LIBRARY, reply, ((start, start + len(word)),), **who),
        Choice(LIBRARY, left.reply.value, reply, 1, "base", "SFT", **who),
    ]
    view.buttons["Undo"].click()
    assert len(dialogue.events()) == 4
    view.buttons["Colour: kl"].click()
    assert left.numbers.value.splitlines()[1].endswith("| 0.000")
    view.buttons["Oracle"].click()
    assert left.verdict.value.startswith("Oracle: ")
    view.offers[0].click()
    assert [turn.text for turn in dialogue.turns] == [LIBRARY, "And when does it open?"]


def test_the_plain_view_hides_names_until_they_are_revealed(models):
    secret = {f"secret-{name}": lm for name, lm in models.items()}
    view = PlainChat(Dialogue(secret, blind=True, max_new_tokens=8))
    view.message.value = "Hi"
    view.buttons["Send"].click()
    view.columns[0].buttons["2"].click()

    def shown():
        texts = [getattr(part, name, "") for part in parts(view) for name in ("value", "description", "tooltip")]
        return " ".join(filter(None, texts))

    assert "2 of 5 for A" in shown()
    assert "secret" not in shown()
    view.buttons["Reveal"].click()
    assert view.columns[0].reply.description == f"✓ {view.dialogue._names[0]} 1"
