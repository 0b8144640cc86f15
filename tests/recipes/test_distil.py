"""On-policy distillation: both gradients against enumeration, and a student that comes to its teacher."""

import signal
from dataclasses import replace

import pytest
import torch
from toy_models import PROMPTS, WORDS, word_model

from rlhf_lab.maths.exact import enumerate_sequences
from rlhf_lab.models.scoring import forward, token_log_probs
from rlhf_lab.models.tokens import encode_prompts, make_batch
from rlhf_lab.recipes.distil import DistilConfig, distillation_gradient, train_distilled

torch.set_num_threads(1)
CONFIG = DistilConfig(iterations=20, prompts_per_iteration=24, max_new_tokens=4, minibatch_rows=12, learning_rate=1e-2)
CONFIG = replace(CONFIG, evaluate_every=100)


def moved(lm, by=0.3, seed=0):
    lm, generator = lm.copy(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return lm


def every_reply(lm, length=2):
    """All replies of at most two tokens to one prompt."""
    [prompt] = encode_prompts(lm, PROMPTS[:1])
    replies = [list(tokens) for tokens in enumerate_sequences(len(WORDS), length, eos=lm.end_id)]
    return make_batch([prompt] * len(replies), replies, lm.pad_id)


def law_of(lm, batch):
    log_probs = token_log_probs(forward(lm, batch).logits, batch.response_ids, batch.mask, CONFIG.temperature)
    return log_probs.sum(1)


def flat(lm):
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()])


def expected_gradient(student, teacher, credit):
    """Of the recipe, over all replies with their probabilities."""
    batch = every_reply(student)
    with torch.no_grad():
        law = law_of(student, batch).exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    total = 0.0
    for row, probability in enumerate(law.tolist()):
        student.model.zero_grad()
        one = batch.select(torch.tensor([row]))
        distillation_gradient(student, teacher, one, replace(CONFIG, credit=credit))
        total = total + probability * flat(student)
    return total


def kl_gradient(student, teacher, frozen=False):
    """Of KL(student || teacher) of whole replies; or of its sum over prefixes whose probabilities are held."""
    batch = every_reply(student)
    with torch.no_grad():
        wanted = law_of(teacher, batch)
    student.model.zero_grad()
    if not frozen:
        log_law = law_of(student, batch)
        (log_law.exp() * (log_law - wanted)).sum().backward()
        return flat(student)
    logits = forward(student, batch).logits / CONFIG.temperature
    log_p, weights = torch.log_softmax(logits, -1), law_of(student, batch).exp().detach()
    with torch.no_grad():
        log_q = torch.log_softmax(forward(teacher, batch).logits / CONFIG.temperature, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1) * batch.mask
    (weights[:, None] * kl).sum().backward()
    return flat(student)


def test_both_gradients_are_what_they_say_in_expectation():
    student, teacher = moved(word_model(), seed=1), word_model()
    student.model.requires_grad_(True)
    whole, part = kl_gradient(student, teacher), kl_gradient(student, teacher, frozen=True)
    assert whole.norm() > 0.1
    assert (whole - part).norm() > 0.05 * whole.norm()  # they are two gradients
    torch.testing.assert_close(expected_gradient(student, teacher, "rest"), whole, atol=2e-5, rtol=1e-3)
    torch.testing.assert_close(expected_gradient(student, teacher, "token"), part, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("credit", ["token", "rest"])
def test_nothing_pulls_where_the_student_is_the_teacher(credit):
    teacher = moved(word_model())
    student = teacher.copy()
    student.model.requires_grad_(True)
    numbers = distillation_gradient(student, teacher, every_reply(student), replace(CONFIG, credit=credit))
    assert flat(student).abs().max() < 1e-5
    assert numbers["kl"] == pytest.approx(0, abs=1e-5)


def test_micro_batches_change_nothing():
    found = []
    for micro_batch in (100, 3):
        student = moved(word_model(), seed=1)
        student.model.requires_grad_(True)
        few = replace(CONFIG, micro_batch=micro_batch)
        numbers = distillation_gradient(student, word_model(), every_reply(student), few)
        found.append((numbers["kl"], flat(student)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("credit", ["token", "rest"])
def test_the_student_comes_to_its_teacher(credit):
    student, teacher = moved(word_model(), seed=1), word_model()
    result = train_distilled(student, teacher, PROMPTS, replace(CONFIG, credit=credit))
    kl = result.history.column("kl")[1]
    assert kl[0] > 0.3
    assert kl[-5:].mean() < 0.5 * kl[0]


def test_it_resumes_bit_for_bit(tmp_path):
    def run(checkpoint, stop_after=None):
        calls = []

        def evaluate(model):
            calls.append(model)
            if len(calls) - 1 == stop_after:
                signal.raise_signal(signal.SIGINT)
            return {"norm": float(sum(p.detach().norm() for p in model.model.parameters()))}

        config = replace(CONFIG, iterations=4, evaluate_every=1)
        student, teacher = moved(word_model(), seed=1), word_model()
        return train_distilled(student, teacher, PROMPTS, config, evaluate=evaluate, checkpoint=checkpoint)

    whole = run(None)
    assert run(tmp_path / "run.pt", stop_after=2).interrupted
    assert run(tmp_path / "run.pt").history == whole.history


def test_other_tokens_are_refused():
    with pytest.raises(ValueError, match="teacher"):
        train_distilled(word_model(), word_model(words=("<|pad|>", "<|end|>", "b", "a", "c", "d")), PROMPTS, CONFIG)
    with pytest.raises(ValueError, match="credit"):
        DistilConfig(credit="both")
