"""On-policy distillation: both gradients against enumeration, and a student that comes to its teacher."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from toy_models import PROMPTS, WORDS, word_model
from toy_runs import check_it_goes_on

from rlhf_lab.experience import rollouts
from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.maths.exact import enumerate_sequences
from rlhf_lab.maths.kl import categorical_kl
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import encode_prompts, make_batch
from rlhf_lab.recipes import distil
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
    config, student = replace(CONFIG, iterations=4, evaluate_every=1), moved(word_model(), seed=1)
    check_it_goes_on(partial(train_distilled, student, word_model(), PROMPTS, config), tmp_path / "run.pt")


def test_other_tokens_are_refused():
    with pytest.raises(ValueError, match="teacher"):
        train_distilled(word_model(), word_model(words=("<|pad|>", "<|end|>", "b", "a", "c", "d")), PROMPTS, CONFIG)
    with pytest.raises(ValueError, match="credit"):
        DistilConfig(credit="both")


# -- planted faults ---------------------------------------------------------------------------------------------------
sample, draw, go, copy = distil.sample_responses, rollouts._draw, distil.cost_to_go, distil.LanguageModel.copy


def hotter(student, asked, *, temperature, **options):
    return sample(student, asked, temperature=2 * temperature, **options)


def hotter_scored_again(student, asked, *, temperature, **options):
    rollout = hotter(student, asked, temperature=temperature, **options)
    return replace(rollout, log_probs=response_log_probs(student, rollout.batch, temperature))


def top_two(logits, uniform, temperature):
    token, _ = draw(logits.where(logits >= logits.topk(2).values[:, -1:], -torch.inf), uniform, temperature)
    return token, (logits / temperature).log_softmax(-1).gather(-1, token[:, None]).squeeze(1)


def logits_of(change):
    """`forward` with other logits where the student learns (they have a gradient) or where the teacher reads."""

    def changed(lm, batch):
        output = forward(lm, batch)
        return output._replace(logits=change(lm, output.logits))

    return changed


def mask_from_ids(prompts, replies, pad_id, device):
    batch = make_batch(prompts, replies, pad_id, device)
    return replace(batch, mask=batch.response_ids != pad_id)


def sampled_k1(logits, wanted):
    """k1 of the likeliest token where the exact KL was meant: what a tensor of sampled tokens would give."""
    log_p, log_q = logits.log_softmax(-1), wanted.log_softmax(-1)
    tokens = SEEN[-1].response_ids[..., None]
    return (log_p - log_q).gather(-1, tokens).squeeze(-1)


def with_dropout(lm):
    lm = copy(lm)
    lm.model.train()
    return lm


def seen(lm, batch):
    SEEN.append(batch)
    return forward(lm, batch)


def k1_of_the_token_alone(logits, wanted, part):
    log_probs = token_log_probs(logits, part.response_ids, part.mask)
    return log_probs * (log_probs.detach() - token_log_probs(wanted, part.response_ids, part.mask))


SEEN = []
RAW = logits_of(lambda lm, logits: logits * CONFIG.temperature if logits.requires_grad else logits)
TEACHER_RAW = logits_of(lambda lm, logits: logits if logits.requires_grad else logits * CONFIG.temperature)
LONG = {"max_new_tokens": 24}
FAULTS = {  # what is replaced -> by what; settings; the name and words of the cause
    "another temperature": ({"sample_responses": hotter}, {}, "rescored: .*sampling used temperature 1.4 where 0.7"),
    "hotter, scored again": (
        {"sample_responses": hotter_scored_again}, LONG, "sampled_law: .*temperature (1.5|2) explains"),
    "top-k, scored again": ({"_draw": top_two}, LONG, "sampled_law: .*top-k 2 explains"),
    "student at 1": ({"forward": RAW}, {}, "first_minibatch: .*scoring used temperature 1 where 0.7"),
    "teacher at 1": ({"forward": TEACHER_RAW}, {}, "rescored: .*the teacher's pass used temperature 1 where 0.7"),
    "dropout in the student": ({"copy": with_dropout}, {}, "rescored: .*dropout is on"),
    "pad is end": ({"make_batch": mask_from_ids}, {}, "mask: .*comparing token ids with the pad id"),
    "k1 in the loss": ({"forward": seen, "categorical_kl": sampled_k1}, {}, "distillation: .*k1 in the loss"),
    "forward KL": (
        {"categorical_kl": lambda p, q: categorical_kl(q, p)}, {}, "distillation: .*the other direction"),
    "the wrong sign": ({"categorical_kl": lambda p, q: -categorical_kl(p, q)}, {}, "distillation: .*the sign"),
    "the wrong sign of rest": (
        {"cost_to_go": lambda *a: -go(*a)}, {"credit": "rest"}, "distillation: .*the sign"),
    "nothing later": (
        {"cost_to_go": k1_of_the_token_alone}, {"credit": "rest"}, "distillation: .*changed nothing later"),
}  # fmt: skip
PLACES = {"_draw": rollouts, "make_batch": rollouts, "copy": distil.LanguageModel}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_stops_the_run_and_is_named(fault, monkeypatch):
    planted, changes, words = FAULTS[fault]
    student, teacher = word_model(spread=0.3), moved(word_model(spread=0.3), seed=1)
    for part, instead in planted.items():
        monkeypatch.setattr(PLACES.get(part, distil), part, instead)
    if fault == "pad is end":
        student.pad_id = student.end_id
    config = replace(CONFIG, iterations=3, **changes)
    with pytest.raises(InvariantViolation, match=rf"(?s)^{words}"):
        train_distilled(student, teacher, PROMPTS, config)
    train_distilled(student, teacher, PROMPTS, replace(config, check_invariants=False))  # nobody looks


@pytest.mark.parametrize("credit", ["token", "rest"])
def test_without_a_fault_nothing_fires_and_nothing_is_changed(credit):
    """The statistical checks err once in 1,000 runs; these are two."""
    student, teacher = word_model(spread=0.3), moved(word_model(spread=0.3), seed=1)
    config = replace(CONFIG, iterations=6, credit=credit, micro_batch=5, **LONG)
    found = [train_distilled(student, teacher, PROMPTS, replace(config, check_invariants=on)) for on in (True, False)]
    assert found[0].history == found[1].history


def test_a_teacher_that_learns_along_or_has_dropout_is_named(monkeypatch):
    student, teacher = word_model(), moved(word_model())
    with pytest.raises(InvariantViolation, match=r"(?s)(reference_still|rescored): .*dropout is on"):
        train_distilled(student, with_dropout(teacher), PROMPTS, CONFIG)

    def follow(lm):
        with torch.no_grad():
            for ours, theirs in zip(lm.model.parameters(), teacher.model.parameters(), strict=True):
                theirs.lerp_(ours, 0.5)
        return {}

    config = replace(CONFIG, iterations=3, evaluate_every=1)
    with pytest.raises(InvariantViolation, match=r"(?s)reference_still: .*follows the policy"):
        train_distilled(student, teacher, PROMPTS, config, evaluate=follow)


def test_the_gradient_of_an_earlier_minibatch_is_named(monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda optimiser: None)
    with pytest.raises(InvariantViolation, match=r"(?s)fresh_gradient: .*still there"):
        train_distilled(word_model(), moved(word_model()), PROMPTS, replace(CONFIG, minibatch_rows=12))


def test_a_student_that_is_its_teacher_begins_at_a_kl_of_0(monkeypatch):
    lm = word_model(spread=0.3)
    train_distilled(lm, lm, PROMPTS, replace(CONFIG, iterations=3))
    monkeypatch.setattr(distil, "sample_responses", hotter)
    with pytest.raises(InvariantViolation, match=r"(?s)^initial_kl: .*sampling used temperature 1.4 where 0.7"):
        train_distilled(lm, lm, PROMPTS, CONFIG)


def test_a_run_that_goes_on_bets_with_what_it_has_won(monkeypatch, tmp_path):
    books, checks = [], distil.LiveChecks

    def keep(student, teacher, temperature, limit, book, **options):
        books.append(book)
        return checks(student, teacher, temperature, limit, book, **options)

    monkeypatch.setattr(distil, "LiveChecks", keep)
    config = replace(CONFIG, iterations=4, evaluate_every=1)
    check_it_goes_on(partial(train_distilled, word_model(), word_model(), PROMPTS, config), tmp_path / "run.pt")
    whole, _, resumed = books
    assert whole["sampled_law"]["tokens"] > 0
    assert resumed["sampled_law"] == whole["sampled_law"]


def test_the_kl_that_is_only_reported_has_no_graph(monkeypatch):
    needs = []
    monkeypatch.setattr(distil, "categorical_kl", lambda p, q: needs.append(p.requires_grad) or categorical_kl(p, q))
    for credit in ("rest", "token"):
        train_distilled(word_model(), word_model(), PROMPTS, replace(CONFIG, iterations=1, credit=credit))
    assert needs == [False, False, True, True]
