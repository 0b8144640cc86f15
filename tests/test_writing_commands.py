"""Every command that writes is attacked: nothing is replaced or removed that the program did not write."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from rlhf_lab import __main__ as commands, demo
from rlhf_lab.__main__ import main
from rlhf_lab.models.language_model import load_language_model

DEMO = ["demo", "--labels", "20", "--iterations", "1", "--prompts", "4", "--sft-steps", "1"]
DEMO += ["--evaluation-prompts", "8", "--texts", "8"]
COMMANDS = {"demo": DEMO, "pretrain": ["pretrain", "--steps", "1"], "corpus": ["corpus", "--count", "20"]}


@pytest.fixture(autouse=True)
def few_of_everything(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "DemoConfig", partial(demo.DemoConfig, test_labels=20, demonstrations=200, few=0))
    monkeypatch.setattr(demo, "TRACKED_PROMPTS", 4)
    monkeypatch.setattr(commands, "DOCUMENTS", 300)
    monkeypatch.chdir(tmp_path)


def everything(folder):
    """What is there: the content of files, where links point."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in paths}


def one_line(capsys):
    said = capsys.readouterr().err.strip()
    assert said
    assert "\n" not in said
    assert "Traceback" not in said
    return said


# ---- what may be in the way ---------------------------------------------------------------------------------------
def full_of_foreign_files(out):
    (out / "sft").mkdir(parents=True)
    for name in ("thesis.txt", "metrics.json", "report.html", "web.txt", "rankings.jsonl", "sft/config.json", "notes"):
        (out / name).write_text("years of work")


def a_model_of_somebody(out):
    shutil.copytree(Path(commands.ROOT) / "data" / "model", out, ignore=shutil.ignore_patterns("rlhf_lab.json"))


def a_link_to_foreign_files(out):
    full_of_foreign_files(out.parent / "elsewhere")
    out.symlink_to(out.parent / "elsewhere")


def a_link_to_nowhere(out):
    out.symlink_to(out.parent / "nowhere")


def a_file(out):
    out.write_text("years of work")


def below_a_file(out):
    out.parent.rmdir()
    out.parent.write_text("years of work")


ATTACKS = [full_of_foreign_files, a_model_of_somebody, a_link_to_foreign_files, a_link_to_nowhere, a_file, below_a_file]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_program_did_not_write_stays(command, attack, tmp_path, capsys):
    out = tmp_path / "folder" / "out"
    out.parent.mkdir()
    attack(out)
    before = everything(tmp_path)
    assert main([*COMMANDS[command], "--out", str(out)]) == 1
    assert everything(tmp_path) == before
    assert "out" in one_line(capsys)


def test_the_working_folder_is_no_output_when_it_holds_something(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    for command in COMMANDS.values():
        assert main([*command, "--out", "."]) == 1
        assert list(tmp_path.iterdir()) == [tmp_path / "thesis.txt"]
        one_line(capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_place_is_said(command, tmp_path, capsys, monkeypatch):
    if os.access(tmp_path, os.W_OK) and os.name == "posix" and os.geteuid() == 0:  # root may write everywhere
        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        tmp_path.chmod(0o500)
    assert main([*COMMANDS[command], "--out", str(tmp_path / "out")]) == 1
    tmp_path.chmod(0o700)
    assert "cannot write" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def refuse(*given, **options):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_leaves_nothing_half_written_and_no_litter(command, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))
    try:
        assert main([*COMMANDS[command], "--out", str(tmp_path / "out")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write" in one_line(capsys)
    assert not list(tmp_path.rglob("*.tmp"))
    if command != "demo":
        assert main([*COMMANDS[command], "--out", str(tmp_path / "out")]) == 0


def test_what_the_program_wrote_it_replaces(tmp_path):
    for command in ("pretrain", "corpus"):
        for seed in ("0", "1"):
            assert main([*COMMANDS[command], "--seed", seed, "--out", str(tmp_path / command)]) == 0
    assert load_language_model(tmp_path / "pretrain")
    (tmp_path / "corpus" / "web.txt").write_text("edited")
    assert main([*COMMANDS["corpus"], "--out", str(tmp_path / "corpus")]) == 1
    assert (tmp_path / "corpus" / "web.txt").read_text() == "edited"


def test_a_foreign_checkpoint_is_left_alone(tmp_path, capsys):
    (tmp_path / "model.checkpoint").write_bytes(b"years of work")
    assert main([*COMMANDS["pretrain"], "--out", str(tmp_path / "model")]) == 1
    assert "model.checkpoint" in one_line(capsys)
    assert (tmp_path / "model.checkpoint").read_bytes() == b"years of work"


# ---- going on ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after its reward model, on a feedback file."""
    folder = tmp_path_factory.mktemp("stopped")
    write_feedback(folder / "mine.jsonl")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "DemoConfig", partial(demo.DemoConfig, test_labels=20, demonstrations=200, few=0))
        patched.setattr(demo, "TRACKED_PROMPTS", 4)
        patched.setattr(demo, "train_rlhf", interrupted)
        patched.chdir(folder)
        assert main([*DEMO, "--feedback", "mine.jsonl", "--out", "out"]) == 130
    return folder


def interrupted(*given, **options):
    raise KeyboardInterrupt


def write_feedback(path, end=""):
    rows = [
        {"prompt": f"What is {i} plus {i}?", "chosen": f"It is {2 * i}.", "rejected": f"No{end}"} for i in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def copied(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


RESUME = [*DEMO, "--feedback", "mine.jsonl", "--out", "out", "--resume"]


def test_an_interrupt_between_two_loops_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    write_feedback(tmp_path / "mine.jsonl")
    monkeypatch.setattr(demo, "reward_model_report", interrupted)
    assert main([*DEMO, "--feedback", "mine.jsonl", "--out", "out"]) == 130
    assert "--resume --out out" in capsys.readouterr().err


def test_a_changed_feedback_file_is_not_gone_on_with(copied, capsys):
    write_feedback(copied / "mine.jsonl", end="pe")
    before = everything(copied)
    assert main(RESUME) == 1
    assert "the feedback file changed" in one_line(capsys)
    assert everything(copied) == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--precision", "bfloat16"], "the precision changed"),
        (["--prompt-tokens", "100"], "prompt_tokens: None there, 100 here"),
        (["--iterations", "2"], "rlhf.iterations: 1 there, 2 here"),
    ],
)
def test_other_options_are_named(options, reason, copied, capsys):
    assert main([*RESUME, *options]) == 1
    assert reason in one_line(capsys)


def test_another_model_under_the_same_name_is_not_gone_on_with(tmp_path, capsys, monkeypatch):
    a_model_of_somebody(tmp_path / "base")
    write_feedback(tmp_path / "mine.jsonl")
    monkeypatch.setattr(demo, "train_reward_model", interrupted)
    command = [*DEMO, "--feedback", "mine.jsonl", "--model", "base", "--out", "out"]
    assert main(command) == 130
    lm = load_language_model("tiny")
    with torch.no_grad():
        lm.model.get_parameter("transformer.ln_f.weight")[0] += 0.5
    shutil.rmtree(tmp_path / "base")
    lm.save(tmp_path / "base")
    capsys.readouterr()
    assert main([*command, "--resume"]) == 1
    assert "the model changed" in one_line(capsys)


DAMAGED = ["sft/model.safetensors", "reward_model/config.json", "sft_history.json", "config.json", "inputs.json"]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_changed_bit_or_a_lost_half_is_found(name, copied, capsys):
    path = copied / "out" / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    for data in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], whole[:middle]):
        path.write_bytes(data)
        assert main(RESUME) == 1
        said = one_line(capsys)
        assert "damaged" in said
        assert name.split("/")[0] in said


def test_a_stage_of_somebody_else_is_not_taken_for_our_own(copied, capsys):
    shutil.rmtree(copied / "out" / "sft")
    a_model_of_somebody(copied / "out" / "sft")
    before = everything(copied / "out" / "sft")
    assert main(RESUME) == 1
    assert "sft" in one_line(capsys)
    assert everything(copied / "out" / "sft") == before


def test_half_of_the_rankings_is_not_enough(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "train_reward_model", interrupted)
    assert main([*DEMO, "--out", "out"]) == 130
    lines = (tmp_path / "out" / "rankings.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out" / "rankings.jsonl").write_text("".join(lines[: len(lines) // 2]))
    capsys.readouterr()
    assert main([*DEMO, "--out", "out", "--resume"]) == 1
    assert "rankings.jsonl is damaged" in one_line(capsys)


def test_two_programs_get_two_folders(tmp_path):
    """Each opens the next free folder at the same moment."""
    code = (
        "import sys, time; from rlhf_lab import demo\n"
        "config = demo.DemoConfig(); print('ready', flush=True); sys.stdin.readline()\n"
        "print(getattr(f := demo.open_output(None, config, resume=False), 'path', f).name)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path}
    children = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    names = [child.communicate()[0].strip() for child in children]
    assert sorted(names) == ["demo-1", "demo-2", "demo-3", "demo-4"]


def test_a_run_folder_that_is_not_numbered_is_passed_over(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "demo-old").mkdir(parents=True)
    monkeypatch.setattr(demo, "train_sft", interrupted)
    assert main(DEMO) == 130
    assert "demo-1" in capsys.readouterr().err


# ---- odd input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([*DEMO, "--feedback", ""], "--feedback is empty"),
        ([*DEMO, "--model", ""], "--model is empty"),
        ([*DEMO, "--out", ""], "--out is empty"),
        (["pretrain", "--steps", "0"], "steps is 0"),
        (["pretrain", "--out", ""], "--out is empty"),
        (["corpus", "--out", ""], "--out is empty"),
        ([*DEMO, "--skip-bad"], "--feedback"),
        ([*DEMO, "--reply-tokens", "500"], "context"),
        ([*DEMO, "--model", "\x1b]0;gotcha\x07"], r"\x1b]0;gotcha"),
    ],
)
def test_an_odd_option_is_refused_in_one_line(arguments, reason, tmp_path, capsys):
    assert main(arguments) == 1
    said = one_line(capsys)
    assert reason in said
    assert said.isprintable()
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "runs"])


def test_a_terminal_of_few_characters_shows_escapes(tmp_path):
    code = "import sys; from rlhf_lab.__main__ import main; sys.exit(main(['demo', '--model', 'zo\\u00eb/x y']))"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 1
    assert "zo\\xeb" in done.stderr
    assert "Traceback" not in done.stderr


# ---- replies and prompts of a file that are too long ----------------------------------------------------------------
def long_file(path, prompts):
    rows = [{"prompt": prompt, "chosen": f"Yes {i}.", "rejected": "No."} for i, prompt in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


LONG = [*(f"Where is {i}?" for i in range(10)), *["very long " * 300] * 3, *(f"Who is {i}?" for i in range(10))]


def test_all_lines_that_cannot_be_used_are_named_at_once(tmp_path, capsys, monkeypatch):
    long_file(tmp_path / "mine.jsonl", LONG)
    lines = (tmp_path / "mine.jsonl").read_text().splitlines()
    (tmp_path / "mine.jsonl").write_text("\n".join([*lines, '{"prompt": "a", "chosen": "b"}', ""]))
    assert main([*DEMO, "--feedback", "mine.jsonl", "--out", "out"]) == 1
    said = one_line(capsys)
    assert all(f"line {number}, prompt" in said for number in (11, 12, 13))
    assert "line 24, rejected" in said
    assert "--skip-bad" in said
    monkeypatch.setattr(demo, "train_sft", interrupted)
    assert main([*DEMO, "--feedback", "mine.jsonl", "--skip-bad", "--out", "out"]) == 130
    assert "4 lines left out, 0 prompts shortened" in capsys.readouterr().out


def test_a_long_conversation_keeps_its_last_turns(tmp_path, capsys, monkeypatch):
    turns = [{"role": role, "content": "word " * 40} for role in ("user", "assistant") * 8]
    last = {"role": "user", "content": "Where is it?"}
    long_file(tmp_path / "mine.jsonl", [*LONG[:10], [*turns, last]])
    monkeypatch.setattr(demo, "train_sft", interrupted)
    assert main([*DEMO, "--feedback", "mine.jsonl", "--last-turns", "--out", "out"]) == 130
    assert "0 lines left out, 1 prompts shortened" in capsys.readouterr().out


def test_replies_that_are_cut_are_counted_and_equal_pairs_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "train_rlhf", interrupted)
    same = "a b c d e f g h " * 10
    rows = [{"prompt": f"Say {i}", "chosen": f"{same} one", "rejected": f"{same} two"} for i in range(20)]
    rows += [{"prompt": f"Ask {i}", "chosen": "Yes.", "rejected": "No."} for i in range(20)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*DEMO, "--feedback", "mine.jsonl", "--out", "out"]) == 130
    said = capsys.readouterr().out
    cut = [line for line in said.splitlines() if "were cut at max_new_tokens = 64" in line]
    assert any("pairs that became equal by that are left out" in line for line in cut), said
    assert main([*DEMO, "--feedback", "mine.jsonl", "--reply-tokens", "120", "--out", "longer"]) == 130
    assert "were cut" not in capsys.readouterr().out


def test_a_held_out_reply_may_be_long(tmp_path, monkeypatch):
    long_file(tmp_path / "mine.jsonl", [f"Where is {i}?" for i in range(12)])
    rows = [
        json.loads(line) | {"rejected": "long " * 600} for line in (tmp_path / "mine.jsonl").read_text().splitlines()
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(demo, "train_rlhf", interrupted)
    assert main([*DEMO, "--feedback", "mine.jsonl", "--out", "out"]) == 130


@pytest.mark.parametrize("name", ["config.json", "inputs.json"])
def test_a_deleted_note_of_what_the_run_was_made_from_is_not_made_anew(name, copied, capsys):
    (copied / "out" / name).unlink()
    assert main([*RESUME, "--precision", "bfloat16"]) == 1
    said = one_line(capsys)
    assert name in said
    assert "name another folder with --out" in said
    assert not (copied / "out" / name).exists()


def test_a_run_is_not_given_another_config_by_its_path(copied):
    from rlhf_lab.training.folders import OutputError

    with pytest.raises(OutputError, match="other options"):
        demo.run_demo(demo.DemoConfig(feedback="mine.jsonl", seed=7), copied / "out")


def test_a_corpus_has_documents(tmp_path, capsys):
    assert main(["corpus", "--count", "0", "--out", "out"]) == 1
    assert "--count is 0" in one_line(capsys)
    assert not (tmp_path / "out").exists()
