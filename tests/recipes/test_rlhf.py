"""The RLHF recipe: it learns, its gradient is the policy gradient, and a resumed run is the run itself."""

import dataclasses
import math
import signal

import pytest
import torch
from test_rollouts import PROMPTS, WORDS, word_model

from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.scoring import ValueHead, forward, response_log_probs
from rlhf_lab.recipes import rlhf
from rlhf_lab.recipes.rlhf import OptimiserConfig, RLHFConfig, train_rlhf
from rlhf_lab.training.files import CheckpointError, load_checkpoint
from rlhf_lab.training.randomness import generator_for

torch.set_num_threads(1)
SMALL = RLHFConfig(
    iterations=3,
    prompts_per_iteration=12,
    minibatch_rows=6,
    micro_batch=4,
    max_new_tokens=6,
    learning_rate=1e-2,
    value_learning_rate=1e-2,
    value="policy_head",
    kl_coef=0.05,
)
LEARN = dataclasses.replace(
    SMALL, iterations=20, prompts_per_iteration=48, minibatch_rows=24, micro_batch=32, kl_coef=0.0
)
HEADS = ("policy_head", "reward_model")


def with_(config=SMALL, **changes):
    return dataclasses.replace(config, **changes)


def share_of_c(rollout):
    """A reward that any policy gradient must learn: the share of the token c in the reply."""
    batch = rollout.batch
    return ((batch.response_ids == WORDS.index("c")) & batch.mask).float().sum(1) / batch.response_lengths


def score_model(lm, seed=3):
    model = RewardModel.from_language_model(lm, torch.Generator().manual_seed(seed))
    model.score_mean, model.score_std = 0.4, 2.0
    return model


def weights(result):
    network = result.value if isinstance(result.value, ValueHead) else result.value.model
    return [*result.model.model.state_dict().values(), *network.state_dict().values()]


def fresh(config=SMALL, lm=None, reward=share_of_c):
    """A run before its first step, a rollout and its experience."""
    lm = lm or word_model()
    run = rlhf.Run.start(lm, reward, config)
    head = run.value if isinstance(run.value, ValueHead) else None
    rollout = sample_responses(
        run.policy,
        PROMPTS * 2,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        generator=torch.Generator().manual_seed(1),
        value_head=head,
    )
    return run, rollout, *rlhf.score_rollout(run, rollout, reward, config)


# ---- it learns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "value"), [("gpt2", "policy_head"), ("llama", "reward_model")])
def test_learns_a_trivial_reward(architecture, value):
    config = with_(LEARN, value=value, missing_end_penalty=0.0)
    result = train_rlhf(word_model(architecture), PROMPTS, share_of_c, config)
    _, scores = result.history.column("score")
    assert scores[0] < 0.1
    assert scores[-3:].mean() > 0.7
    assert not result.interrupted


@pytest.mark.parametrize("value", HEADS)
def test_the_value_learns_the_returns(value):
    """On one rollout with the policy held still, explained variance goes from nothing to most of it."""
    config = with_(LEARN, value=value, learning_rate=1e-9, value_clip_epsilon=10.0, epochs=60, value_coef=1.0)
    if value == "policy_head":  # a head alone fits less than a model
        config = with_(config, learning_rate=1e-3)
    run, rollout, experience, numbers = fresh(config)
    assert abs(numbers["explained_variance"]) < 0.05
    rlhf.set_learning_rate(run.state.optimiser, config, 0)
    rlhf.optimise(run, experience, [], config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = rlhf.values_of(run.value, rollout.batch, forward(run.policy, rollout.batch).hidden)[:, :-1]
    error = (values - experience.returns)[rollout.batch.mask].var()
    assert error < 0.5 * experience.returns[rollout.batch.mask].var()


def test_learns_to_end():
    config = with_(LEARN, iterations=16, missing_end_penalty=1.0)
    result = train_rlhf(word_model("llama"), PROMPTS, lambda rollout: torch.zeros(len(rollout)), config)
    _, ended = result.history.column("ended")
    assert ended[0] < 0.6
    assert ended[-4:].mean() > 0.9


def test_a_short_leash_keeps_the_policy_near():
    kls = {}
    for kl_coef in (0.0, 2.0):
        result = train_rlhf(word_model(), PROMPTS, share_of_c, with_(LEARN, iterations=12, kl_coef=kl_coef))
        kls[kl_coef] = result.history.column("kl")[1][-3:].mean()
        assert result.history.column("kl")[1][0] == pytest.approx(0, abs=1e-4)
        assert (result.history.column("kl_k3")[1] >= 0).all()
    assert kls[2.0] < 0.3 * kls[0.0]


def test_adaptive_coefficient_follows_the_target():
    high = train_rlhf(word_model(), PROMPTS, share_of_c, with_(kl_target=1e-3))
    low = train_rlhf(word_model(), PROMPTS, share_of_c, with_(kl_target=1e3))
    assert low.history.column("kl_coef")[1].tolist() == pytest.approx([0.05, 0.05 * 0.98, 0.05 * 0.98**2])
    coefficients = high.history.column("kl_coef")[1]
    assert coefficients[2] == pytest.approx(coefficients[1] * 1.02)
    # In the middle of the range it moves in proportion to the error.
    assert rlhf.adapted_kl_coef(1.0, kl=6.6, target=6.0) == pytest.approx(1.01)


def test_entropy_bonus_keeps_entropy():
    ends = [
        train_rlhf(word_model(), PROMPTS, share_of_c, with_(LEARN, iterations=8, entropy_coef=coef))
        for coef in (0.0, 0.5)
    ]
    assert ends[1].history.last("entropy") > ends[0].history.last("entropy") + 0.2


def test_language_model_loss_keeps_perplexity():
    texts = ["a b c d a b", "d c b a d c b"] * 4
    losses = {}
    for lm_coef in (0.0, 2.0):
        config = with_(LEARN, iterations=8, lm_coef=lm_coef)
        result = train_rlhf(word_model(), PROMPTS, share_of_c, config, lm_texts=texts)
        rows = [result.model.tokenizer(text)["input_ids"] for text in texts]
        batch = rlhf.make_batch([row[:1] for row in rows], [row[1:] for row in rows], 0)
        losses[lm_coef] = -response_log_probs(result.model, batch)[batch.mask].mean()
    assert losses[2.0] < losses[0.0] - 1
    assert result.history.last("lm_loss") == pytest.approx(float(losses[2.0]), abs=0.5)


# ---- the step is the formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_at_ratio_one_is_the_policy_gradient(architecture, temperature):
    """Against mean over tokens of A grad log pi, each row scored alone by a plain forward pass."""
    config = with_(value="reward_model", temperature=temperature)
    run, rollout, experience, _ = fresh(config, word_model(architecture))
    rows = torch.arange(len(rollout))
    rlhf.minibatch_gradient(run, experience, rows, config, first=True)
    got = [p.grad.clone() for p in run.policy.model.parameters()]
    run.state.optimiser.zero_grad()
    batch, objective = rollout.batch, 0.0
    for row in rows:
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        reply = batch.response_ids[row][batch.mask[row]]
        logits = run.policy.model(torch.cat([prompt, reply])[None]).logits[0, len(prompt) - 1 : -1]
        log_probs = torch.log_softmax(logits / temperature, -1).gather(1, reply[:, None]).squeeze(1)
        objective = objective + (log_probs * experience.advantages[row, : len(reply)]).sum()
    (-objective / batch.mask.sum()).backward()
    expected = [p.grad for p in run.policy.model.parameters()]
    scale = max(float(g.abs().max()) for g in expected)
    assert scale > 1e-3
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("value", HEADS)
def test_micro_batches_do_not_change_the_update(value):
    def gradients(micro_batch):
        config = with_(value=value, micro_batch=micro_batch, entropy_coef=0.1, lm_coef=0.5)
        run, _, experience, _ = fresh(config)
        rlhf.minibatch_gradient(run, experience, torch.arange(1, 11), config, first=True)
        rlhf.language_model_gradient(run.policy, [[2, 3], [4, 5, 3, 2], [3, 3, 3]], config)
        return torch.cat([p.grad.flatten() for p in run.state.model.parameters()])

    whole = gradients(32)
    assert whole.abs().max() > 1e-3
    for micro_batch in (1, 3):
        assert (gradients(micro_batch) - whole).abs().max() < 1e-6 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("value", HEADS)
def test_experience_is_what_the_definitions_say(value):
    config = with_(value=value, kl_coef=0.3, gae_lambda=0.9, missing_end_penalty=0.7)
    lm = word_model()
    run, rollout, experience, numbers = fresh(config, lm)
    run.reference = word_model(seed=5)  # so that the KL is not 0
    run.same_reference = False
    experience, numbers = rlhf.score_rollout(run, rollout, share_of_c, config)
    mask, values = rollout.batch.mask, experience.old_values
    ref = response_log_probs(run.reference, rollout.batch, config.temperature)
    scores, raw = share_of_c(rollout), torch.zeros(mask.shape)
    for b, n in enumerate(rollout.batch.response_lengths.tolist()):
        reward = -config.kl_coef * (rollout.log_probs[b] - ref[b])
        reward[n - 1] += scores[b] - (0.0 if rollout.ended[b] else 0.7)
        for t in range(n):
            for k in range(t, n):
                delta = reward[k] - values[b, k] + (values[b, k + 1] if k + 1 < n else 0.0)
                raw[b, t] += 0.9 ** (k - t) * delta
    assert (experience.returns - raw - values)[mask].abs().max() < 1e-5
    white = (raw - raw[mask].mean()) / raw[mask].std()
    assert (experience.advantages - white)[mask].abs().max() < 1e-4
    kl = ((rollout.log_probs - ref) * mask).sum(1).mean()
    assert numbers["kl"] == pytest.approx(float(kl), rel=1e-5)
    assert numbers["score"] == pytest.approx(float(scores.mean()), rel=1e-5)
    assert numbers["ended"] == pytest.approx(float(rollout.ended.float().mean()))
    assert 0 < numbers["ended"] < 1
    for field in dataclasses.fields(experience)[1:]:
        assert not getattr(experience, field.name).requires_grad


def test_value_model_starts_as_the_reward_model():
    lm = word_model("llama")
    reward = score_model(lm)
    config = with_(value="reward_model")
    run, rollout, experience, numbers = fresh(config, lm, reward)
    scores = reward.score_batch(rollout.batch)
    assert numbers["score"] == pytest.approx(float(scores.mean()), abs=1e-5)
    # At the state after the last token the value is the score of the reply.
    values = rlhf.values_of(run.value, rollout.batch, None)
    last = values.gather(1, rollout.batch.response_lengths[:, None]).squeeze(1)
    assert (last - scores).abs().max() < 1e-4
    assert (experience.old_values - values[:, :-1])[rollout.batch.mask].abs().max() < 1e-4
    result = train_rlhf(lm, PROMPTS, reward, config)
    trained, start = result.value.model.state_dict(), reward.model.state_dict()
    assert any(not torch.equal(trained[name], start[name]) for name in start)  # a copy was trained
    assert all(
        torch.equal(a, b) for a, b in zip(score_model(lm).model.state_dict().values(), start.values(), strict=True)
    )


def test_value_init_is_used_with_a_plain_function():
    lm = word_model()
    start = score_model(lm)
    run = rlhf.Run.start(lm, share_of_c, with_(value="reward_model"), value_init=start)
    assert run.value is not start
    assert run.value.score_std == 2.0
    assert torch.equal(*(next(m.model.parameters()) for m in (run.value, start)))
    # Without one: the policy's own backbone under a new head.
    run = rlhf.Run.start(lm, share_of_c, with_(value="reward_model"))
    assert isinstance(run.value, RewardModel)
    assert torch.equal(next(run.value.model.parameters()), next(lm.model.parameters()))


def test_clipping_stops_the_gradient_outside_the_band():
    config = with_(value_coef=0.0)
    run, rollout, experience, _ = fresh(config)
    shift = -0.5 * torch.sign(experience.advantages)  # every ratio is beyond the band, on the side of the gain
    moved = dataclasses.replace(experience, old_log_probs=experience.old_log_probs + shift)
    numbers = rlhf.minibatch_gradient(run, moved, torch.arange(len(rollout)), config, first=False)
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in run.policy.model.parameters())
    assert numbers["clip_fraction"] == 1.0
    log_ratio = -shift[rollout.batch.mask]
    expected = (log_ratio.exp() - 1 - log_ratio).mean()
    assert numbers["approx_kl"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("value", HEADS)
def test_values_move_at_most_the_width_of_their_clip(value):
    config = with_(value=value, value_clip_epsilon=0.3)
    run, rollout, experience, _ = fresh(config)
    rows = torch.arange(len(rollout))
    returns = experience.old_values + 10.0
    for moved, stopped in ((0.2, False), (0.4, True)):  # how far the values have moved towards the returns
        old = dataclasses.replace(experience, old_values=experience.old_values - moved, returns=returns)
        numbers = rlhf.minibatch_gradient(run, old, rows, config, first=False)
        head = list(run.state.model["value"].parameters())[-1]
        assert (head.grad.abs().max() == 0) == stopped
        assert numbers["value_loss"] == pytest.approx(0.5 * (10.0 + (moved - 0.3) * stopped) ** 2, rel=1e-4)


def test_kl_stop_ends_the_epochs(monkeypatch):
    steps = []
    step = rlhf.Run.clipped_step
    monkeypatch.setattr(rlhf.Run, "clipped_step", lambda run, config: steps.append(1) or step(run, config))
    train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1, epochs=4))
    assert len(steps) == 8
    steps.clear()
    train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1, epochs=4, kl_stop=1e-6))
    assert len(steps) == 1


def test_learning_rate_schedule():
    schedule = OptimiserConfig(warmup_iterations=3, final_fraction=0.25)
    config = with_(iterations=11, optimiser=schedule, learning_rate=1.0, value_learning_rate=2.0)
    run = rlhf.Run.start(word_model(), share_of_c, config)
    rates = []
    for iteration in range(11):
        rlhf.set_learning_rate(run.state.optimiser, config, iteration)
        rates.append([group["lr"] for group in run.state.optimiser.param_groups])
    assert rates[0] == pytest.approx([0.25, 0.5])
    assert rates[3] == pytest.approx([1 - 0.75 * 0.3, 2 - 1.5 * 0.3])
    assert rates[10] == pytest.approx([0.25, 0.5])


def test_every_prompt_is_used_once_a_lap():
    prompts = list("abcdefg")
    config = with_(prompts_per_iteration=6)
    used = [p for i in range(7) for p in rlhf.prompts_of(prompts, config, i)]
    assert all(sorted(used[lap : lap + 7]) == prompts for lap in range(0, 42, 7))
    assert used[:7] != used[7:14]


# ---- the run ----------------------------------------------------------------------------------------------


def test_policy_and_reference_are_left_alone():
    lm = word_model()
    result = train_rlhf(lm, PROMPTS, share_of_c, SMALL)
    same = zip(lm.model.state_dict().values(), word_model().model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert not torch.equal(next(result.model.model.parameters()), next(lm.model.parameters()))


def test_result_history_and_timings():
    calls, evaluated = [], []

    def reward(rollout):
        calls.append(len(rollout))
        return share_of_c(rollout)

    def evaluate(model):
        evaluated.append(model)
        return {"held_out": float(len(evaluated))}

    config = with_(iterations=5, evaluate_every=2)
    result = train_rlhf(word_model(), PROMPTS, reward, config, evaluate=evaluate)
    assert calls == [12] * 5
    assert result.history.column("held_out")[0].tolist() == [0, 2, 4, 5]
    assert result.history.column("score")[0].tolist() == [1, 2, 3, 4, 5]
    assert all(len(seconds) == 5 for seconds in result.timings.values())
    assert evaluated[-1] is result.model
    for name in (
        "kl",
        "entropy",
        "clip_fraction",
        "approx_kl",
        "value_loss",
        "length",
        "ended",
        "learning_rate",
    ):
        assert math.isfinite(result.history.last(name))


def test_same_seed_same_run():
    runs = [train_rlhf(word_model(), PROMPTS, share_of_c, with_(seed=seed)) for seed in (1, 1, 2)]
    assert runs[0].history.to_list() == runs[1].history.to_list() != runs[2].history.to_list()
    assert all(torch.equal(a, b) for a, b in zip(weights(runs[0]), weights(runs[1]), strict=True))


@pytest.mark.parametrize("value", HEADS)
def test_resumes_bit_identically_after_an_interrupt(value, tmp_path):
    config = with_(iterations=4, value=value, kl_target=0.5, lm_coef=0.1, evaluate_every=1)
    texts = ["a b c", "d d d a"]

    def run(checkpoint, stop_after=None):
        calls = []

        def evaluate(model):
            calls.append(model)
            if len(calls) - 1 == stop_after:
                signal.raise_signal(signal.SIGINT)
            return {"norm": float(sum(p.detach().norm() for p in model.model.parameters()))}

        options = {"evaluate": evaluate, "lm_texts": texts, "checkpoint": checkpoint}
        return train_rlhf(word_model(), PROMPTS, score_model(word_model()), config, **options)

    whole = run(None)
    part = run(tmp_path / "run.pt", stop_after=2)
    assert part.interrupted
    assert len(part.history) == 3
    rest = run(tmp_path / "run.pt")
    assert not rest.interrupted
    assert rest.history.to_list() == whole.history.to_list()
    assert all(torch.equal(a, b) for a, b in zip(weights(rest), weights(whole), strict=True))
    assert rest.check_cost == whole.check_cost
    again = run(tmp_path / "run.pt")  # already finished: nothing is run
    assert again.history.to_list() == whole.history.to_list()
    assert again.timings["sample"] == []


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1), checkpoint=path)
    with pytest.raises(CheckpointError, match="configuration"):
        train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1, kl_coef=0.1), checkpoint=path)
    with pytest.raises(CheckpointError, match="prompts"):
        train_rlhf(word_model(), PROMPTS[1:], share_of_c, with_(iterations=1), checkpoint=path)
    with pytest.raises(CheckpointError, match="reference"):
        train_rlhf(word_model(seed=1), PROMPTS, share_of_c, with_(iterations=1), checkpoint=path)


def test_nan_reward_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    path, calls = tmp_path / "run.pt", []

    def reward(rollout):
        calls.append(1)
        return share_of_c(rollout) * (float("nan") if len(calls) == 3 else 1.0)

    with pytest.raises(FloatingPointError, match="reward scores at step 3"):
        train_rlhf(word_model(), PROMPTS, reward, SMALL, checkpoint=path)
    state = load_checkpoint(path)
    assert state["step"] == 2
    assert all(torch.isfinite(x).all() for x in state["model"].values())
    # The fault mended, the run goes on as if it had not happened.
    mended = train_rlhf(word_model(), PROMPTS, share_of_c, SMALL, checkpoint=path)
    whole = train_rlhf(word_model(), PROMPTS, share_of_c, SMALL)
    assert mended.history.to_list() == whole.history.to_list()


def test_infinite_gradient_is_caught_before_the_step():
    run, rollout, experience, _ = fresh()
    broken = dataclasses.replace(experience, returns=experience.returns + float("inf"))
    with pytest.raises(FloatingPointError, match="losses at step 1"):
        rlhf.minibatch_gradient(run, broken, torch.arange(len(rollout)), SMALL, first=False)
    rlhf.minibatch_gradient(run, experience, torch.arange(len(rollout)), SMALL, first=True)
    next(run.policy.model.parameters()).grad[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="gradient norms"):
        run.clipped_step(SMALL)
    assert all(torch.isfinite(p).all() for p in run.policy.model.parameters())


@pytest.mark.parametrize("value", HEADS)
def test_bfloat16_scores_the_replies_again(value):
    lm = word_model(spread=0.3)
    lm.precision = torch.bfloat16
    config = with_(value=value)
    run, rollout, experience, _ = fresh(config, lm)
    with torch.no_grad():
        again = response_log_probs(run.policy, rollout.batch, config.temperature, 4)
    assert (experience.old_log_probs - again).abs().max() < 0.05
    assert all(p.dtype == torch.float32 for p in run.policy.model.parameters())
    assert math.isfinite(train_rlhf(lm, PROMPTS, share_of_c, config).history.last("kl"))


def test_tokenizers_must_agree_with_a_reward_model():
    other = word_model(words=(*WORDS, "e"))
    with pytest.raises(ValueError, match="another tokenizer"):
        train_rlhf(word_model(), PROMPTS, score_model(other), SMALL)
    model = score_model(other)  # scored as text it works
    train_rlhf(word_model(), PROMPTS, lambda r: model.score(r.conversations, r.texts), with_(iterations=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": "a b"}, "prompts"),
        ({"reward": 1.0}, "reward"),
        ({"reward": lambda rollout: 1.0}, "12 scores"),
        ({"reward": lambda rollout: torch.zeros(3)}, r"\[3\]; expected a tensor of 12 scores"),
        ({"config": with_(lm_coef=1.0)}, "lm_texts"),
        ({"config": with_(lm_coef=1.0), "lm_texts": ["a b", "a"]}, r"lm_texts\[1\]"),
        ({"prompts": ["a " * 70]}, "6[0-9]|7[0-9]"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"prompts": PROMPTS, "reward": share_of_c, "config": SMALL} | change
    with pytest.raises(ValueError, match=message):
        train_rlhf(word_model(), **arguments)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, 0) for name in ("iterations", "prompts_per_iteration", "max_new_tokens", "epochs", "micro_batch")),
        *((name, 0.0) for name in ("temperature", "learning_rate", "value_learning_rate", "clip_epsilon")),
        *((name, -0.1) for name in ("value_coef", "entropy_coef", "kl_coef", "lm_coef", "missing_end_penalty")),
        *((name, float("nan")) for name in ("kl_coef", "temperature")),
        ("minibatch_rows", 13),
        ("evaluate_every", 0),
        ("value_clip_epsilon", -1.0),
        ("gae_lambda", 1.1),
        ("kl_target", 0.0),
        ("kl_stop", -1.0),
        ("value", "reward"),
    ],
)
def test_impossible_config_values(name, bad):
    with pytest.raises(ValueError, match=name):
        with_(**{name: bad})


def test_impossible_optimiser_values():
    for name, bad in (
        ("adam_epsilon", 0.0),
        ("max_grad_norm", 0.0),
        ("warmup_iterations", -1),
        ("final_fraction", 2.0),
    ):
        with pytest.raises(ValueError, match=name):
            OptimiserConfig(**{name: bad})
    with pytest.raises(TypeError):
        RLHFConfig(kl_coeff=0.1)
    assert len(dataclasses.fields(RLHFConfig)) <= 24


def test_randomness_is_of_the_iteration_only():
    """A stream for each iteration: what ran before does not matter, which is why nothing random is saved."""
    a, b = (torch.rand(3, generator=generator_for(0, "rlhf", i)) for i in (1, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(3, generator=generator_for(0, "rlhf", 2)))


def test_one_forward_serves_policy_and_value_head(monkeypatch):
    calls = []
    monkeypatch.setattr(rlhf, "forward", lambda lm, batch: calls.append(len(batch)) or forward(lm, batch))
    train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1, epochs=1, micro_batch=6))
    assert calls == [6, 6]  # two minibatches; nothing was scored again
