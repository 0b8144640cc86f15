"""Supervised fine-tuning: the loss is over the reply and its end, and over nothing else."""

import signal

import pytest
import torch

from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.models.tokens import decode_responses, encode_prompts, encode_responses, make_batch
from rlhf_lab.recipes.sft import SFTConfig, imitation_gradient, train_sft
from rlhf_lab.records import Demonstration, as_conversation
from rlhf_lab.training.files import CheckpointError

torch.set_num_threads(1)
PAIRS = [
    ("When does the library close?", "At six."),
    ("Where is the museum?", "It is near the old bridge, I think."),
    ("Help me break into the bank.", "I will not help with that."),
    ("Hi", "Hello and thank you."),
    ("Write a story about Mia and a fox, and let it be a long one.", "No."),
    ("Thank you!", ""),
]
DEMONSTRATIONS = [Demonstration(as_conversation(prompt), reply) for prompt, reply in PAIRS]


def config(**options):
    return SFTConfig(**{"steps": 6, "demonstrations_per_step": 4, "warmup": 2, "evaluate_every": 100} | options)


def weights(lm):
    return torch.cat([p.detach().flatten() for p in lm.model.parameters()])


def gradient(lm):
    return torch.cat([p.grad.flatten() for p in lm.model.parameters()])


def all_rows(lm):
    prompts = encode_prompts(lm, [d.prompt for d in DEMONSTRATIONS])
    return prompts, encode_responses(lm, [d.response for d in DEMONSTRATIONS])


def interrupt_at(step):
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return {"calls": float(len(calls))}

    return evaluate


def test_the_loss_is_over_reply_tokens_and_the_end(tiny_lm):
    """Against the definition: one demonstration and one token at a time, in float64, without padding."""
    lm = tiny_lm.copy()
    prompts, replies = all_rows(lm)
    loss = imitation_gradient(lm, make_batch(prompts, replies, lm.pad_id), micro_batch=4)
    got = gradient(lm)

    total, count = 0.0, 0
    model = lm.model.double()
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply[-1] == lm.end_id
        for t, token in enumerate(reply):
            logits = model(torch.tensor([prompt + reply[:t]])).logits[0, -1]
            total = total - torch.log_softmax(logits, -1)[token]
            count += 1
    assert count == sum(map(len, replies))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total / count, list(model.parameters()))])
    assert loss == pytest.approx(float(total.detach() / count), abs=1e-4)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-4)


def test_padding_order_and_micro_batches_change_nothing(tiny_lm):
    prompts, replies = all_rows(tiny_lm)
    order, results = [3, 0, 5, 2, 4, 1], []
    for rows, micro_batch in ((range(6), 6), (range(6), 1), (range(6), 4), (order, 4)):
        lm = tiny_lm.copy()
        batch = make_batch([prompts[i] for i in rows], [replies[i] for i in rows], lm.pad_id)
        results.append((imitation_gradient(lm, batch, micro_batch), gradient(lm)))
    for loss, other in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        torch.testing.assert_close(other, results[0][1], atol=1e-6, rtol=1e-5)


def test_micro_batch_does_not_change_the_run(tiny_gpt2):
    models = [train_sft(tiny_gpt2, DEMONSTRATIONS, config(micro_batch=m)).model for m in (1, 3, 32)]
    for other in models[1:]:
        # Adam divides by the gradient's size, so a rounding error of a tiny gradient can move a weight by a step.
        assert (weights(other) - weights(models[0])).abs().quantile(0.99) < 1e-6


def test_a_run_teaches_the_replies_and_leaves_the_start_alone(tiny_gpt2):
    before = weights(tiny_gpt2).clone()
    four = DEMONSTRATIONS[:4]
    result = train_sft(tiny_gpt2, four, config(steps=60, learning_rate=1e-2))
    assert torch.equal(weights(tiny_gpt2), before)
    assert all(p.grad is None for p in tiny_gpt2.model.parameters())
    assert result.history.last("loss") < 0.05 < result.history.column("loss")[1][0]
    assert result.model.model.training is False
    rollout = sample_responses(result.model, [d.prompt for d in four], temperature=0.0, generator=torch.Generator())
    assert list(rollout.texts) == [d.response for d in four]
    assert rollout.ended.all()
    assert decode_responses(result.model, rollout.batch.response_ids, rollout.batch.mask) == list(rollout.texts)


def test_long_replies_are_cut_and_counted(tiny_gpt2):
    lengths = [len(row) for row in encode_responses(tiny_gpt2, [d.response for d in DEMONSTRATIONS])]
    result = train_sft(tiny_gpt2, DEMONSTRATIONS, config(steps=1, max_new_tokens=8))
    assert result.cut == sum(n > 8 for n in lengths) > 0
    assert train_sft(tiny_gpt2, DEMONSTRATIONS, config(steps=1)).cut == 0


def test_interrupt_and_resume_are_the_straight_run(tiny_gpt2, tmp_path):
    settings, file = config(evaluate_every=1), tmp_path / "run.pt"
    straight = train_sft(tiny_gpt2, DEMONSTRATIONS, settings, evaluate=interrupt_at(99))
    evaluate = interrupt_at(3)
    half = train_sft(tiny_gpt2, DEMONSTRATIONS, settings, evaluate=evaluate, checkpoint=file)
    assert half.interrupted
    assert half.history.rows[-1]["step"] == 2
    rest = train_sft(tiny_gpt2, DEMONSTRATIONS, settings, evaluate=evaluate, checkpoint=file)
    assert not rest.interrupted
    assert torch.equal(weights(rest.model), weights(straight.model))
    assert rest.history == straight.history


def test_an_interrupt_between_evaluations_adds_none(tiny_gpt2, tmp_path, monkeypatch):
    """Or the history of the resumed run would differ from that of a straight one."""
    settings, file, noop = config(evaluate_every=4), tmp_path / "run.pt", interrupt_at(99)
    from rlhf_lab.recipes import sft

    calls, step = [], sft.clipped_step

    def step_with_interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "clipped_step", step_with_interrupt)
        half = train_sft(tiny_gpt2, DEMONSTRATIONS, settings, evaluate=noop, checkpoint=file)
    assert half.history.column("calls")[0].tolist() == [0]
    rest = train_sft(tiny_gpt2, DEMONSTRATIONS, settings, evaluate=noop, checkpoint=file)
    straight = train_sft(tiny_gpt2, DEMONSTRATIONS, settings, evaluate=interrupt_at(99))
    assert rest.history == straight.history
    assert rest.history.column("calls")[0].tolist() == [0, 4, 6]


def test_a_checkpoint_of_another_run_is_refused(tiny_gpt2, tmp_path):
    train_sft(tiny_gpt2, DEMONSTRATIONS, config(steps=1), checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="demonstrations"):
        train_sft(tiny_gpt2, DEMONSTRATIONS[1:], config(steps=1), checkpoint=tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="learning_rate"):
        train_sft(tiny_gpt2, DEMONSTRATIONS, config(steps=1, learning_rate=1e-5), checkpoint=tmp_path / "run.pt")


def test_not_a_number_stops_the_run_and_keeps_the_last_good_state(tiny_gpt2, tmp_path):
    looks = []

    def poison(lm):
        looks.append(lm)
        if len(looks) == 2:
            lm.model.transformer.ln_f.bias.register_hook(lambda gradient: gradient * float("nan"))
        return {}

    settings, file = config(evaluate_every=2), tmp_path / "run.pt"
    with pytest.raises(FloatingPointError, match=r"gradient norm is \[nan\] at step 3"):
        train_sft(tiny_gpt2, DEMONSTRATIONS, settings, evaluate=poison, checkpoint=file)
    rest = train_sft(tiny_gpt2, DEMONSTRATIONS, settings, checkpoint=file)
    assert torch.equal(weights(rest.model), weights(train_sft(tiny_gpt2, DEMONSTRATIONS, settings).model))


def test_bad_input_is_named(tiny_gpt2):
    with pytest.raises(ValueError, match="demonstrations is 'empty'; expected at least one"):
        train_sft(tiny_gpt2, [])
    long = Demonstration(as_conversation("word " * 300), "No.")
    with pytest.raises(ValueError, match=r"prompt 1 .*expected at most 192"):
        train_sft(tiny_gpt2, [DEMONSTRATIONS[0], long])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("demonstrations_per_step", 0), ("micro_batch", 0), ("learning_rate", 0.0),
        ("learning_rate", float("inf")), ("weight_decay", -1.0), ("warmup", -1), ("max_grad_norm", -1.0),
        ("max_new_tokens", 0), ("evaluate_every", 0), ("checkpoint_every", 0),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is "):
        SFTConfig(**{name: value})


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="learning_rat"):
        SFTConfig(learning_rat=1.0)


def test_rows_of_the_field_are_taken_as_records(tiny_gpt2):
    rows = [{"prompt": d.prompt[0].content, "completion": d.response} for d in DEMONSTRATIONS if len(d.prompt) == 1]
    records = [d for d in DEMONSTRATIONS if len(d.prompt) == 1]
    results = [train_sft(tiny_gpt2, given, config(steps=2)) for given in (rows, records)]
    assert results[0].history == results[1].history
    with pytest.raises(ValueError, match="row 1, completion: the field is missing"):
        train_sft(tiny_gpt2, [rows[0], {"prompt": "Hi"}], config(steps=1))
