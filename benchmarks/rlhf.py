"""How fast is `train_rlhf`?  `python run.py bench rlhf` answers in three parts, in one run on one machine.

1. An iteration on the shipped model: seconds to sample, score and optimise, tokens per second, memory, and the ratio
   to the bare passes: the same forward and backward passes of the same models on the same shapes, with the optimiser's
   steps and nothing around them. No PPO with these passes can be faster than ratio 1.
2. A step on a 2-layer GPT-2 against loops as one writes them by hand, which give the same losses on the same rollout:
   a plain one with four models, and a lean one with a value head, a small vocabulary and one pass a minibatch.
3. How the cost grows with prompts, reply length and model size: a table and a figure in data/results/.

Machines are noisy, so what is compared is timed in turn, and the medians of the paired ratios are printed.
Models are at float32 and learning rates near 0: steps cost what they always cost, and replies keep their length.
"""

import argparse
import contextlib
import copy
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rows import at_least
from timing import (
    WARM_UP,
    Pairs,
    Tape,
    machine,
    print_ratios,
    random_model,
    shipped_model,
    size_of,
    timed,
)
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.tokens import Rollout, TokenBatch, encode_prompts, make_batch
from rlhf_lab.recipes.pretrain import train_tokenizer
from rlhf_lab.recipes.rlhf import RLHFConfig, RLHFResult, train_rlhf
from rlhf_lab.training.folders import OutputError, RunFolder
from rlhf_lab.training.memory import peak_megabytes, reset_peak
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town

RESULTS = Path(__file__).parents[1] / "data" / "results"
STILL = {"learning_rate": 1e-7, "value_learning_rate": 1e-7}
PLAIN = RLHFConfig(
    prompts_per_iteration=64, minibatch_rows=64, max_new_tokens=24, epochs=4, **STILL
)  # the setting of part 2


# -- models, prompts, machine ---------------------------------------------------------------------------------------
def reward_of(lm: LanguageModel) -> RewardModel:
    return RewardModel.from_language_model(lm, torch.Generator().manual_seed(0))


def town_prompts(count: int) -> list:
    return [prompt.conversation for prompt in town.prompts("train", count, seed=0)]


# -- part 1: the bare passes ----------------------------------------------------------------------------------------
def in_turn(lm, prompts, reward, config: RLHFConfig, other: Callable[[], object]) -> tuple[Pairs, RLHFResult]:
    """Train, and after every iteration run and time `other`."""
    config = replace(config, evaluate_every=1)
    return timed(lambda look: train_rlhf(lm, prompts, reward, config, evaluate=look), lambda _: other())


def against_bare_passes(lm: LanguageModel, prompts: list, config: RLHFConfig) -> tuple[Pairs, RLHFResult, dict]:
    """An iteration of the library and its bare passes in turn; also the seconds of the bare parts."""
    lm, reward = lm.copy(), reward_of(lm)
    tape = Tape(lm.model, reward.model)

    def play():
        if not tape.passes:  # before the first iteration
            return
        if not tape.twins:
            tape.prepare()
        tape.play()

    try:
        pairs, result = in_turn(lm, prompts, reward, config, play)
    finally:
        tape.close()
    return pairs, result, tape.parts


# -- part 2: a loop as one writes it by hand ------------------------------------------------------------------------
class PlainLoop:
    """PPO for a language model, written down plainly: whole batches, cached decoding, everything in one file.

    Four models, as in the library's default: policy, reference, reward and value. After sampling, one pass each gives
    log-probs, reference log-probs, values and scores; then the epochs. Formulas are written out here a second time, so
    equal losses say that both are right.
    """

    def __init__(self, lm: LanguageModel, reward: RewardModel, config: RLHFConfig):
        self.policy, self.reference = copy.deepcopy(lm.model).requires_grad_(True), lm.model
        self.value, self.reward = copy.deepcopy(reward.model).requires_grad_(True), reward.model
        self.end_id, self.pad_id, self.config = lm.end_id, lm.pad_id, config
        groups = [
            {"params": list(self.policy.parameters()), "lr": config.learning_rate},
            {"params": list(self.value.parameters()), "lr": config.value_learning_rate},
        ]
        epsilon = config.optimiser.adam_epsilon
        self.optimiser = torch.optim.AdamW(groups, eps=epsilon, weight_decay=0.0, fused=True)

    def step(self, prompt_ids: Tensor, prompt_mask: Tensor, generator: torch.Generator) -> list:
        """One iteration from prompts [B, P], padded on the left; the losses of every optimiser step."""
        return self.learn(prompt_ids, prompt_mask, *self.sample(prompt_ids, prompt_mask, generator), generator)

    @torch.no_grad()
    def sample(self, prompt_ids: Tensor, mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Reply tokens [B, T] and their mask; a reply goes up to its end token or to the limit."""
        cache, inputs, positions = DynamicCache(), prompt_ids, (mask.long().cumsum(1) - 1).clamp(min=0)
        going, tokens, kept = torch.ones(len(prompt_ids), dtype=torch.bool), [], []
        for _ in range(self.config.max_new_tokens):
            logits = self.policy(
                inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            ).logits[:, -1]
            law = functional.softmax(logits / self.config.temperature, dim=-1)
            token = torch.multinomial(law, 1, generator=generator).squeeze(1).where(going, self.pad_id)
            tokens.append(token)
            kept.append(going)
            going = going & (token != self.end_id)
            if not going.any():
                break
            inputs, positions = token[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, going[:, None]], dim=1)
        return torch.stack(tokens, 1), torch.stack(kept, 1)

    def log_probs(self, model, ids: Tensor, mask: Tensor, prompt_width: int) -> Tensor:
        """Log-probs [B, T] of the reply tokens."""
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=mask, position_ids=positions).logits[:, prompt_width - 1 : -1]
        law = functional.log_softmax(logits / self.config.temperature, dim=-1)
        return law.gather(2, ids[:, prompt_width:, None]).squeeze(2)

    def head_outputs(self, model, ids: Tensor, mask: Tensor, prompt_width: int) -> Tensor:
        """Output [B, T + 1] of a scoring model from the last prompt token on."""
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        states = model.base_model(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        return model.score(states[:, prompt_width - 1 :]).squeeze(2)

    def outputs(self, ids: Tensor, mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Log-probs [B, T] and values [B, T] of the replies."""
        return self.log_probs(self.policy, ids, mask, width), self.head_outputs(self.value, ids, mask, width)[:, :-1]

    def scores(self, ids: Tensor, mask: Tensor, width: int, lengths: Tensor) -> Tensor:
        """Scores [B] at the last token."""
        return self.head_outputs(self.reward, ids, mask, width).gather(1, lengths[:, None]).squeeze(1)

    def learn(self, prompt_ids, prompt_mask, tokens, kept, generator) -> list[tuple[float, float]]:
        """The epochs on one rollout; (policy loss, value loss) of every optimiser step."""
        config, width = self.config, prompt_ids.shape[1]
        ids, mask, lengths = torch.cat([prompt_ids, tokens], 1), torch.cat([prompt_mask, kept], 1), kept.sum(1)
        with torch.no_grad():
            old_log_probs, old_values = self.outputs(ids, mask, width)
            old_values = old_values * kept
            ref_log_probs = self.log_probs(self.reference, ids, mask, width)
            scores = self.scores(ids, mask, width, lengths)
        rewards = -config.kl_coef * (old_log_probs - ref_log_probs) * kept
        rows, last = torch.arange(len(ids)), lengths - 1
        ended = tokens[rows, last] == self.end_id
        rewards[rows, last] += scores - config.missing_end_penalty * ~ended
        advantages, running, next_values = torch.zeros_like(rewards), 0.0, 0.0
        for t in reversed(range(tokens.shape[1])):
            running = (rewards[:, t] + next_values - old_values[:, t]) + config.gae_lambda * running
            running = running * kept[:, t]
            advantages[:, t], next_values = running, old_values[:, t]
        returns, real = advantages + old_values, advantages[kept]
        advantages = (advantages - real.mean()) / torch.sqrt(real.var() + 1e-8)
        losses = []
        for _ in range(config.epochs):
            for rows in torch.randperm(len(ids), generator=generator).split(config.minibatch_rows):
                data = (x[rows] for x in (ids, mask, kept, old_log_probs, old_values, advantages, returns))
                losses.append(self.update(*data, width))
        return losses

    def update(self, ids, mask, kept, old_log_probs, old_values, advantages, returns, width):
        """One optimiser step."""
        config = self.config
        log_probs, values = self.outputs(ids, mask, width)
        ratio = torch.exp(log_probs - old_log_probs)
        clipped = ratio.clamp(1 - config.clip_epsilon, 1 + config.clip_epsilon)
        policy_loss = -torch.minimum(ratio * advantages, clipped * advantages)[kept].mean()
        near = old_values + (values - old_values).clamp(-config.value_clip_epsilon, config.value_clip_epsilon)
        errors = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        value_loss = 0.5 * errors[kept].mean()
        self.optimiser.zero_grad()
        (policy_loss + config.value_coef * value_loss).backward()
        for model in (self.policy, self.value):  # each apart, as the library does
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.max_grad_norm)
        self.optimiser.step()
        return policy_loss.item(), value_loss.item()


class LeanLoop(PlainLoop):
    """The least that PPO can do: a value head on the policy, so that one pass gives both, and a reward that is free.

    There is nothing but the passes of policy and reference; whole minibatches go through in one of them.
    """

    def __init__(self, lm: LanguageModel, config: RLHFConfig):
        self.policy, self.reference = copy.deepcopy(lm.model).requires_grad_(True), lm.model
        self.value = torch.nn.Linear(lm.model.config.hidden_size, 1)
        torch.nn.init.zeros_(self.value.weight)
        torch.nn.init.zeros_(self.value.bias)
        self.end_id, self.pad_id, self.config = lm.end_id, lm.pad_id, config
        rates = ((self.policy, config.learning_rate), (self.value, config.value_learning_rate))
        groups = [{"params": list(model.parameters()), "lr": rate} for model, rate in rates]
        epsilon = config.optimiser.adam_epsilon
        self.optimiser = torch.optim.AdamW(groups, eps=epsilon, weight_decay=0.0, fused=True)

    def outputs(self, ids: Tensor, mask: Tensor, width: int) -> tuple[Tensor, Tensor]:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        states = self.policy.base_model(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        states = states[:, width - 1 : -1]
        law = functional.log_softmax(self.policy.lm_head(states) / self.config.temperature, dim=-1)
        return law.gather(2, ids[:, width:, None]).squeeze(2), self.value(states).squeeze(2)

    def scores(self, ids: Tensor, mask: Tensor, width: int, lengths: Tensor) -> Tensor:
        return free_reward(lengths)


def free_reward(lengths: Tensor) -> Tensor:
    """A reward that costs nothing: short replies are good."""
    return -lengths.float() / 10


def losses_on_one_rollout(lm, prompts, config: RLHFConfig) -> tuple[list[float], list[float], float]:
    """Mean policy and value loss of the first iteration, by the library and by the plain loop, and the largest
    difference between the weights that the two then have."""
    reward, seen = reward_of(lm), []
    lean = config.value == "policy_head"

    def scores(rollout: Rollout) -> Tensor:
        seen.append(rollout)
        return free_reward(rollout.batch.response_lengths) if lean else reward.score_batch(rollout.batch)

    config = replace(config, iterations=1)
    result = train_rlhf(lm, prompts, scores, config, value_init=None if lean else reward)
    batch: TokenBatch = seen[0].batch
    plain = LeanLoop(lm, config) if lean else PlainLoop(lm, reward, config)
    generator = generator_for(config.seed, "rlhf", 0)  # the library's, past the numbers that its sampling took
    torch.rand(len(batch), config.max_new_tokens, generator=generator, dtype=torch.float64)
    losses = plain.learn(batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.mask, generator)
    library = [result.history.last(name) for name in ("policy_loss", "value_loss")]
    weights = zip(
        [*result.model.model.parameters(), *result.value.network.parameters()],
        [*plain.policy.parameters(), *plain.value.parameters()],
        strict=True,
    )
    apart = max(float((a - b).abs().max().detach()) for a, b in weights)
    return library, [statistics.fmean(column) for column in zip(*losses, strict=True)], apart


def against_plain_loop(lm: LanguageModel, prompts: list, config: RLHFConfig) -> tuple[Pairs, RLHFResult]:
    """A step of the library and one of a hand-written loop in turn, on the same prompts."""
    generator, reward = torch.Generator().manual_seed(0), reward_of(lm)
    plain = PlainLoop(lm, reward, config)
    if config.value == "policy_head":
        plain, reward = LeanLoop(lm, config), lambda rollout: free_reward(rollout.batch.response_lengths)
    rows = encode_prompts(lm, prompts)  # the plain loop gets its prompts as tokens, for free
    batch = make_batch(rows, [[lm.end_id]] * len(rows), lm.pad_id)
    return in_turn(lm, prompts, reward, config, lambda: plain.step(batch.prompt_ids, batch.prompt_mask, generator))


# -- part 3: how the cost grows -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Setting:
    """One point of the table; `varied` says on which of its three lines it lies."""

    varied: str
    prompts: int = 32
    reply_tokens: int = 32
    layers: int = 4
    width: int = 128


SETTINGS = (
    *(Setting("prompts", prompts=n) for n in (8, 16, 32, 64, 128)),
    *(Setting("reply_tokens", reply_tokens=n) for n in (8, 16, 32, 64, 128)),
    *(Setting("parameters", layers=n, width=d) for n, d in ((2, 64), (4, 128), (6, 256), (8, 512))),
)
SMALL_SETTINGS = (
    Setting("prompts", 4, 4, 2, 64),
    Setting("prompts", 8, 4, 2, 64),
    Setting("reply_tokens", 4, 8, 2, 64),
)
PARTS = ("sample", "score", "optimise")


def cost_table(settings: tuple[Setting, ...], rounds: int) -> list[dict]:
    """Seconds of an iteration at each setting: the median over rounds, the settings in turn."""
    tokenizer = train_tokenizer(town.documents(300, 0))
    timings, row_of = defaultdict(list), {}
    for _ in range(rounds):
        for setting in settings:
            lm = random_model(tokenizer, setting.layers, setting.width)
            count = setting.prompts
            config = RLHFConfig(
                iterations=2, prompts_per_iteration=count, minibatch_rows=max(1, count // 2),
                max_new_tokens=setting.reply_tokens, **STILL,
            )  # fmt: skip
            result = train_rlhf(lm, town_prompts(count), reward_of(lm), config)
            timings[setting].append([result.timings[part][-1] for part in PARTS])
            row_of[setting] = {
                **vars(setting), "parameters": size_of(lm.model), "threads": torch.get_num_threads(),
                "reply_length": result.history.last("length"),
            }  # fmt: skip
    for setting, row in row_of.items():
        middle = min(timings[setting], key=lambda t: abs(sum(t) - statistics.median(map(sum, timings[setting]))))
        row |= dict(zip((f"{part}_seconds" for part in PARTS), middle, strict=True)) | {"seconds": sum(middle)}
        row["tokens_per_second"] = row["prompts"] * row["reply_length"] / row["sample_seconds"]
    return list(row_of.values())


def growth(rows: list[dict], name: str, column: str = "seconds") -> float:
    """Slope of log cost over log size: 1 is proportional, 2 quadratic."""
    points = [(math.log(row[name]), math.log(row[column])) for row in rows if row["varied"] == name]
    return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else math.nan


def print_table(rows: list[dict]) -> None:
    print("    prompts  reply tokens  layers  width  parameters |  sample   score  optimise   total s |  tokens/s")
    varied = None
    for row in rows:
        if row["varied"] != varied:
            varied = row["varied"]
            print(f"  {varied.replace('_', ' ')} (cost grows as size to the power {growth(rows, varied):.2f})")
        print(
            f"    {row['prompts']:7}  {row['reply_tokens']:12}  {row['layers']:6}  {row['width']:5}"
            f"  {row['parameters']:10,} | {row['sample_seconds']:7.3f} {row['score_seconds']:7.3f}"
            f"  {row['optimise_seconds']:8.3f}  {row['seconds']:8.3f} | {row['tokens_per_second']:9,.0f}"
        )


def save_cost(rows: list[dict], folder: Path | RunFolder) -> None:
    """rlhf_cost.csv and rlhf_cost.png, in the place of those of this project or of an earlier run, and of no others."""
    for name, write in (("rlhf_cost.csv", write_cost), ("rlhf_cost.png", draw_cost)):
        with contextlib.nullcontext(folder / name) if isinstance(folder, Path) else folder.writing(name) as path:
            write(rows, path)


def write_cost(rows: list[dict], path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def draw_cost(rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    from rlhf_lab.classroom import plots

    lines = (
        ("seconds", "total", "true"),
        ("optimise_seconds", "optimise", "policy"),
        ("score_seconds", "score", "reward"),
        ("sample_seconds", "sample", "value"),
    )
    labels = {"prompts": "prompts", "reply_tokens": "reply length, tokens", "parameters": "parameters of a model"}
    with plots.style():
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        for ax, (name, label) in zip(axes, labels.items(), strict=True):
            points = [row for row in rows if row["varied"] == name]
            sizes = [row[name] for row in points]
            for column, part, colour in lines:
                style = {"color": plots.COLOURS[colour], "linestyle": plots.LINES[colour], "marker": "o", "ms": 3}
                ax.plot(sizes, [row[column] for row in points], label=part, **style)
            ax.set(xscale="log", yscale="log", xlabel=label)
            if name != "parameters":
                ax.set_xticks(sizes, [str(size) for size in sizes], minor=False)
                ax.minorticks_off()
            ax.yaxis.set_major_formatter(ScalarFormatter())
        axes[0].set_ylabel("seconds of an iteration")
        axes[0].legend(frameon=False)
        figure.savefig(path, dpi=110)


# -- what is printed ------------------------------------------------------------------------------------------------
def report_bare(pairs_wanted: int, quick: bool) -> None:
    lm, name = shipped_model()
    config = RLHFConfig(iterations=pairs_wanted + WARM_UP, **STILL)
    if quick:
        config = replace(config, prompts_per_iteration=12, minibatch_rows=12, max_new_tokens=16)
    prompts = town_prompts(4 * config.prompts_per_iteration)
    reset_peak()
    train_rlhf(lm, prompts, reward_of(lm), replace(config, iterations=2))
    peak = peak_megabytes()
    pairs, result, bare = against_bare_passes(lm, prompts, config)
    count, tokens = len(pairs.library), config.prompts_per_iteration * result.history.column("length")[1][-1]
    print(f"1. One PPO iteration on {name} ({size_of(lm.model):,} parameters), {machine()}")
    print(
        f"   {config.prompts_per_iteration} prompts, replies of {result.history.last('length'):.1f} tokens "
        f"(limit {config.max_new_tokens}), {config.epochs} epochs, minibatches of {config.minibatch_rows}; "
        f"median of {count} iterations"
    )
    print("               library s   bare passes s   ratio of medians")
    for part in PARTS:
        ours, theirs = (statistics.median(times[part][-count:]) for times in (result.timings, bare))
        print(f"   {part:10} {ours:10.3f} {theirs:15.3f} {ours / theirs:13.2f}")
    ours, theirs = (statistics.median(c.wall for c in side) for side in (pairs.library, pairs.other))
    print(f"   {'all':10} {ours:10.3f} {theirs:15.3f}")
    speed = tokens / statistics.median(result.timings["sample"][-count:])
    print(f"   {speed:,.0f} generated tokens per second; peak memory {peak:,.0f} MB, libraries included")
    print_ratios("library / bare passes", pairs, "target: at most 1.25")


def report_plain(pairs_wanted: int, quick: bool, lean: bool = False) -> None:
    vocabulary, models = (260, "value head on the policy, free reward") if lean else (1024, "four models apart")
    tokenizer = train_tokenizer(town.documents(300, 0), vocabulary)
    lm = random_model(tokenizer, 2, 64)
    config = replace(PLAIN, iterations=pairs_wanted + WARM_UP)
    if lean:
        config = replace(config, value="policy_head", micro_batch=config.minibatch_rows)
    if quick:
        config = replace(config, prompts_per_iteration=8, minibatch_rows=8, epochs=2)
    # For the lean loop one prompt again and again, so that nothing is gained by leaving out padding either.
    prompts = town_prompts(1) * config.prompts_per_iteration if lean else town_prompts(config.prompts_per_iteration)
    library, plain, apart = losses_on_one_rollout(lm, prompts, replace(config, learning_rate=3e-4))
    print(f"2{'b' if lean else 'a'}. A step against a {'lean' if lean else 'plain'} hand-written loop, {machine()}")
    print(
        f"   GPT-2 of 2 layers, d = 64, vocabulary {len(tokenizer)}; {models}; {config.prompts_per_iteration} prompts, "
        f"{config.max_new_tokens} new tokens, {config.epochs} epochs, {config.micro_batch} rows in a pass"
    )
    print(
        f"   on one rollout: policy loss {library[0]:.6f} and {plain[0]:.6f}, value loss {library[1]:.6f} and "
        f"{plain[1]:.6f}; weights afterwards at most {apart:.1g} apart"
    )
    pairs, result = against_plain_loop(lm, prompts, config)
    ours, theirs = (statistics.median(c.wall for c in side) for side in (pairs.library, pairs.other))
    parts = (f"{part} {statistics.median(result.timings[part][WARM_UP:]):.3f}" for part in PARTS)
    print(f"   library {ours:.3f} s a step ({', '.join(parts)}), hand-written loop {theirs:.3f} s")
    print_ratios("library / hand-written loop", pairs, "target: below 1" if not lean else "target: at most 1")


def report_cost(rounds: int, quick: bool, folder: Path | RunFolder | None) -> None:
    rows = cost_table(SMALL_SETTINGS if quick else SETTINGS, rounds)
    print(f"3. How the cost grows: seconds of an iteration, median of {rounds}, {machine()}")
    print("   random weights, so replies are as long as they may be; 2 epochs of 2 minibatches")
    print_table(rows)
    if folder is not None:
        save_cost(rows, folder)
        print(f"   saved as rlhf_cost.csv and rlhf_cost.png in {getattr(folder, 'path', folder)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench rlhf", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few pairs: shows that it works")
    parser.add_argument("--pairs", type=at_least(1), default=None, help="pairs in parts 1 and 2 (20; quick: 3)")
    parser.add_argument("--rounds", type=at_least(1), default=None, help="iterations timed in part 3 (3; quick: 1)")
    parser.add_argument("--threads", type=at_least(1), default=1, help="threads of torch (1)")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=None, help="where part 3 is saved (data/results; quick: nowhere)")
    options = parser.parse_args(arguments)
    folder: Path | RunFolder | None = None if options.quick else RESULTS
    try:
        folder = folder if options.out is None else RunFolder(options.out, "benchmark")  # before the work
    except (OutputError, OSError) as error:
        parser.error(f"argument --out: {error}")
    torch.set_num_threads(options.threads)
    pairs = options.pairs or (3 if options.quick else 20)
    rounds = options.rounds or (1 if options.quick else 3)
    if 1 in options.parts:
        report_bare(pairs, options.quick)
    if 2 in options.parts:
        report_plain(pairs, options.quick)
        report_plain(pairs, options.quick, lean=True)
    if 3 in options.parts:
        report_cost(rounds, options.quick, folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
