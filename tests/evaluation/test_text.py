"""Perplexity, BLEU and ROUGE against slow specs and by hand."""

import math

import pytest
import torch

from rlhf_lab.evaluation.text import bleu, document_nll, perplexity, reply_nll, rouge
from rlhf_lab.models.tokens import encode_prompts, encode_responses

torch.set_num_threads(1)
DOCUMENTS = [
    "The library closes at six.",
    "Mia met a fox. The fox ran.",
    "Thank you.",
    "Go away, I do not care!",
]


def slow_nll(lm, text):
    """One document, one token at a time, in the words of the definition."""
    ids = lm.tokenizer(text)["input_ids"][: lm.max_length]
    total = 0.0
    for t in range(1, len(ids)):
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids[:t]])).logits[0, -1]
        total -= torch.log_softmax(logits.double(), -1)[ids[t]].item()
    return total, len(ids) - 1


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_perplexity_is_the_slow_spec(tiny_lm, micro_batch):
    slow = [slow_nll(tiny_lm, text) for text in DOCUMENTS]
    nll, tokens = document_nll(tiny_lm, DOCUMENTS, micro_batch)
    assert nll == pytest.approx([total for total, _ in slow], rel=1e-5)
    assert tokens.tolist() == [count for _, count in slow]
    expected = math.exp(sum(total for total, _ in slow) / sum(count for _, count in slow))
    interval = perplexity(tiny_lm, DOCUMENTS, micro_batch)
    assert interval.mean == pytest.approx(expected, rel=1e-5)
    assert interval.low < interval.mean < interval.high


def test_perplexity_of_a_uniform_model_is_the_vocabulary(tiny_gpt2):
    uniform = tiny_gpt2.copy()
    with torch.no_grad():
        for parameter in uniform.model.parameters():
            parameter.zero_()
    interval = perplexity(uniform, DOCUMENTS)
    assert interval.mean == pytest.approx(len(uniform.tokenizer), rel=1e-5)
    assert interval.high - interval.low < 1e-6 * interval.mean


def test_the_likelihood_of_a_reply_is_that_of_its_tokens_after_the_prompt(tiny_lm):
    prompts, replies = ["Where is the zoo?", "Hi"], ["It is in Mill Street.", "Hello to you."]
    nll, tokens = reply_nll(tiny_lm, prompts, replies)
    for i, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        [asked], [said] = encode_prompts(tiny_lm, [prompt]), encode_responses(tiny_lm, [reply], 64)
        with torch.no_grad():
            law = tiny_lm.model(torch.tensor([asked + said])).logits[0].double().log_softmax(-1)
        each = [float(law[len(asked) + j - 1, token]) for j, token in enumerate(said)]
        assert nll[i] == pytest.approx(-sum(each), abs=1e-3)
        assert tokens[i] == len(said)
        assert said[-1] == tiny_lm.end_id


@pytest.mark.parametrize(("prompts", "replies"), [(["Hi"], []), (["Hi"], ["a", "b"]), (["Hi"], [3]), (["Hi"], "a")])
def test_replies_that_cannot_be_measured(tiny_lm, prompts, replies):
    with pytest.raises(ValueError, match="expected"):
        reply_nll(tiny_lm, prompts, replies)


def test_perplexity_cuts_at_the_context(tiny_gpt2):
    assert document_nll(tiny_gpt2, ["word " * 400])[1].tolist() == [tiny_gpt2.max_length - 1]


@pytest.mark.parametrize("texts", [[], ["fine text", ""]])
def test_perplexity_refuses(tiny_gpt2, texts):
    with pytest.raises(ValueError, match="at least 2 tokens"):
        perplexity(tiny_gpt2, texts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: perplexity(lm, "The library closes."), "texts is 'The library closes.'; expected a list of texts"),
        (lambda lm: perplexity(lm, ["The library", None]), r"texts\[1\] is None; expected a text"),
        (lambda lm: perplexity(lm, DOCUMENTS, micro_batch=0), "micro_batch is 0; expected at least 1"),
        (lambda lm: perplexity(lm, DOCUMENTS, micro_batch=-1), "micro_batch is -1; expected at least 1"),
        (lambda lm: bleu([None], ["a"]), r"replies\[0\] is None; expected a text"),
        (lambda lm: rouge(["a"], [3]), r"references\[0\] is 3; expected a text"),
    ],
)
def test_what_is_no_text_is_named(tiny_gpt2, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_gpt2)


def test_bleu_by_hand():
    # 3 of 4 words match, 2 of 3 pairs, 1 of 2 triples, 0 of 1 quadruple (smoothed to 1/2), same length.
    expected = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert bleu(["a b c d"], ["a b c e"], tokenize="none") == pytest.approx(expected)


def test_bleu_of_chinese_counts_characters():
    right, wrong = "博物馆十点开门。", "博物馆九点开门。"
    assert bleu([right], [right]) == pytest.approx(100)
    assert 20 < bleu([wrong], [right]) < 80
    assert bleu([wrong], [right], tokenize="13a") < 1  # one word to that tokenizer


def test_rouge_by_hand():
    scores = rouge(["Mia met a fox.", "no"], ["Mia met a cat.", "yes"])
    assert scores["rouge1"].mean == pytest.approx((3 / 4 + 0) / 2)
    assert scores["rouge2"].mean == pytest.approx((2 / 3 + 0) / 2)
    assert scores["rougeL"].mean == pytest.approx((3 / 4 + 0) / 2)
    with pytest.raises(ValueError, match="use bleu"):
        rouge(["x"], ["博物馆"])


@pytest.mark.parametrize("score", [bleu, rouge])
@pytest.mark.parametrize("pair", [([], []), (["a"], ["a", "b"]), ("text", "text")])
def test_texts_must_pair_up(score, pair):
    with pytest.raises(ValueError, match="same length"):
        score(*pair)


def test_half_a_character_is_read_as_what_replaces_it(tiny_gpt2):
    with pytest.warns(UserWarning, match="replaced 1 halves"):
        assert perplexity(tiny_gpt2, ["a\ud83d b"]) == perplexity(tiny_gpt2, ["a\ufffd b"])
