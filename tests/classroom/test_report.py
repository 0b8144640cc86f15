"""The table, metrics.json and report.html: by hand, by schema, by parser, and against hostile text."""

import base64
import json
import math
import re
from dataclasses import dataclass, fields, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import jinja2
import jsonschema
import pytest
import torch

from rlhf_lab.classroom import report
from rlhf_lab.classroom.metrics import METRICS_SCHEMA, QUANTITIES, metrics_dict, write_metrics
from rlhf_lab.classroom.summary import (
    EXAMPLE_RULE,
    ROWS,
    Example,
    RunSummary,
    choose_examples,
    format_interval,
    text_table,
)
from rlhf_lab.evaluation.policies import ModelReport, evaluate_replies, true_rewards
from rlhf_lab.evaluation.reward_models import evaluate_reward_model
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.records import as_conversation
from rlhf_lab.training.history import History
from rlhf_lab.worlds import town

HTML = "<script>alert(1)</script> & \"quoted\" 'x' <img src=x onerror=alert(2)> \ud800 \u202e"
JINJA = '{{ 7*7 }} {% raw %} {# nothing #} {% endraw %} {{ title|safe }} {% include "report.css" %} \ud800'


def interval(mean, half=0.1, count=40):
    return Interval(mean, mean - half, mean + half, count)


def full_report(mean):
    names = [f.name for f in fields(ModelReport) if f.name != "by_skill"]
    quantities = evaluate_replies([]) | {"true_reward": interval(mean)}
    return ModelReport(**{name: interval(mean) for name in names}, by_skill={"ask": quantities})


def rollout(conversations, text):
    texts = tuple(f"{text} {i}" for i in range(len(conversations)))
    return SimpleNamespace(
        conversations=tuple(conversations), texts=texts, ended=torch.ones(len(texts), dtype=torch.bool)
    )


@dataclass(frozen=True)
class Config:
    seed: int = 0
    out: Path = Path("runs/demo")
    kl_target: float = math.inf
    sizes: tuple = (1, 2)


def history():
    run = History()
    for step in range(1, 5):
        run.add(step, score=0.1 * step, kl=step, entropy=1.0, clip_fraction=0.1, length=20)
    return run


@pytest.fixture(scope="module")
def town_conversations():
    return [prompt.conversation for prompt in town.prompts("held_out", 24, seed=0)]


@pytest.fixture(scope="module")
def summary(town_conversations):
    models = {"base": full_report(0.2), "sft": full_report(0.4), "rlhf": full_report(0.6)}
    replies = {name: rollout(town_conversations, name) for name in models}
    return RunSummary(
        reports=models,
        config=Config(),
        seconds={"sft": 1.5, "rlhf": 2.5},
        reward_model=evaluate_reward_model([1.0, 2.0], [0.0, 3.0], agreement=[0.9, 0.5]),
        differences={"RLHF against SFT": interval(0.2, 0.05)},
        history=history(),
        scores={"sft": [0.0, 1.0], "rlhf": [1.0, 2.0]},
        examples=choose_examples(replies),
        notes=["The raters are simulated."],
    )


# ---- table -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (Interval(0.44, 0.35, 0.53, 9), {}, "0.44 [0.35, 0.53]"),
        (Interval(0.44, 0.35, 0.53, 9), {"symmetric": True}, "0.44 ± 0.09"),
        (Interval(0.5, 0.25, 1.0, 9), {"digits": 1, "factor": 100}, "50.0 [25.0, 100.0]"),
        (Interval(2.0, -math.inf, math.inf, 1), {"symmetric": True}, "2.00"),
        (Interval(-0.001, -0.002, 0.0, 9), {}, "0.00 [0.00, 0.00]"),
        (None, {}, "-"),
    ],
)
def test_format_interval(value, options, expected):
    assert format_interval(value, **options) == expected


def test_text_table_is_aligned_and_leaves_out_the_unknown():
    models = {
        "sft": ModelReport(true_reward=interval(0.4), length=interval(20.0, 1.0)),
        "rlhf": ModelReport(true_reward=interval(-1.25), length=interval(120.0, 1.0), rude=interval(0.1)),
    }
    rows = text_table(models).splitlines()
    assert len({len(row) for row in rows}) == 1
    assert [row.split("  ")[0] for row in rows[1:]] == ["true reward, -3 to 3", "length, tokens", "rude, %"]
    assert rows[1].endswith("-1.25 ± 0.10")
    assert "-   10.0 [0.0, 20.0]" in rows[3]


# ---- metrics.json ------------------------------------------------------------------------------------------


def validate(metrics):
    jsonschema.Draft202012Validator.check_schema(METRICS_SCHEMA)
    jsonschema.Draft202012Validator(METRICS_SCHEMA).validate(metrics)


def strict(text):
    """JSON as the standard has it: NaN and Infinity fail."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_metrics_hold_what_the_issue_asks_for(summary, tmp_path):
    write_metrics(tmp_path / "metrics.json", summary)
    metrics = strict((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    validate(metrics)
    wanted = ["true_reward", "helpful", "truthful", "harmless", "form", "perplexity", "kl", "length"]
    for name, mean in {"base": 0.2, "sft": 0.4, "rlhf": 0.6}.items():
        for quantity in wanted:
            expected = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "count": 40}
            assert metrics["models"][name][quantity] == pytest.approx(expected)
    assert metrics["reward_model"]["accuracy"] == 0.5
    assert metrics["reward_model"]["ceiling"] == pytest.approx(0.7)
    assert metrics["config"] == {"seed": 0, "out": "runs/demo", "kl_target": None, "sizes": [1, 2]}
    assert metrics["seconds"] == {"sft": 1.5, "rlhf": 2.5}


def test_what_is_unknown_is_null_and_the_schema_allows_it(summary):
    foreign = ModelReport(length=Interval(20.0, -math.inf, math.inf, 1))
    metrics = metrics_dict(
        replace(
            summary,
            reports=dict.fromkeys(("base", "sft", "rlhf"), foreign),
            reward_model=evaluate_reward_model([1.0], [0.0]),
            differences={},
        )
    )
    validate(strict(json.dumps(metrics, allow_nan=False)))
    assert metrics["models"]["sft"]["true_reward"] is None
    assert metrics["models"]["sft"]["length"] == {"mean": 20.0, "low": None, "high": None, "count": 1}
    assert metrics["reward_model"]["ceiling"] is None
    validate(metrics_dict(replace(summary, reward_model=None)))


def remove(tree, *path):
    tree = json.loads(json.dumps(tree))
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return tree


@pytest.mark.parametrize(
    "path",
    [("models", "sft"), ("models", "rlhf", "kl"), ("models", "base", "form", "low"), ("seconds",),
     ("config",), ("reward_model", "ceiling"), ("models", "sft", "by_skill", "ask", "rude")],
)  # fmt: skip
def test_the_schema_misses_nothing(summary, path):
    metrics = metrics_dict(summary)
    with pytest.raises(jsonschema.ValidationError):
        validate(remove(metrics, *path))


def test_the_schema_refuses_what_it_does_not_know(summary):
    with pytest.raises(jsonschema.ValidationError):
        validate(metrics_dict(summary) | {"extra": 1})
    with pytest.raises(jsonschema.ValidationError):
        validate(metrics_dict(summary) | {"seconds": {"sft": "long"}})


def test_every_quantity_of_a_report_is_in_table_and_schema():
    assert list(ROWS) == list(ModelReport().quantities())
    assert list(QUANTITIES) == list(ModelReport().quantities())


# ---- examples ----------------------------------------------------------------------------------------------


def test_examples_go_round_the_skills(town_conversations):
    replies = {name: rollout(town_conversations, name) for name in ("sft", "rlhf")}
    examples = choose_examples(replies)
    skills = [town.recognise(c).skill for c in town_conversations]
    order = list(dict.fromkeys(skills))
    assert [example.skill for example in examples] == order + order[: 8 - len(order)]
    first = skills.index(order[0])
    second = skills.index(order[0], first + 1)
    assert examples[0].conversation == town_conversations[first]
    assert examples[len(order)].conversation == town_conversations[second]
    assert examples[0].replies == {"sft": f"sft {first}", "rlhf": f"rlhf {first}"}
    truth = true_rewards(replies["sft"])
    assert examples[len(order)].rewards["sft"] == truth[second]


def test_examples_of_foreign_prompts_are_the_first_ones():
    conversations = [as_conversation(f"Question {i}?") for i in (0, 0, 1, 2)]
    examples = choose_examples({"sft": rollout(conversations, "a")}, count=8)
    assert [example.replies["sft"] for example in examples] == ["a 0", "a 2", "a 3"]  # a prompt is shown once
    assert {example.skill for example in examples} == {""}
    assert {example.rewards["sft"] for example in examples} == {None}


def test_examples_need_the_same_prompts(town_conversations):
    mixed = {"sft": rollout(town_conversations, "a"), "rlhf": rollout(town_conversations[::-1], "b")}
    with pytest.raises(ValueError, match=r"same prompts.*rlhf"):
        choose_examples(mixed)
    with pytest.raises(ValueError, match="same prompts"):
        choose_examples({})


# ---- report.html -------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest."""

    VOID = ("meta", "img", "link", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def write(summary, folder):
    report.write_report(folder / "report.html", summary)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(summary, tmp_path_factory):
    """Drawing eight figures takes a second or two: once for all."""
    return write(summary, tmp_path_factory.mktemp("report"))


def test_the_page_stands_alone(page):
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("href", "srcset", "action")]
    sources = [value for _, name, value in page.attributes if name == "src"]
    assert len(sources) == 8  # parts, histogram, five curves, reliability
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not [a for a in page.attributes if a[2] and "http" in a[2]]
    assert not [words for words in page.words if "http" in words or "url(" in words]
    assert len([a for a in page.attributes if a[:2] == ("img", "alt") and a[2]]) == 8


def test_the_page_says_what_the_run_found(page):
    for words in (
        "RLHF against SFT: the true reward changes by +0.20 (95 % interval 0.15 to 0.25: above 0)",
        "true reward, -3 to 3 0.20 ± 0.10 0.40 ± 0.10 0.60 ± 0.10",
        "ask: true reward, -3 to 3 0.20 ± 0.10",
        "It agrees with 50.0 % [9.5, 90.5] of 2 held-out labels",
        "the best any model could expect is 70.0 %; this one can expect 70.0 %",
        "SFT 40.0 % [30.0, 50.0], RLHF 60.0 % [50.0, 70.0]",
        EXAMPLE_RULE,
        "The raters are simulated.",
        "sft 1.5 rlhf 2.5 together 4.0",
        '"kl_target": null',
    ):
        assert words in page.text


@pytest.mark.parametrize("text", [HTML, JINJA], ids=["html", "jinja"])
def test_hostile_text_stays_text(summary, tmp_path, text):
    """Title, heading, note, label, heads of two tables, refusals, two rows of skills; tag, turn, name, reply, stage."""
    example = Example(
        as_conversation(text.replace("\ud800", "?")),  # a record refuses it
        text,
        {"sft": text, text: ""},
        {text: 1.0},
    )
    skill = evaluate_replies([]) | {"true_reward": interval(0.5)}
    hostile = replace(
        summary,
        reports={text: ModelReport(length=interval(9.0), over_refusal=interval(0.5), by_skill={text: skill})},
        reward_model=None,
        history=None,
        scores={},
        examples=[example],
        title=text,
        notes=[text],
        seconds={text: 1.0},
        config={text: text},
        differences={text: interval(0.0)},
    )
    page = write(hostile, tmp_path)
    assert not {"script", "img"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    shown = " ".join(text.replace("\ud800", "?").replace("\u202e", "").split())
    assert page.text.count(shown) == 9 + 5
    assert page.text.count(json.dumps(shown)[1:-1]) == 2  # key and value of the configuration
    assert page.text.count("The look of report.html") == 1  # nothing was included again
    assert ("div", "class", text.replace("\ud800", "?")) in page.attributes


def test_nothing_in_the_page_goes_round_the_escaping():
    assert report.TEMPLATES.autoescape is True
    template = (Path(report.__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape", template)
    assert "Markup" not in Path(report.__file__).read_text(encoding="utf-8")


def test_a_value_that_the_template_misses_is_an_error(summary, monkeypatch, tmp_path):
    known = report.page(replace(summary, reports={}, scores={}, history=None, reward_model=None))
    for name in known:
        monkeypatch.setattr(report, "page", lambda _, name=name: {key: known[key] for key in known if key != name})
        with pytest.raises(jinja2.UndefinedError, match=f"'{name}' is undefined"):
            report.write_report(tmp_path / "report.html", summary)
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_foreign_prompts_has_a_page_too(tmp_path):
    bare = ModelReport(length=Interval(20.0, -math.inf, math.inf, 1))
    models = dict.fromkeys(("base", "sft", "rlhf"), bare)
    conversations = [as_conversation("What is love?")]
    examples = choose_examples({"rlhf": rollout(conversations, "a feeling")})
    page = write(RunSummary(models, {}, {}, examples=examples), tmp_path)
    assert "true reward" not in page.text
    assert "img" not in page.tags
    assert "Refusing" not in page.text
    assert "a feeling 0" in page.text


def test_nothing_is_left_half_written(summary, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    bare = replace(summary, reports={}, scores={}, history=None, reward_model=None)
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="space"):
        report.write_report(tmp_path / "report.html", bare)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
