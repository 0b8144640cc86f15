"""Pretraining: the gradient is that of the definition, and a run can be stopped, resumed and repeated."""

import math
import signal
import sys

import pytest
import torch
from transformers import AutoTokenizer

from rlhf_lab.models.language_model import load_language_model
from rlhf_lab.models.tokens import encode_prompts
from rlhf_lab.recipes.pretrain import (
    SIZES,
    SPECIAL_TOKENS,
    WINDOW,
    PretrainConfig,
    _backward,
    _new_model,
    step_rows,
    train_base_model as run_pretraining,
    train_tokenizer,
    wrap_model,
)  # fmt: skip
from rlhf_lab.records import Message
from rlhf_lab.training.files import CheckpointError
from rlhf_lab.training.optimisers import make_optimiser

torch.set_num_threads(1)
PLACES = ("library", "zoo", "museum", "old railway station")
DOCUMENTS = [f"<|user|>When does the {p} close?<|assistant|>The {p} closes at six.<|end|>" for p in PLACES]
DOCUMENTS += [f"The {p} is {adverb} open.<|end|>" for p in PLACES for adverb in ("always", "never", "now and then")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 300)


@pytest.fixture(scope="module", autouse=True)
def small_size():
    """A size that trains in milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", {"n_layer": 1, "n_embd": 16, "n_head": 2})
        yield


def config(**options):
    return PretrainConfig(**{"steps": 6, "documents_per_step": 8, "context": 64, "warmup": 2} | options)


def weights(lm):
    return torch.cat([p.detach().flatten() for p in lm.model.parameters()])


def interrupt_in_step(patch, recipe, number):
    """Press Ctrl-C in optimiser step `number` of a recipe."""
    module, calls = sys.modules[f"rlhf_lab.recipes.{recipe}"], []
    step = module.clipped_step

    def stepped(*arguments):
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    patch.setattr(module, "clipped_step", stepped)


def count_calls():
    """An `evaluate` that says how often it was called."""
    calls = []
    return lambda lm: {"calls": float(len(calls))} if calls.append(1) is None else {}


# ---- tokenizer and data ------------------------------------------------------------------------------------------


def test_tokenizer_holds_the_contract(tokenizer, tmp_path):
    assert len(tokenizer) == 300
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|end|>", "<|pad|>", None)
    assert len({tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}) == 4
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ["Any string: 博物馆 🙂\n\t\x00", " two  spaces ", DOCUMENTS[0]]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert again(text)["input_ids"] == ids


def test_a_chat_is_encoded_as_the_documents_write_it(tokenizer):
    lm = wrap_model(_new_model(config(), tokenizer), tokenizer)
    turns = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Where is the zoo?"))
    (row,) = encode_prompts(lm, [turns])
    assert row == tokenizer("<|user|>Hi<|assistant|>Yes?<|end|><|user|>Where is the zoo?<|assistant|>")["input_ids"]


def test_a_tokenizer_does_not_depend_on_the_order_of_hash_tables(tokenizer):
    for _ in range(3):  # every table is seeded anew
        assert train_tokenizer(DOCUMENTS, 300).get_vocab() == tokenizer.get_vocab()


def test_steps_take_documents_of_similar_length_evenly():
    lengths = torch.randint(5, 100, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [torch.zeros(n) for n in lengths]
    steps = [step_rows(rows, config(), step) for step in range(40 * WINDOW)]
    assert all(len(step) == 8 for step in steps)
    assert step_rows(rows, config(), 17) == steps[17] != step_rows(rows, config(seed=1), 17)
    spread = [max(lengths[i] for i in step) - min(lengths[i] for i in step) for step in steps]
    assert sum(spread) / len(spread) < 20  # of 95; random steps have about 75
    first = [sum(lengths[i] for i in steps[window * WINDOW]) / 8 for window in range(40)]
    assert min(first) < 40 < 60 < max(first)  # windows do not begin with the short ones
    drawn = torch.bincount(torch.tensor(steps).flatten(), minlength=500)  # 5,120 draws from 500
    # Chi-square with 499 degrees of freedom: above 640 once in 50,000 seeds, and this seed is fixed.
    assert ((drawn - 10.24) ** 2 / 10.24).sum() < 640


# ---- the gradient ------------------------------------------------------------------------------------------------


def test_gradient_is_that_of_the_mean_over_all_real_tokens(tokenizer):
    lm = wrap_model(_new_model(config(), tokenizer), tokenizer)
    rows = [torch.tensor(ids) for ids in tokenizer(DOCUMENTS[3:9])["input_ids"]]
    loss = _backward(lm, rows, 64)
    got = torch.cat([p.grad.flatten() for p in lm.model.parameters()])

    total, count = 0.0, 0
    for row in rows:  # one document at a time, one token at a time, in float64
        logits = lm.model.double()(row[None]).logits[0]
        for t in range(1, len(row)):
            total = total - torch.log_softmax(logits[t - 1], -1)[row[t]]
            count += 1
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total / count, list(lm.model.parameters()))])
    assert loss == pytest.approx(float(total.detach() / count), abs=1e-5)
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=1e-5)


def test_micro_batches_change_nothing(tokenizer):
    rows = [torch.tensor(ids) for ids in tokenizer(DOCUMENTS)["input_ids"]]
    results = []
    for micro_batch in (1, 5, 64):
        lm = wrap_model(_new_model(config(), tokenizer), tokenizer)
        loss = _backward(lm, rows, micro_batch)
        results.append((loss, torch.cat([p.grad.flatten() for p in lm.model.parameters()])))
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-6, rtol=0)


def test_only_matrices_decay(tokenizer):
    lm = wrap_model(_new_model(config(), tokenizer), tokenizer)
    decayed, kept = make_optimiser(lm.model, 1e-3, 0.1).param_groups
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in kept["params"]} == {1}
    assert (decayed["weight_decay"], kept["weight_decay"], decayed["betas"]) == (0.1, 0.0, (0.9, 0.95))


# ---- the run -----------------------------------------------------------------------------------------------------


def test_a_run_learns_and_saves_a_model_that_loads(tmp_path):
    result = run_pretraining(DOCUMENTS, config(steps=60, learning_rate=1e-2, vocab_size=300))
    _, losses = result.history.column("loss")
    assert losses[0] == pytest.approx(math.log(300), rel=0.05)
    assert losses[-5:].mean() < 0.5 * losses[0]
    assert not result.interrupted
    assert [row["step"] for row in result.history.rows] == list(range(1, 61))
    result.model.save(tmp_path / "model")
    loaded = load_language_model(tmp_path / "model")
    assert torch.equal(weights(loaded), weights(result.model))
    assert (loaded.end_id, loaded.pad_id, loaded.max_length) == (2, 3, 64)


def test_the_seed_decides(tokenizer):
    runs = [run_pretraining(DOCUMENTS, config(seed=s), tokenizer=tokenizer).model for s in (0, 0, 1)]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))
    state = torch.get_rng_state()
    run_pretraining(DOCUMENTS, config(steps=1), tokenizer=tokenizer)
    assert torch.equal(torch.get_rng_state(), state)


def test_interrupt_and_resume_are_the_straight_run(tokenizer, tmp_path, monkeypatch):
    settings, options = config(evaluate_every=4), {"tokenizer": tokenizer, "checkpoint": tmp_path / "run.pt"}
    straight = run_pretraining(DOCUMENTS, settings, tokenizer=tokenizer, evaluate=count_calls())
    evaluate = count_calls()
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, "pretrain", 3)
        half = run_pretraining(DOCUMENTS, settings, evaluate=evaluate, **options)
    assert half.interrupted
    assert half.history.rows[-1]["step"] == 3
    rest = run_pretraining(DOCUMENTS, settings, evaluate=evaluate, **options)
    assert not rest.interrupted
    assert torch.equal(weights(rest.model), weights(straight.model))
    assert rest.history == straight.history  # so no evaluation at the interrupt either
    again = run_pretraining(DOCUMENTS, settings, **options)  # a finished run is not trained further
    assert torch.equal(weights(again.model), weights(straight.model))


def test_evaluation_is_by_schedule_and_at_the_end(tokenizer):
    result = run_pretraining(DOCUMENTS, config(evaluate_every=4), tokenizer=tokenizer, evaluate=count_calls())
    assert result.history.column("calls")[0].tolist() == [0, 4, 6]


def test_a_checkpoint_of_another_run_is_refused(tokenizer, tmp_path):
    options = {"tokenizer": tokenizer, "checkpoint": tmp_path / "run.pt"}
    run_pretraining(DOCUMENTS, config(), **options)
    with pytest.raises(CheckpointError, match="steps differs: 6 there, 7 here"):
        run_pretraining(DOCUMENTS, config(steps=7), **options)
    with pytest.raises(CheckpointError, match="documents"):
        run_pretraining(DOCUMENTS[1:], config(), **options)


def test_not_a_number_stops_the_run_and_keeps_the_last_good_state(tokenizer, tmp_path):
    file, good = tmp_path / "run.pt", []

    def poison(lm):
        good.append(weights(lm))
        if len(good) == 2:
            lm.model.transformer.ln_f.bias.register_hook(lambda gradient: gradient * float("nan"))
        return {}

    with pytest.raises(FloatingPointError, match="at step 3"):
        run_pretraining(DOCUMENTS, config(evaluate_every=2), tokenizer=tokenizer, evaluate=poison, checkpoint=file)
    state = torch.load(file, weights_only=True)
    assert (state["step"], len(state["history"])) == (2, 3)
    resumed = run_pretraining(DOCUMENTS, config(evaluate_every=2), tokenizer=tokenizer, checkpoint=file)
    straight = run_pretraining(DOCUMENTS, config(evaluate_every=2), tokenizer=tokenizer)
    assert torch.equal(weights(resumed.model), weights(straight.model))
    assert state["model"]["transformer.wte.weight"].flatten().equal(good[1][: 300 * 16])
    numbers = iter((1.0, float("nan")))
    with pytest.raises(FloatingPointError, match="perplexity is nan at step 2"):
        run_pretraining(
            DOCUMENTS, config(evaluate_every=2), tokenizer=tokenizer, checkpoint=tmp_path / "other.pt",
            evaluate=lambda lm: {"perplexity": next(numbers)},
        )  # fmt: skip
    assert torch.load(tmp_path / "other.pt", weights_only=True)["model"]["transformer.ln_f.bias"].isfinite().all()


def test_bad_input_is_named(tokenizer):
    with pytest.raises(ValueError, match="documents is 'empty'; expected at least one"):
        run_pretraining([], config())
    with pytest.raises(ValueError, match=r"documents\[1\] is '1 tokens'; expected 2 to 64"):
        run_pretraining([DOCUMENTS[0], "<|end|>"], config(), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"documents\[0\] is '\d+ tokens'; expected 2 to 8; split it"):
        run_pretraining(DOCUMENTS, config(context=8), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", "huge"), ("vocab_size", 259), ("context", 1), ("steps", 0), ("documents_per_step", 0),
        ("micro_batch", 0), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("weight_decay", -0.1),
        ("warmup", -1),        ("max_grad_norm", 0.0), ("evaluate_every", 0), ("checkpoint_every", 0),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is "):
        PretrainConfig(**{name: value})


def test_bfloat16_runs_and_keeps_float32_weights(tokenizer):
    result = run_pretraining(DOCUMENTS, config(steps=2), tokenizer=tokenizer, precision=torch.bfloat16)
    assert {p.dtype for p in result.model.model.parameters()} == {torch.float32}
    assert result.model.precision == torch.bfloat16
