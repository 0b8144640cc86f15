"""What is exported goes on in another library: the README's lines run there, on our models and judgements."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from rlhf_lab.feedback.exports import export
from rlhf_lab.models.language_model import load_language_model
from rlhf_lab.records import Event, Ranking, as_conversation

torch.set_num_threads(1)
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
THERE = all(importlib.util.find_spec(name) for name in ("trl", "datasets"))


@pytest.fixture
def exported(tmp_path):
    """A file of preferences, and how many rows it has."""
    replies = ("The zoo is in Mill Street.", "Go away.", "I do not know.")
    rankings = [
        Ranking(as_conversation(f"Where is the zoo, number {i}?"), replies, ((0,), (2,), (1,))) for i in range(3)
    ]
    path = tmp_path / "mine.jsonl"
    return path, export(path, [Event(str(i), one) for i, one in enumerate(rankings)], "preferences").rows


def test_every_side_is_a_list_of_messages_so_that_no_chat_template_is_missed(exported):
    path, count = exported
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count == 9
    for row in rows:
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert [turn["role"] for turn in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # theirs, of their own defaults
@pytest.mark.skipif(not THERE, reason="trl and datasets are not installed (extra: bench)")
def test_the_readme_s_lines_train_there(exported, tmp_path):
    [code] = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from trl" in block]
    load_language_model("tiny").save(tmp_path / "sft")
    changes = {
        "runs/demo/sft": str(tmp_path / "sft"),
        "mine.jsonl": str(exported[0]),
        "runs/elsewhere": str(tmp_path / "out"),
    }
    changes["num_train_epochs=1"] = (
        "max_steps=1, use_cpu=True, bf16=False, report_to='none', per_device_train_batch_size=4"
    )
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    names = {}
    exec(code.replace("DPOTrainer(policy", "trainer = DPOTrainer(policy").replace(").train()", ")"), names)
    before = [p.detach().clone() for p in names["policy"].parameters()]
    names["trainer"].train()
    [step] = [log for log in names["trainer"].state.log_history if "train_loss" in log]
    assert step["train_loss"] == pytest.approx(0.6931, abs=1e-3)  # the reference is the start
    assert any(not torch.equal(a, b) for a, b in zip(before, names["policy"].parameters(), strict=True))
