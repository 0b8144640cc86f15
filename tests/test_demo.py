"""The demo end to end on the shipped model, small: what it writes, how it resumes, what bad input gets."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import save_llama
from rlhf_lab import __main__ as commands, demo
from rlhf_lab.__main__ import main
from rlhf_lab.classroom.metrics import METRICS_SCHEMA
from rlhf_lab.demo.first_words import opening
from rlhf_lab.feedback.events import read_records
from rlhf_lab.maths.intervals import Share
from rlhf_lab.models.language_model import MODEL_FOLDERS, load_language_model
from rlhf_lab.models.linear_reward import load_linear_reward
from rlhf_lab.models.reward_model import load_reward_model
from rlhf_lab.recipes import rlhf, sft
from rlhf_lab.recipes.few_labels import LEASH
from rlhf_lab.recipes.pretrain import SIZES
from rlhf_lab.training.files import load_checkpoint
from rlhf_lab.training.optimisers import clipped_step
from rlhf_lab.worlds import town

SMALL = ["--labels", "20", "--iterations", "2", "--prompts", "8", "--sft-steps", "2", "--evaluation-prompts", "12"]
SMALL += ["--texts", "8"]
WEIGHTS = ("sft", "reward_model", "rlhf")


def run(*arguments):
    return main(["demo", *SMALL, *map(str, arguments)])


def weights(out):
    return {name: load_file(Path(out) / name / "model.safetensors") for name in WEIGHTS}


def equal(a, b):
    return all(torch.equal(a[m][name], b[m][name]) for m in WEIGHTS for name in a[m])


def metrics(out):
    data = json.loads((Path(out) / "metrics.json").read_text())
    data.pop("seconds"), data.pop("megabytes")
    data.pop("run")  # the card: date and command
    return data


@pytest.fixture(autouse=True, scope="module")
def few_of_everything():
    """What no option makes smaller is smaller here; nothing that is tested depends on it."""
    with pytest.MonkeyPatch.context() as patched:
        many = partial(
            demo.DemoConfig, test_labels=20, demonstrations=400, few=0
        )  # `few_labels` takes the other recipe
        patched.setattr(demo, "DemoConfig", many)
        patched.setattr(demo, "TRACKED_PROMPTS", 8)
        yield


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """One uninterrupted run: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run("--out", out) == 0
    return out, printed.getvalue()


@pytest.fixture(autouse=True)
def no_model_of_a_developer(tmp_path, monkeypatch):
    """What `pretrain` once made in this checkout is not seen."""
    monkeypatch.setitem(MODEL_FOLDERS, "small", [tmp_path / "runs" / "model-small"])


@pytest.fixture
def finished(told):
    return told[0]


# -- few labels -----------------------------------------------------------------------------------------------------
@pytest.fixture
def few_labels(monkeypatch):
    monkeypatch.setattr(demo, "DemoConfig", partial(demo.DemoConfig.func, test_labels=20, demonstrations=400))


def test_few_labels_take_their_own_recipe_warn_first_and_resume(few_labels, tmp_path, monkeypatch, capsys):
    assert run("--out", tmp_path / "out", "--iterations", "10") == 0
    printed = capsys.readouterr().out
    assert "few labels: a linear reward, a short PPO run and a stiff leash" in printed
    assert "4/5 PPO: 9 iterations" in printed
    first = metrics(tmp_path / "out")["opening"]
    assert first.startswith("Warning: the reward model learned from 20 judgements and predicts")
    assert first in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index(first) < page.index("true reward")
    reward = load_linear_reward(tmp_path / "out" / "reward_model")
    history = json.loads((tmp_path / "out" / "rlhf_history.json").read_text())
    assert history[-1]["kl_coef"] == pytest.approx(LEASH / reward.score_std)
    rewritten = tmp_path / "out" / "rlhf"
    shutil.rmtree(rewritten)
    (tmp_path / "out" / "rlhf_history.json").unlink()
    monkeypatch.setattr(demo, "train_linear_reward", None)  # it is loaded and not trained again
    assert run("--out", tmp_path / "out", "--iterations", "10", "--resume") == 0
    assert metrics(tmp_path / "out")["opening"] == first


@pytest.mark.parametrize(
    ("accuracy", "few", "words"),
    [
        (Share(0.55, 0.4, 0.7, 20), True, "Warning: .* no better than a coin"),
        (Share(0.55, 0.4, 0.7, 20), False, "Warning: .* no better than a coin"),
        (Share(0.68, 0.6, 0.76, 60), True, "Warning: .* can make a policy worse"),
        (None, False, "Warning: .* none is held out"),
        (Share(0.74, 0.7, 0.78, 900), False, "The reward model learned from 900 judgements"),
    ],
)
def test_the_opening_warns_and_never_says_better(accuracy, few, words):
    first = opening(900, few, accuracy)
    assert re.match(words, first)
    assert "better" not in first.replace("no better than a coin", "")


# -- what it writes ---------------------------------------------------------------------------------------------------
def test_metrics_obey_their_schema_and_know_everything_about_the_town(finished):
    data = json.loads((finished / "metrics.json").read_text())
    jsonschema.validate(data, METRICS_SCHEMA)
    for name in ("base", "sft", "rlhf"):
        model = data["models"][name]
        assert model["true_reward"]["low"] <= model["true_reward"]["mean"] <= model["true_reward"]["high"]
        assert model["perplexity"]["mean"] > 1
        assert model["length"]["count"] == 12
    assert data["models"]["sft"]["kl"]["mean"] == 0
    assert data["models"]["rlhf"]["kl"]["mean"] != 0
    assert 0.5 < data["reward_model"]["ceiling"] < 1
    assert set(data["seconds"]) == {"sft", "feedback", "reward_model", "rlhf", "evaluation"} == set(data["megabytes"])
    assert all(peak > 100 for peak in data["megabytes"].values())


def test_models_load_in_their_layout_and_feedback_says_that_it_is_simulated(finished):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for name in ("sft", "rlhf"):
        AutoModelForCausalLM.from_pretrained(finished / name)
    AutoModelForSequenceClassification.from_pretrained(finished / "reward_model")
    assert load_reward_model(finished / "reward_model").score_std > 0
    rankings = read_records(finished / "rankings.jsonl")
    assert rankings
    assert all(ranking.simulated for ranking in rankings)


def test_the_sample_shows_whole_conversations(told):
    """A follow-up question means nothing without the turns before it, so they stand on its line."""
    followed = [line for line in told[1].splitlines() if line.endswith(("where is it?", "close?"))]
    assert any(line.count(" / ") >= 2 for line in followed), followed


def test_the_report_is_one_file_without_a_script_or_an_address(finished):
    """Its links lead into the page, or to files of the run, which are there."""
    page = (finished / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r"""\ssrc=""", page)
    links = re.findall(r"""href=["']([^"']*)["']""", page)
    files = [link.removeprefix("./") for link in links if not link.startswith("#")]
    assert {"metrics.json", "replies.jsonl", "rankings.jsonl", "sft", "reward_model", "rlhf"} <= set(files)
    assert all((finished / name).exists() for name in files)
    assert page.count("<figcaption>") >= 6


def test_the_report_says_how_to_repeat_the_run_and_compare_reads_it(finished, capsys):
    data = json.loads((finished / "metrics.json").read_text())
    assert data["run"]["command"].startswith("python run.py demo --labels 20 --iterations 2 --prompts 8")
    assert "--out" not in data["run"]["command"]
    assert (data["run"]["seed"], data["run"]["prompts"], data["run"]["labels"]) == (0, 12, 20)
    assert list(data["changes"]) == ["RLHF - SFT", "SFT - base", "RLHF - base"]
    found = {(row["quantity"], row["skill"]): row for row in data["changes"]["RLHF - SFT"]}
    assert found["true_reward", ""]["interval"] == data["differences"]["RLHF - SFT"]
    assert found["perplexity", ""]["ratio"]
    assert found["perplexity", ""]["after"] == pytest.approx(data["models"]["rlhf"]["perplexity"]["mean"])
    assert found["length", ""]["after"] == pytest.approx(data["models"]["rlhf"]["length"]["mean"])
    assert main(["compare", str(finished), str(finished)]) == 0
    assert "paired: the same 12 prompts, row by row" in capsys.readouterr().out


def test_training_never_sees_what_is_held_out(finished):
    for ranking in read_records(finished / "rankings.jsonl"):
        assert not town.recognise(ranking.prompt).held_out
    task = demo.town_task(demo.DemoConfig(labels=50, evaluation_prompts=30))
    assert not any(town.recognise(prompt).held_out for prompt in task.prompts)
    assert all(town.recognise(prompt).held_out for prompt in task.test_prompts)
    assert len(set(task.test_prompts)) == 30


def test_nothing_is_overwritten_and_the_table_is_printed(finished, tmp_path, monkeypatch, capsys):
    assert run("--out", finished) == 1
    assert "--resume" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo-old").mkdir(parents=True)
    assert [demo.open_output(None, demo.DemoConfig(), resume=False).path.name for _ in "12"] == ["demo-1", "demo-2"]
    assert demo.open_output(None, demo.DemoConfig(), resume=True).path.name == "demo-2"


# -- stop and resume --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("recipe", "stage"), [(sft, "sft"), (rlhf, "rlhf")])
def test_an_interrupt_keeps_what_was_done_and_resume_is_bit_identical(
    recipe, stage, finished, tmp_path, monkeypatch, capsys
):
    steps = []

    def interrupted(*given):
        steps.append(1)
        if len(steps) == 1:  # Ctrl-C in the first of them
            signal.raise_signal(signal.SIGINT)
        return clipped_step(*given)

    with monkeypatch.context() as patched:
        patched.setattr(recipe, "clipped_step", interrupted)
        assert run("--out", tmp_path / "out") == 130
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "out" / f"{stage}.checkpoint").exists()
    assert not (tmp_path / "out" / stage).exists()
    assert run("--out", tmp_path / "out", "--resume") == 0
    assert equal(weights(tmp_path / "out"), weights(finished))
    assert metrics(tmp_path / "out") == metrics(finished)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT reaches a child process on POSIX only")
def test_a_real_ctrl_c_stops_between_two_steps(tmp_path):
    command = [sys.executable, "-m", "rlhf_lab", "demo", *SMALL, "--sft-steps", "100000", "--out", tmp_path / "out"]
    said, shown = tmp_path / "stderr.txt", os.environ | {"TQDM_DISABLE": "0"}  # the bar tells that steps are made
    with open(said, "w") as stderr:
        child = subprocess.Popen([*map(str, command)], stderr=stderr, stdout=subprocess.DEVNULL, env=shown)
        patience = time.monotonic() + 120
        while "/100000 [" not in said.read_text() and child.poll() is None and time.monotonic() < patience:
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=120) == 130
    assert "stopped in the stage sft" in said.read_text()
    assert "Traceback" not in said.read_text()
    assert load_checkpoint(tmp_path / "out" / "sft.checkpoint")["step"] >= 1


def test_resume_refuses_other_options_and_an_empty_folder(finished, tmp_path, capsys):
    assert run("--out", finished, "--resume", "--seed", "7") == 1
    assert "other options" in capsys.readouterr().err
    assert run("--out", tmp_path / "none", "--resume") == 1
    assert "no run to resume" in capsys.readouterr().err


# -- the user's own preferences ---------------------------------------------------------------------------------------
def write_feedback(path, prompts):
    lines = [{"prompt": p, "chosen": f"Yes, number {i}.", "rejected": f"No {i}."} for i, p in enumerate(prompts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_feedback_on_town_prompts_is_judged_by_the_oracle(tmp_path):
    prompts = [prompt.conversation[-1].content for prompt in town.prompts("train", 40, skills=("ask",))]
    assert run("--feedback", write_feedback(tmp_path / "f.jsonl", prompts), "--out", tmp_path / "out") == 0
    data = metrics(tmp_path / "out")
    jsonschema.validate(data | {"seconds": {}, "megabytes": {}, "run": None}, METRICS_SCHEMA)
    assert data["models"]["rlhf"]["true_reward"]["mean"] <= 3
    assert data["reward_model"]["ceiling"] is None
    assert 0 <= data["reward_model"]["accuracy"] <= 1


def test_feedback_of_another_world_gets_no_invented_truth(tmp_path):
    file = write_feedback(tmp_path / "f.jsonl", [f"What is {i} plus {i}?" for i in range(40)])
    assert run("--feedback", file, "--out", tmp_path / "out") == 0
    model = metrics(tmp_path / "out")["models"]["rlhf"]
    assert model["true_reward"] is None
    assert model["helpful"] is None
    assert model["kl"] is not None
    assert model["length"] is not None
    assert model["perplexity"] is not None


def test_feedback_is_split_by_prompt(tmp_path):
    prompts = [f"What is {i % 20} plus 1?" for i in range(60)]
    config = demo.DemoConfig(feedback=str(write_feedback(tmp_path / "f.jsonl", prompts)))
    task = demo.file_task(config, load_language_model("tiny"))
    test = {comparison.prompt for comparison in task.test_preferences}
    assert len(test) == 2
    assert not test & {comparison.prompt for comparison in task.preferences}
    assert not test & set(task.prompts)
    assert not test & {demonstration.prompt for demonstration in task.demonstrations}
    assert test == set(task.test_prompts)
    assert len(task.preferences) + len(task.test_preferences) == 60


def test_any_causal_language_model_with_any_tokenizer(tmp_path):
    save_llama(tmp_path / "llama")
    short = [f"Where {i}?" for i in range(24)]
    file = write_feedback(tmp_path / "f.jsonl", short)
    assert run("--model", tmp_path / "llama", "--feedback", file, "--out", tmp_path / "out") == 0
    trained = load_language_model(tmp_path / "out" / "rlhf")
    assert trained.model.config.model_type == "llama"


@pytest.mark.parametrize(("size", "millions"), [("tiny", 1), ("small", 25), ("medium", 124)])
def test_sizes_have_about_the_parameters_they_are_said_to_have(size, millions):
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_positions=192, **SIZES[size]))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.1)


def test_a_larger_size_is_made_by_the_command_that_the_error_names(tmp_path, monkeypatch, capsys):
    """The path that a GPU takes (bf16 passes, float32 log-probs), a few steps of it on the CPU with a shape that a CPU
    without bf16 units can bear."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "DOCUMENTS", 300)
    monkeypatch.setitem(SIZES, "small", {"n_layer": 2, "n_embd": 32, "n_head": 2})
    assert main(["pretrain", "--size", "small", "--steps", "1"]) == 0
    few = ["--iterations", "1", "--prompts", "4", "--sft-steps", "1", "--evaluation-prompts", "8"]
    few += ["--out", "out"]
    assert run("--size", "small", "--precision", "bfloat16", *few) == 0
    assert metrics("out")["config"]["model"] == "small"
    assert metrics("out")["models"]["rlhf"]["true_reward"] is not None


# -- bad input --------------------------------------------------------------------------------------------------------
BAD_FILES = {
    "empty.jsonl": ("", "empty"),
    "field.jsonl": (
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b"}\n',
        "line 2.*rejected",
    ),
    "equal.jsonl": ('{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "line 1"),
    "broken.jsonl": ('{"prompt": "a", "chosen": }\n{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "line 1"),
    "one.jsonl": ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "at least 2"),
    "long.jsonl": (
        json.dumps({"prompt": "very " * 400, "chosen": "b", "rejected": "c"})
        + '\n{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        "prompt .* tokens",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_feedback_file_gets_a_reason_and_leaves_nothing(name, tmp_path, capsys):
    text, reason = BAD_FILES[name]
    (tmp_path / name).write_text(text)
    assert run("--feedback", tmp_path / name, "--out", tmp_path / "out") == 1
    assert re.search(reason, capsys.readouterr().err)
    assert not list((tmp_path / "out").glob("*.html"))
    assert not (tmp_path / "out" / "sft").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--feedback", "nowhere.jsonl"], "there is no file"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--size", "small"], "pretrain --size small"),
        (["--size", "small", "--model", "x"], "either"),
        (["--labels", "0"], "labels is 0"),
        (["--sft-steps", "-1"], "steps is -1"),
        (["--evaluation-prompts", "2"], "evaluation_prompts is 2"),
        (["--device", "cuda:99"], "not available"),
    ],
)
def test_impossible_options_get_one_line_and_a_remedy(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--out", tmp_path / "out", *arguments) == 1
    errors = capsys.readouterr().err.strip()
    assert reason in errors
    assert "\n" not in errors
    assert not (tmp_path / "out").exists()


def test_a_run_that_could_not_start_is_nothing_to_resume(tmp_path, monkeypatch, capsys):
    """Plain `--resume` takes the newest run that began; a failure of a resumed run leaves what it had."""
    monkeypatch.chdir(tmp_path)
    file = write_feedback(tmp_path / "one.jsonl", ["a"])
    for arguments in (["--size", "small"], ["--model", "no/such/model"], ["--feedback", file]):
        assert run(*arguments) == 1
    assert list(tmp_path.glob("runs/*")) == []
    demo.open_output(begun := tmp_path / "out", demo.DemoConfig(), resume=False)
    resumed = demo.open_output(begun, demo.DemoConfig(), resume=True)
    with pytest.raises(OSError, match="gone"), demo.taken_back_if_it_fails(resumed):
        raise OSError("gone")
    assert (begun / "config.json").exists()


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert run("--out", tmp_path / "file" / "out") == 1
    assert "cannot write" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert run("--out", tmp_path / "out") == 1
    assert "No space left" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_nan_in_training_is_a_reason_and_not_a_crash(tmp_path, monkeypatch, capsys):
    from rlhf_lab.models.reward_model import RewardModel

    monkeypatch.setattr(
        RewardModel, "score_batch", lambda self, batch, micro_batch=64: torch.full((len(batch),), float("nan"))
    )
    assert run("--out", tmp_path / "out") == 1
    assert "nan" in capsys.readouterr().err.lower()
    assert not (tmp_path / "out" / "rlhf").exists()
