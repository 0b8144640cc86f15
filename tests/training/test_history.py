"""A history holds finite numbers with names, and shows itself well."""

import dataclasses

import numpy as np
import pytest
import torch

from rlhf_lab.training.files import load_checkpoint, save_checkpoint
from rlhf_lab.training.history import History, Result

torch.set_num_threads(1)


def example():
    history = History()
    history.add(0, loss=torch.tensor(2.0), accuracy=None)
    history.add(step=1, loss=np.float32(1.5))
    history.add(2, loss=1, accuracy=0.625)
    return history


def test_history_columns():
    history = example()
    steps, values = history.column("accuracy")
    assert (steps.tolist(), values.tolist()) == ([2], [0.625])
    assert history.column("loss")[1].tolist() == [2.0, 1.5, 1.0]
    assert (len(history), history.last("loss"), history.names()) == (3, 1.0, ["loss", "accuracy"])
    with pytest.raises(KeyError, match=r"kl.*loss"):
        history.column("kl")


def test_a_row_of_parts_has_each_name_once():
    history = History()
    history.add(3, {"loss": 1.0}, {}, {"score": 2.0}, more=None)
    assert history.to_list() == [{"step": 3, "loss": 1.0, "score": 2.0, "more": None}]
    with pytest.raises(ValueError, match="'loss' is there twice at step 4; evaluate must give it another name"):
        history.add(4, {"loss": 1.0}, {"loss": 2.0})
    assert len(history) == 1


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"step": 9.0}, "'step' is there twice at step 0; evaluate must give it another name"),
        (None, "there is None at step 0; evaluate must give a dictionary"),
        ([("loss", 1.0)], "evaluate must give a dictionary"),
        ({3: 1.0}, "evaluate must give a dictionary of names"),
        ({"note": "0.5"}, "note is '0.5' at step 0; evaluate must give a dictionary of names and numbers"),
        ({"note": "good"}, "note is 'good' at step 0"),
        ({"row": [1.0]}, r"row is \[1.0\] at step 0"),
        ({"row": torch.ones(2)}, r"row is tensor\(\[1., 1.\]\) at step 0"),
        ({"row": np.ones(2)}, r"row is array\(\[1., 1.\]\) at step 0"),
        ({"turned": 1j}, "turned is 1j at step 0"),
    ],
)
def test_what_is_no_row_of_numbers_is_refused(part, message):
    history = History()
    with pytest.raises(ValueError, match=message):
        history.add(0, part)
    assert len(history) == 0


def test_one_number_of_any_library_is_taken():
    history = History()
    history.add(0, {"a": torch.tensor([0.5]), "b": np.array([0.5]), "c": True, "d": np.int64(2), "e": None})
    assert history.to_list() == [{"step": 0, "a": 0.5, "b": 0.5, "c": 1.0, "d": 2.0, "e": None}]


def test_history_survives_a_checkpoint_and_json(tmp_path):
    save_checkpoint(tmp_path / "run.pt", {"history": example().to_list()})
    assert History.from_list(load_checkpoint(tmp_path / "run.pt")["history"]) == example()
    copied = example()
    copied.to_list()[0]["loss"] = 9.0
    assert copied == example()


def test_history_csv(tmp_path):
    example().to_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().splitlines() == [
        "step,loss,accuracy", "0,2.0,", "1,1.5,", "2,1.0,0.625"]  # fmt: skip


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_history_takes_finite_numbers_only(number):
    history = example()
    with pytest.raises(FloatingPointError, match=r"kl is .* at step 3"):
        history.add(3, loss=1.0, kl=number)
    assert history == example()


def test_history_as_a_table():
    lines = repr(example()).splitlines()
    assert lines[0].split() == ["step", "loss", "accuracy"]
    assert lines[3].split() == ["2", "1", "0.625"]
    assert len({len(line) for line in lines}) == 1
    for step in (3, 8, 9, 10_001):
        example_ = History.from_list([{"step": s, "loss": 0.5} for s in range(step)])
        assert len(repr(example_).splitlines()) <= 9
    assert repr(example_).splitlines()[-1].split() == [str(step - 1), "0.5"]
    assert repr(History()) == "History without rows"


def test_a_result_shows_itself_and_escapes_what_users_named():
    result = Result("a model", History.from_list([{"step": 1, "<b>loss</b>": 0.5}]), interrupted=True)
    assert repr(result).splitlines()[0] == "Result, stopped early, 1 rows of history"
    page = result._repr_html_()
    assert "<b>Result</b>, stopped early" in page
    assert "&lt;b&gt;loss&lt;/b&gt;" in page
    assert "<td>0.5</td>" in page
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.model = None
