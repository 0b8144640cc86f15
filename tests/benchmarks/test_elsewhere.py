"""What is exported goes on in another library: the README's lines run there, on our models and judgements."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from rlhf_lab.feedback.exports import export
from rlhf_lab.models.language_model import load_language_model
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.records import Event, Message, Ranking, as_conversation
from rlhf_lab.worlds import town

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


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.skipif(not THERE, reason="trl and datasets are not installed (extra: bench)")
def test_a_step_of_grpo_there_scores_replies_as_our_reward_model_does(tmp_path):
    """Our saved reward model as theirs, beside itself as a function: the same replies, the same scores."""
    from datasets import load_dataset
    from transformers import AutoModelForSequenceClassification
    from trl import GRPOConfig, GRPOTrainer

    lm, seen = load_language_model("tiny"), []
    reward_model = RewardModel.from_language_model(lm, torch.Generator().manual_seed(0))
    reward_model.save(tmp_path / "reward_model")
    rankings = [Ranking(prompt.conversation, ("a", "b"), ((0,), (1,))) for prompt in town.prompts("train", 4, seed=0)]
    export(tmp_path / "prompts.jsonl", [Event(str(i), one) for i, one in enumerate(rankings)], "prompts")

    class Watched(GRPOTrainer):
        def _calculate_rewards(self, *given, **named):
            seen.append(super()._calculate_rewards(*given, **named))
            return seen[-1]

    def ours(prompts, completions, **_):
        conversations = [[Message(**turn) for turn in prompt] for prompt in prompts]
        return reward_model.score(conversations, [completion[-1]["content"] for completion in completions]).tolist()

    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model")
    sizes = {"max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 24}
    plain = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    Watched(
        model=lm.copy().model, reward_funcs=[theirs, ours], reward_processing_classes=[lm.tokenizer, None],
        train_dataset=load_dataset("json", data_files=str(tmp_path / "prompts.jsonl"), split="train"),
        processing_class=lm.tokenizer, args=GRPOConfig(output_dir=str(tmp_path / "out"), **sizes, **plain),
    ).train()  # fmt: skip
    [scores] = seen
    assert scores.shape == (8, 2)
    assert scores.std() > 0.1  # no 0 = 0
    torch.testing.assert_close(scores[:, 0], scores[:, 1], atol=1e-5, rtol=0)
