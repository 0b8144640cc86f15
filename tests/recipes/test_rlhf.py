"""The RLHF recipe: it learns, its gradient is the policy gradient, and a resumed run is the run itself."""

import dataclasses
import math
import signal
from types import SimpleNamespace

import pytest
import torch
from toy_models import PROMPTS, WORDS, score_model, word_model

from rlhf_lab.experience import updates
from rlhf_lab.experience.rewards import adapted_kl_coef
from rlhf_lab.experience.updates import accumulate_gradient, language_model_gradient, update_numbers
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.scoring import forward, response_log_probs
from rlhf_lab.models.tokens import make_batch
from rlhf_lab.recipes import rlhf
from rlhf_lab.recipes.rlhf import RLHFConfig, train_rlhf
from rlhf_lab.training.files import CheckpointError, load_checkpoint
from rlhf_lab.training.optimisers import OptimiserConfig, clipped_step, scale_rates
from rlhf_lab.training.randomness import generator_for, minibatches

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


def weights(result):
    return [*result.model.model.state_dict().values(), *result.value.network.state_dict().values()]


def fresh(config=SMALL, lm=None, reward=share_of_c, **options):
    """The agent of a run before its first step; the experience and the row of its first iteration."""
    lm, seen = lm or word_model(), []

    def watch(losses, part, *rest):
        seen.append(part)
        return accumulate_gradient(losses, part, *rest)

    whole = with_(config, iterations=1, epochs=1, minibatch_rows=config.prompts_per_iteration)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlhf, "accumulate_gradient", watch)
        result = train_rlhf(lm, PROMPTS, reward, whole, **options)
    policy, critic = lm.copy(), rlhf.new_critic(lm, reward, options.get("value_init"), config)
    for network in (policy.model, critic.network):
        network.requires_grad_(True)
    agent = SimpleNamespace(policy=policy, critic=critic, losses=rlhf.new_losses(policy, critic, config))
    agent.networks = torch.nn.ModuleDict({"policy": policy.model, "value": critic.network})
    return agent, seen[0], result.history.rows[-1]


def ended(lm, batch):
    """Whether the last real token of each reply is the end token."""
    return batch.response_ids.gather(1, batch.response_lengths[:, None] - 1).squeeze(1) == lm.end_id


def grads(network):
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


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
    agent, experience, numbers = fresh(config)
    assert abs(numbers["explained_variance"]) < 0.05
    optimiser, generator = rlhf.new_optimiser(agent.networks, config), torch.Generator().manual_seed(0)
    scale_rates(optimiser, 1.0)
    for rows in minibatches(len(experience.batch), config.minibatch_rows, config.epochs, generator):
        optimiser.zero_grad()
        accumulate_gradient(agent.losses, experience.select(rows), config.micro_batch, config.value_coef)
        clipped_step(optimiser, 1.0, 1, *agent.networks.values())
    batch = experience.batch
    with torch.no_grad():
        values = agent.critic.values(batch, forward(agent.policy, batch).hidden)[:, :-1]
    error = (values - experience.returns)[batch.mask].var()
    assert error < 0.5 * experience.returns[batch.mask].var()


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
    assert adapted_kl_coef(1.0, kl=6.6, target=6.0) == pytest.approx(1.01)


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
        batch = make_batch([row[:1] for row in rows], [row[1:] for row in rows], 0)
        losses[lm_coef] = -response_log_probs(result.model, batch)[batch.mask].mean()
    assert losses[2.0] < losses[0.0] - 1
    assert result.history.last("lm_loss") == pytest.approx(float(losses[2.0]), abs=0.5)


# ---- the step is the formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient_at_ratio_one_is_the_policy_gradient(architecture, temperature):
    """Against mean over tokens of A grad log pi, each row scored alone by a plain forward pass."""
    config = with_(value="reward_model", temperature=temperature)
    agent, experience, _ = fresh(config, word_model(architecture))
    accumulate_gradient(agent.losses, experience, config.micro_batch, config.value_coef)
    got = [p.grad.clone() for p in agent.policy.model.parameters()]
    agent.networks.zero_grad()
    batch, objective = experience.batch, 0.0
    for row in range(len(batch)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]]
        reply = batch.response_ids[row][batch.mask[row]]
        logits = agent.policy.model(torch.cat([prompt, reply])[None]).logits[0, len(prompt) - 1 : -1]
        log_probs = torch.log_softmax(logits / temperature, -1).gather(1, reply[:, None]).squeeze(1)
        objective = objective + (log_probs * experience.advantages[row, : len(reply)]).sum()
    (-objective / batch.mask.sum()).backward()
    expected = [p.grad for p in agent.policy.model.parameters()]
    scale = max(float(g.abs().max()) for g in expected)
    assert scale > 1e-3
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("value", HEADS)
def test_micro_batches_do_not_change_the_update(value):
    def gradients(micro_batch):
        config = with_(value=value, entropy_coef=0.1, lm_coef=0.5)
        agent, experience, _ = fresh(config, lm_texts=["a b", "c d b a", "b b b"])
        part, texts = experience.select(torch.arange(1, 11)), [[2, 3], [4, 5, 3, 2], [3, 3, 3]]
        accumulate_gradient(agent.losses, part, micro_batch, config.value_coef)
        language_model_gradient(agent.policy, texts, 5, 0.5, micro_batch, torch.Generator().manual_seed(0))
        return grads(agent.networks)

    whole = gradients(32)
    assert whole.abs().max() > 1e-3
    for micro_batch in (1, 3):
        assert (gradients(micro_batch) - whole).abs().max() < 1e-6 * max(1.0, float(whole.abs().max()))


@pytest.mark.parametrize("value", HEADS)
def test_experience_is_what_the_definitions_say(value):
    config = with_(value=value, kl_coef=0.3, gae_lambda=0.9, missing_end_penalty=0.7)
    lm, reference = word_model(), word_model(seed=5)  # another one, so that the KL is not 0
    _, experience, numbers = fresh(config, lm, reference=reference)
    batch, mask, values = experience.batch, experience.batch.mask, experience.old_values
    own, ref = (response_log_probs(model, batch, config.temperature) for model in (lm, reference))
    scores, raw, whole = share_of_c(SimpleNamespace(batch=batch)), torch.zeros(mask.shape), ended(lm, batch)
    assert (experience.old_log_probs - own).abs().max() < 1e-5
    for b, n in enumerate(batch.response_lengths.tolist()):
        reward = -config.kl_coef * (own[b] - ref[b])
        reward[n - 1] += scores[b] - (0.0 if whole[b] else 0.7)
        for t in range(n):
            for k in range(t, n):
                delta = reward[k] - values[b, k] + (values[b, k + 1] if k + 1 < n else 0.0)
                raw[b, t] += 0.9 ** (k - t) * delta
    assert (experience.returns - raw - values)[mask].abs().max() < 1e-5
    white = (raw - raw[mask].mean()) / raw[mask].std()
    assert (experience.advantages - white)[mask].abs().max() < 1e-4
    kl = ((own - ref) * mask).sum(1).mean()
    assert numbers["kl"] == pytest.approx(float(kl), rel=1e-4)
    assert numbers["score"] == pytest.approx(float(scores.mean()), rel=1e-5)
    assert numbers["ended"] == pytest.approx(float(whole.float().mean()))
    assert 0 < numbers["ended"] < 1
    tensors = [getattr(experience, field.name) for field in dataclasses.fields(experience)[1:]]
    assert sum(tensor is not None for tensor in tensors) == 4
    assert not any(tensor.requires_grad for tensor in tensors if tensor is not None)


def test_value_model_starts_as_the_reward_model():
    lm = word_model("llama")
    reward = score_model(lm)
    config = with_(value="reward_model")
    agent, experience, numbers = fresh(config, lm, reward)
    batch = experience.batch
    scores = reward.score_batch(batch)
    assert numbers["score"] == pytest.approx(float(scores.mean()), abs=1e-5)
    # At the state after the last token the value is the score of the reply.
    values = agent.critic.values(batch, None)
    last = values.gather(1, batch.response_lengths[:, None]).squeeze(1)
    assert (last - scores).abs().max() < 1e-4
    assert (experience.old_values - values[:, :-1])[batch.mask].abs().max() < 1e-4
    result = train_rlhf(lm, PROMPTS, reward, config)
    trained, start = result.value.model.state_dict(), reward.model.state_dict()
    assert any(not torch.equal(trained[name], start[name]) for name in start)  # a copy was trained
    assert all(
        torch.equal(a, b) for a, b in zip(score_model(lm).model.state_dict().values(), start.values(), strict=True)
    )


def test_value_init_is_used_with_a_plain_function():
    lm = word_model()
    start = score_model(lm)
    config = with_(value="reward_model")
    critic = rlhf.new_critic(lm, share_of_c, start, config)
    assert critic is not start
    assert critic.score_std == 2.0
    assert torch.equal(*(next(m.model.parameters()) for m in (critic, start)))
    # Without one: the policy's own backbone under a new head.
    critic = rlhf.new_critic(lm, share_of_c, None, config)
    assert isinstance(critic, RewardModel)
    assert torch.equal(next(critic.model.parameters()), next(lm.model.parameters()))


def test_clipping_stops_the_gradient_outside_the_band():
    config = with_(value_coef=0.0)
    agent, experience, _ = fresh(config)
    shift = -0.5 * torch.sign(experience.advantages)  # every ratio is beyond the band, on the side of the gain
    moved = dataclasses.replace(experience, old_log_probs=experience.old_log_probs + shift)
    new, _ = accumulate_gradient(agent.losses, moved, config.micro_batch)
    numbers = update_numbers(new, moved, config.clip_epsilon)
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in agent.policy.model.parameters())
    assert numbers["clip_fraction"] == 1.0
    log_ratio = -shift[experience.batch.mask]
    expected = (log_ratio.exp() - 1 - log_ratio).mean()
    assert numbers["approx_kl"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("value", HEADS)
def test_values_move_at_most_the_width_of_their_clip(value):
    config = with_(value=value, value_clip_epsilon=0.3)
    agent, experience, _ = fresh(config)
    returns = experience.old_values + 10.0
    for moved, stopped in ((0.2, False), (0.4, True)):  # how far the values have moved towards the returns
        old = dataclasses.replace(experience, old_values=experience.old_values - moved, returns=returns)
        agent.networks.zero_grad()
        _, numbers = accumulate_gradient(agent.losses, old, config.micro_batch, config.value_coef)
        head = list(agent.critic.network.parameters())[-1]
        assert (head.grad.abs().max() == 0) == stopped
        assert numbers["value_loss"] == pytest.approx(0.5 * (10.0 + (moved - 0.3) * stopped) ** 2, rel=1e-4)


def test_kl_stop_ends_the_epochs(monkeypatch):
    steps = []
    monkeypatch.setattr(rlhf, "clipped_step", lambda *given: steps.append(1) or clipped_step(*given))
    train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1, epochs=4))
    assert len(steps) == 8
    steps.clear()
    train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1, epochs=4, kl_stop=1e-6))
    assert len(steps) == 1


def test_learning_rate_schedule():
    schedule = OptimiserConfig(warmup_iterations=3, final_fraction=0.25)
    config = with_(iterations=11, optimiser=schedule, learning_rate=1.0, value_learning_rate=2.0)
    networks = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1) for name in ("policy", "value")})
    optimiser, rates = rlhf.new_optimiser(networks, config), []
    for iteration in range(11):
        scale_rates(optimiser, config.optimiser.factor(iteration, config.iterations))
        rates.append([group["lr"] for group in optimiser.param_groups])
    assert rates[0] == pytest.approx([0.25, 0.5])
    assert rates[3] == pytest.approx([1 - 0.75 * 0.3, 2 - 1.5 * 0.3])
    assert rates[10] == pytest.approx([0.25, 0.5])


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
    assert calls == [12] * 7  # one more in each of the first two iterations, where the checks compare
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
    again = run(tmp_path / "run.pt")  # already finished: nothing is run
    assert again.history.to_list() == whole.history.to_list()
    assert again.timings == {}


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1), checkpoint=path)
    with pytest.raises(CheckpointError, match=r"kl_coef differs: 0\.05 there, 0\.1 here"):
        train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1, kl_coef=0.1), checkpoint=path)
    with pytest.raises(CheckpointError, match="the input prompts differs"):
        train_rlhf(word_model(), PROMPTS[1:], share_of_c, with_(iterations=1), checkpoint=path)
    with pytest.raises(CheckpointError, match="the input reference differs"):
        train_rlhf(
            word_model(), PROMPTS, share_of_c, with_(iterations=1), reference=word_model(seed=1), checkpoint=path
        )
    with pytest.raises(CheckpointError, match="the input policy differs"):
        train_rlhf(word_model(seed=1), PROMPTS, share_of_c, with_(iterations=1), checkpoint=path)
    with pytest.raises(CheckpointError, match="the input reward differs"):
        train_rlhf(word_model(), PROMPTS, score_model(word_model()), with_(iterations=1), checkpoint=path)


def test_nan_reward_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    path, calls = tmp_path / "run.pt", []

    def reward(rollout):
        calls.append(1)
        return share_of_c(rollout) * (float("nan") if len(calls) == 5 else 1.0)

    with pytest.raises(FloatingPointError, match="reward scores at step 3"):
        train_rlhf(word_model(), PROMPTS, reward, SMALL, checkpoint=path)
    state = load_checkpoint(path)
    assert state["step"] == 2
    assert all(torch.isfinite(x).all() for x in state["model"].values())
    # The fault mended, the run goes on as if it had not happened.
    mended = train_rlhf(word_model(), PROMPTS, share_of_c, SMALL, checkpoint=path)
    whole = train_rlhf(word_model(), PROMPTS, share_of_c, SMALL)
    assert mended.history.to_list() == whole.history.to_list()


def test_a_later_minibatch_that_fails_leaves_the_iteration_before_it(tmp_path, monkeypatch):
    """Half of an iteration's steps are no state from which the run could go on as if nothing had happened."""
    path, steps = tmp_path / "run.pt", []

    def broken(optimiser, most, step, *models):
        steps.append(step)
        if len(steps) == 7:  # the third step of the second iteration
            next(models[0].parameters()).grad[0, 0] = float("nan")
        return clipped_step(optimiser, most, step, *models)

    monkeypatch.setattr(rlhf, "clipped_step", broken)
    with pytest.raises(FloatingPointError, match=r"gradient norm is .*at step 2") as caught:
        train_rlhf(word_model(), PROMPTS, share_of_c, SMALL, checkpoint=path)
    assert caught.value.__notes__ == [f"The last good state, after step 1, is in {path}."]
    monkeypatch.undo()
    mended = train_rlhf(word_model(), PROMPTS, share_of_c, SMALL, checkpoint=path)
    whole = train_rlhf(word_model(), PROMPTS, share_of_c, SMALL)
    assert mended.history.to_list() == whole.history.to_list()
    assert all(torch.equal(a, b) for a, b in zip(weights(mended), weights(whole), strict=True))


def test_infinite_losses_are_caught_before_the_step():
    agent, experience, _ = fresh()
    broken = dataclasses.replace(experience, returns=experience.returns + float("inf"))
    with pytest.raises(FloatingPointError, match="policy and value loss"):
        accumulate_gradient(agent.losses, broken, SMALL.micro_batch, SMALL.value_coef)


@pytest.mark.parametrize("value", HEADS)
def test_bfloat16_scores_the_replies_again(value):
    lm = word_model(spread=0.3)
    lm.precision = torch.bfloat16
    config = with_(value=value)
    agent, experience, _ = fresh(config, lm)
    again = response_log_probs(agent.policy, experience.batch, config.temperature, 4)
    assert (experience.old_log_probs - again).abs().max() < 0.05
    assert all(p.dtype == torch.float32 for p in agent.policy.model.parameters())
    assert math.isfinite(train_rlhf(lm, PROMPTS, share_of_c, config).history.last("kl"))


def test_tokenizers_must_agree_with_a_reward_model():
    other = word_model(words=(*WORDS, "e"))
    with pytest.raises(ValueError, match=r"the reward model has another vocabulary.*give a function that scores texts"):
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
    monkeypatch.setattr(updates, "forward", lambda lm, batch: calls.append(len(batch)) or forward(lm, batch))
    train_rlhf(word_model(), PROMPTS, share_of_c, with_(iterations=1, epochs=1, micro_batch=6))
    assert calls == [6, 6]  # two minibatches; nothing was scored again


def another(**changed):
    """A model of other tokens: words in another order, or another chat template."""
    lm = word_model(words=changed.pop("words", WORDS))
    lm.tokenizer.chat_template = changed.pop("template", lm.tokenizer.chat_template)
    return lm


@pytest.mark.parametrize("part", ["reference", "value_init", "reward"])
@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        ({"words": ("<|pad|>", "<|end|>", "b", "a", "c", "d")}, "vocabulary"),
        ({"template": "{% for m in messages %}{{ m.content }} a {% endfor %}"}, "chat template"),
    ],
)
def test_a_model_that_reads_other_tokens_is_refused_by_its_name(part, changed, difference):
    lm = another(**changed)
    given = lm if part == "reference" else score_model(lm)
    models = {"reward": share_of_c} | {part: given}
    name = {"reward": "the reward model"}.get(part, part)
    with pytest.raises(ValueError, match=rf"^{name} has another {difference}"):
        train_rlhf(word_model(), PROMPTS, config=with_(value="reward_model"), **models)


def test_one_prompt_and_one_token_are_enough():
    one = with_(iterations=1, prompts_per_iteration=1, minibatch_rows=1, max_new_tokens=1)
    assert train_rlhf(word_model(), ["a"], share_of_c, one).history.last("length") == 1
