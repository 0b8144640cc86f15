"""Text to tokens and back, and batches whose masks come from lengths."""

import copy

import pytest
import torch
from four_replies import REPLIES, TURNS

from conftest import with_format
from rlhf_lab.models import tokens
from rlhf_lab.models.tokens import decode_responses, encode_prompts, encode_responses, length_groups, make_batch
from rlhf_lab.records import Message, as_conversation

torch.set_num_threads(1)


# ---- batches -------------------------------------------------------------------------------------------------


def test_masks_come_from_lengths_and_not_from_ids():
    batch = make_batch([[0, 5], [7]], [[0, 0], [0]], pad_id=0)  # a real token may have the id of the padding
    assert batch.prompt_mask.tolist() == [[True, True], [False, True]]
    assert batch.mask.tolist() == [[True, True], [True, False]]
    assert (batch.prompt_lengths.tolist(), batch.response_lengths.tolist()) == ([2, 1], [2, 1])
    empty = make_batch([[5], [6]], [[], []], pad_id=0)
    assert (empty.response_ids.shape, empty.response_ids.dtype, empty.mask.dtype) == ((2, 0), torch.long, torch.bool)


@pytest.mark.parametrize("rows", [([], []), ([[1]], [[1], [2]]), ([[1], []], [[1], [1]])])
def test_what_is_no_batch(rows):
    with pytest.raises(ValueError, match="expected"):
        make_batch(*rows, pad_id=0)


def test_select_trims():
    batch = make_batch([[1], [1, 2, 3], [1, 2]], [[4, 5, 6, 7], [4], [4, 5]], pad_id=0)
    part = batch.select(torch.tensor([2, 1]))
    expected = make_batch([[1, 2], [1, 2, 3]], [[4, 5], [4]], pad_id=0)
    for name in ("prompt_ids", "prompt_mask", "response_ids", "mask"):
        assert torch.equal(getattr(part, name), getattr(expected, name))
    assert len(part) == 2


def test_length_groups_hold_every_row_once():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (2, 50), generator=generator).tolist()
    batch = make_batch([[1] * n for n in lengths[0]], [[1] * n for n in lengths[1]], pad_id=0)
    groups = length_groups(batch, 8)
    assert max(map(len, groups)) == 8
    assert sorted(torch.cat(groups).tolist()) == list(range(50))
    total = batch.prompt_lengths + batch.response_lengths
    assert sum(len(rows) * int(total[rows].max()) for rows in groups) < 1.15 * total.sum()


# ---- text ----------------------------------------------------------------------------------------------------


def test_chat_format(tiny_gpt2, tiny_llama):
    decode = [lm.tokenizer.decode(encode_prompts(lm, [TURNS])[0]) for lm in (tiny_gpt2, tiny_llama)]
    assert decode == [
        "<|user|>Where is the zoo?<|assistant|>By the river.<|end|><|user|>Thanks.<|assistant|>",
        "<s>User:\nWhere is the zoo?\n\nAssistant:\nBy the river.</s>\n\nUser:\nThanks.\n\nAssistant:\n",
    ]
    system = (Message("system", "Be kind."), Message("user", "Hi"))
    assert tiny_gpt2.tokenizer.decode(encode_prompts(tiny_gpt2, [system])[0]) == "Be kind.<|user|>Hi<|assistant|>"
    assert encode_prompts(tiny_gpt2, []) == encode_responses(tiny_gpt2, []) == []


def test_responses_end_and_come_back(tiny_lm):
    rows = encode_responses(tiny_lm, REPLIES)
    assert all(row[-1] == tiny_lm.end_id and row.count(tiny_lm.end_id) == 1 for row in rows)
    assert rows[2] == [tiny_lm.end_id]
    assert tiny_lm.tokenizer.bos_token_id is None or all(tiny_lm.tokenizer.bos_token_id not in row for row in rows)
    batch = make_batch([[1]] * 4, rows, tiny_lm.pad_id)
    assert decode_responses(tiny_lm, batch.response_ids, batch.mask) == REPLIES
    cut = encode_responses(tiny_lm, REPLIES, max_tokens=3)
    assert cut == [row[:3] for row in rows]


def test_only_the_end_is_hidden_from_the_text(tiny_gpt2):
    pad, end = tiny_gpt2.pad_id, tiny_gpt2.end_id
    hi = tiny_gpt2.tokenizer("hi")["input_ids"]
    batch = make_batch([[1]] * 3, [[*hi, pad, end], [end, *hi], [*hi, end, end]], pad)
    assert decode_responses(tiny_gpt2, batch.response_ids, batch.mask) == ["hi<|pad|>", "<|end|>hi", "hi<|end|>"]


def test_prompts_that_do_not_fit(tiny_lm):
    length = len(encode_prompts(tiny_lm, [TURNS])[0])
    room = tiny_lm.max_length - length
    assert encode_prompts(tiny_lm, [TURNS], room)
    with pytest.raises(ValueError, match=rf"prompt 1 has {length} tokens; expected at most {length - 1} ") as error:
        encode_prompts(tiny_lm, [as_conversation("Hi"), TURNS], room + 1)
    assert "\n" not in str(error.value)


def test_a_template_that_refuses(tiny_gpt2):
    lm = copy.copy(tiny_gpt2)
    lm.tokenizer = copy.deepcopy(lm.tokenizer)
    lm.tokenizer.chat_template = "{{ raise_exception('no system message') }}"
    with pytest.raises(ValueError, match=r"prompt 0 does not fit the chat template \(no system message\)"):
        encode_prompts(lm, [as_conversation("Hi")])


def test_max_new_tokens_above_the_context(tiny_gpt2):
    for limit in (256, 300):
        with pytest.raises(ValueError, match=rf"max_new_tokens is {limit}; expected less than .*context of 256 tokens"):
            encode_prompts(tiny_gpt2, ["Hi"], limit)


# ---- special tokens ------------------------------------------------------------------------------------------


def test_a_tokenizer_that_begins_every_text_with_bos_begins_a_prompt_with_one(tiny_llama):
    lm = with_format(tiny_llama, None)
    (row,) = encode_prompts(lm, ["Hi"])
    bos = lm.tokenizer.bos_token_id
    assert row[0] == bos
    assert row.count(bos) == 1
    assert bos not in encode_responses(lm, ["Hi"])[0]


def test_a_bos_that_begins_no_text_begins_no_prompt(tiny_gpt2):
    lm = with_format(tiny_gpt2, None, bos_token="<|user|>")
    assert lm.tokenizer.decode(encode_prompts(lm, ["Hi"])[0]) == "User:\nHi\n\nAssistant:\n"


@pytest.mark.parametrize("written", ["{end}", "{end}\n", "{end} \n\n"])
def test_an_end_that_is_written_out_is_not_put_on_again(tiny_lm, written):
    tail = written.format(end=tiny_lm.tokenizer.decode([tiny_lm.end_id]))
    assert encode_responses(tiny_lm, [text + tail for text in REPLIES]) == encode_responses(tiny_lm, REPLIES)
    turns = (TURNS[0], Message("assistant", TURNS[1].content + tail), TURNS[2])
    assert encode_prompts(tiny_lm, [turns]) == encode_prompts(tiny_lm, [TURNS])


def test_other_special_tokens_of_a_text_stay(tiny_gpt2):
    rows = encode_responses(tiny_gpt2, ["<|user|>hi<|pad|>", "<|end|>hi\n"])
    assert tokens.decode_rows(tiny_gpt2, rows) == ["<|user|>hi<|pad|>", "<|end|>hi\n"]


def test_half_a_character_is_replaced_and_counted(tiny_gpt2):
    whole = encode_responses(tiny_gpt2, ["a\ufffdb\ufffd", "c"])
    with pytest.warns(UserWarning, match="replaced 2 halves of surrogate pairs by U\\+FFFD"):
        assert encode_responses(tiny_gpt2, ["a\ud83db\udc00", "c"]) == whole
    with pytest.warns(UserWarning, match="replaced 1 halves"):
        assert encode_prompts(tiny_gpt2, ["a\ud83d"]) == encode_prompts(tiny_gpt2, ["a\ufffd"])
