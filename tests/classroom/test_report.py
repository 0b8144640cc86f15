"""The table, metrics.json and report.html: by hand, by schema, by parser, and against hostile text."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import jsonschema
import pytest
from report_parts import CARD, HTML, JINJA, NAMES, full_report, interval, rollout, summary_of

from rlhf_lab.classroom import report
from rlhf_lab.classroom.metrics import METRICS_SCHEMA, QUANTITIES, metrics_dict, write_metrics
from rlhf_lab.classroom.summary import (
    EXAMPLE_RULE,
    ROWS,
    Contrast,
    Example,
    RunSummary,
    change_lines,
    change_words,
    choose_examples,
    format_interval,
    text_table,
)
from rlhf_lab.evaluation.changes import Change, paired_changes
from rlhf_lab.evaluation.evidence import Evidence
from rlhf_lab.evaluation.policies import ModelReport, evaluate_replies, true_rewards
from rlhf_lab.evaluation.reward_models import evaluate_reward_model
from rlhf_lab.maths.intervals import Interval, Ratio
from rlhf_lab.records import as_conversation
from rlhf_lab.worlds import town


@pytest.fixture(scope="module")
def town_conversations():
    return [prompt.conversation for prompt in town.prompts("held_out", 24, seed=0)]


@pytest.fixture(scope="module")
def summary(town_conversations):
    return summary_of(town_conversations)


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
    rows = text_table(RunSummary(models, {}, {}, names=NAMES)).splitlines()
    assert len({len(row) for row in rows}) == 1
    assert [row.split("  ")[0] for row in rows[1:]] == ["true reward, -3 to 3", "length, tokens", "rude, %"]
    assert rows[0].split() == ["SFT", "RLHF"]
    assert rows[1].endswith("-1.25 ± 0.10")
    assert "-   10.0 [0.0, 20.0]" in rows[3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change("rude", "", 0.08, 0.02, Interval(-0.06, -0.081, -0.039, 40)), "rude fell from 8.0 to 2.0 %"),
        (
            Change("true_reward", "chat", 2, 2.5, Interval(0.5, 0.4, 0.6, 40)),
            "true reward in chat rose from 2.00 to 2.50",
        ),
        (Change("length", "", 9.0, 9.1, Interval(0.1, -1, 1.2, 40)), "length went from 9.0 to 9.1 tokens"),
        (
            Change("perplexity", "", 1.5, 1.53, Ratio(1.02, 1.01, 1.03, 9)),
            "perplexity, good text rose from 1.50 to 1.53",
        ),
    ],
)
def test_a_change_in_words(change, words):
    assert change_words(change)[0] == words


def test_a_difference_has_one_digit_more_than_the_means():
    change = Change("form", "", 0.99, 0.98, Interval(-0.0104, -0.0203, -0.0004, 400))
    assert change_words(change)[1] == "-0.010 [-0.020, 0.000]"
    assert change_words(Change("perplexity", "", 1.5, 1.53, Ratio(1.02, 1.01, 1.03, 9)))[1] == "+2.0 % [1.0, 3.0]"
    one = Change("length", "", 9.0, 8.0, Interval(-1.0, -math.inf, math.inf, 1))
    assert change_words(one)[1] == "-1.00, no interval"


def test_the_terminal_says_what_got_worse(summary):
    lines = list(change_lines(summary))
    assert lines[0].startswith("RLHF - SFT")
    assert any(re.match(r"  better  harmless rose from 0\.00 to 1\.00", line) for line in lines)
    assert any(re.match(r"  worse   truthful fell from 1\.00 to 0\.50", line) for line in lines)
    assert lines[-1] == "  worse   nothing, as far as these replies tell"


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
    assert metrics["megabytes"] == {"sft": 1234.0, "rlhf": None}
    assert metrics["schema"] == 2
    assert metrics["names"] == NAMES
    assert metrics["run"]["commit"] == "0123456789" * 4
    assert list(metrics["differences"]) == list(metrics["changes"]) == ["RLHF - SFT", "SFT - base"]
    worse = [c for c in metrics["changes"]["RLHF - SFT"] if c["verdict"] == "worse"]
    assert [(c["quantity"], c["skill"], c["stands"], c["ratio"]) for c in worse] == [("truthful", "", True, False)]
    assert worse[0]["interval"]["mean"] == -0.5


def test_any_number_of_models_of_any_name(summary):
    """Nothing but the summary knows which models there are: one, or seven of other names."""
    for names in (["dpo"], [f"method {i}" for i in range(7)]):
        reports = {name: full_report(0.1 * i) for i, name in enumerate(names)}
        scores = {name: [0.0, 1.0, 2.0] for name in names}
        many = replace(summary, reports=reports, names={}, reference="", contrasts=[], evidence=None, scores=scores)
        metrics = metrics_dict(replace(many, examples=()))
        validate(metrics)
        assert list(metrics["models"]) == names
        shown = report.page(many)
        assert shown["models"]["models"] == names
        assert text_table(many).splitlines()[0].split() == " ".join(names).split()
        assert "KL to the reference, nats" in text_table(many)


def test_what_is_unknown_is_null_and_the_schema_allows_it(summary):
    foreign = ModelReport(length=Interval(20.0, -math.inf, math.inf, 1))
    metrics = metrics_dict(
        replace(
            summary,
            reports=dict.fromkeys(("base", "sft", "rlhf"), foreign),
            reward_model=evaluate_reward_model([1.0], [0.0]),
            contrasts=[],
            card=None,
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
    [("schema",), ("names",), ("changes", "RLHF - SFT", 0, "good"), ("run", "seed"), ("models", "rlhf", "kl"),
     ("models", "base", "form", "low"), ("seconds",), ("megabytes",),
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

    VOID = ("meta", "img", "link", "br", "input")  # and what closes itself, as in SVG

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

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

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
    folder = tmp_path_factory.mktemp("report")
    (folder / "a b").mkdir()
    for name in ("metrics.json", "a b/c.json"):
        (folder / name).write_text("{}")
    return write(summary, folder)


def test_the_page_stands_alone(page):
    """No script, nothing loaded; links lead into the page or to a file beside it that is there."""
    assert not {"script", "link", "iframe", "object", "form", "img", "image", "use"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("src", "srcset", "action", "style")]
    links = [value for _, name, value in page.attributes if name == "href"]
    inside = [link.removeprefix("#") for link in links if link.startswith("#")]
    anchors = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert inside == anchors == ["changes", "models", "refusals", "training", "reward-model", "replies", "run"]
    assert [link for link in links if not link.startswith("#")] == ["./metrics.json", "./a%20b/c.json"]
    assert not [a for a in page.attributes if a[2] and "http" in a[2]]
    assert not [words for words in page.words if "http" in words or "url(" in words]
    policy = next(
        value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "src" in value
    )
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script" not in policy
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_every_figure_has_a_reading_and_values_on_hover(page):
    """Two of changes, parts, histogram, five curves, reliability; the drawing is named, and its marks have titles."""
    drawn = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(drawn) == 10
    assert page.tags.count("figcaption") == 10
    assert all(re.fullmatch(r".+[.?] .+\.", label) for label in drawn)
    assert "iteration 3: own replies 0.30" in page.text
    assert "truthful fell from 1.00 to 0.50 (-0.500 [-0.716, -0.284])" in page.text


def test_the_page_opens_with_better_and_worse(summary, page):
    first = page.text.index("What got better and what got worse, from SFT to RLHF")
    better, worse = (
        page.text.index("Harmless rose from 0.00 to 1.00"),
        page.text.index("Truthful fell from 1.00 to 0.50"),
    )
    assert first < better < worse < page.text.index("The models side by side One sampled reply")
    warned = report.page(replace(summary, opening="Warning: few labels."))
    assert warned["opening"] == "Warning: few labels."
    main = warned["changes"][0]
    assert [line["words"] for line in main["worse"]] == ["Truthful fell from 1.00 to 0.50"]
    assert len(main["better"]) + len(main["worse"]) + len(main["changed"]) + len(main["undecided"]) == main["rows"]
    assert main["by_chance"] == f"{0.05 * main['rows']:.1f}"


def test_the_page_says_what_the_run_found(page):
    for words in (
        "2026-11-30 seed 7 600 judgements 24 held-out prompts rlhf_lab 0.1, commit 0123456789",
        "true reward, -3 to 3 0.20 ± 0.10 0.40 ± 0.10 0.60 ± 0.10",
        "KL to SFT, nats",
        "ask: true reward, -3 to 3 0.20 ± 0.10",
        "It agrees with 50.0 % [9.5, 90.5] of 2 held-out labels",
        "the best any model could expect is 70.0 %; this one can expect 70.0 %",
        "SFT 40.0 % [30.0, 50.0], RLHF 60.0 % [50.0, 70.0]",
        EXAMPLE_RULE,
        "The raters are simulated.",
        "to repeat it python run.py demo",
        "sft 1.5 1,234 rlhf 2.5 together 4.0 1,234",
        '"kl_target": null',
    ):
        assert words in page.text


# ---- replies -----------------------------------------------------------------------------------------------


def shown(page, choices):
    """Rows that the rules of the page leave, as a browser applies them: (tags of the row) for each."""
    hide = re.findall(r"has\(#([\w-]+):checked\) \.row:not\(\.(\w+)\)", "".join(page.words))
    rows = [value.split()[1:] for tag, name, value in page.attributes if (tag, name) == ("article", "class")]
    needed = [tag for button, tag in hide if button in choices]
    return [tags for tags in rows if all(tag in tags for tag in needed)]


def test_replies_are_filtered_by_tag(summary, page):
    groups = report.page(summary)["explorer"].groups
    assert [group.name for group in groups] == ["show", "skill", "verdict"]
    buttons = [value for tag, name, value in page.attributes if (tag, name) == ("input", "id")]
    assert len(buttons) == sum(len(group.options) for group in groups)
    for group in groups:
        for place, (tag, label, count) in enumerate(group.options):
            rows = shown(page, {f"{group.name}-{place}"})
            assert len(rows) == count, label
            assert all(not tag or tag in row for row in rows)
    assert len(shown(page, {"show-0"})) == 8  # at the beginning: the examples, in their order
    assert len(shown(page, {"show-1"})) == 24
    options = {label: tag for group in groups for tag, label, _ in group.options}
    assert {"worse", "the same reply"}.isdisjoint(options)  # an empty choice is not offered
    assert options["says something false"] in {tag for row in shown(page, {"show-1"}) for tag in row}
    false = [label for _, label, _ in groups[2].options].index("says something false")
    both = shown(page, {"skill-1", f"verdict-{false}"})
    assert both
    assert all({"s0", options["says something false"]} <= set(row) for row in both)


def test_the_tags_of_a_row_by_hand(summary):
    """Better, worse, equal in another reply, the same reply; what the oracle does not judge is neither."""
    prompts = [as_conversation(f"{i}?") for i in range(5)]
    replies = {"sft": ["a", "a", "a", "a", "a"], "rlhf": ["b", "b", "b", "a", "b"]}
    rewards = {"sft": [0.0, 1.0, 1.0, 1.0, None], "rlhf": [1.0, 0.0, 1.0, 1.0, None]}
    values = {name: {"true_reward": of, "rude": [0.0, 1.0, 0.0, 0.0, None]} for name, of in rewards.items()}
    evidence = Evidence(prompts, [""] * 5, replies, values)
    pair = Contrast("rlhf", "sft", paired_changes(evidence, "rlhf", "sft"))
    shown = report.page(replace(summary, evidence=evidence, contrasts=[pair], examples=()))["explorer"]
    assert [set(row.tags) for row in shown.rows] == [
        {"changed", "better", "fine"}, {"changed", "worse", "f5"}, {"changed", "fine"}, {"same", "fine"}, {"changed"},
    ]  # fmt: skip
    assert shown.rows[1].replies[1].flaws == "rude"
    assert [(label, count) for _, label, count in shown.groups[0].options] == [
        ("all", 5), ("another reply", 4), ("the same reply", 1), ("worse", 1), ("better", 1),
    ]  # fmt: skip


def test_the_page_stays_small(summary, tmp_path):
    """480 prompts with replies of 64 tokens, some 300 characters, are below 2 MB."""
    conversations = [as_conversation(f"Question {i}, {'what ' * 20}?") for i in range(480)]
    replies = {name: rollout(conversations, "word " * 60) for name in NAMES}
    values = {name: {"length": [1.0] * 480} for name in NAMES}
    texts = {name: r.texts for name, r in replies.items()}
    many = Evidence(conversations, ["chat"] * 480, texts, values)
    report.write_report(tmp_path / "report.html", replace(summary, evidence=many, examples=choose_examples(replies)))
    assert (tmp_path / "report.html").stat().st_size < 2e6


# ---- hostile texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [HTML, JINJA], ids=["html", "jinja"])
def test_hostile_text_stays_text(summary, tmp_path, text):
    """In every place that holds a text: title, notes, names, labels, skills, prompts, replies, stages, card, files."""
    record = as_conversation(text.replace("\ud800", "?"))  # a record refuses it
    skill = evaluate_replies([]) | {"true_reward": interval(0.5)}
    values = {text: {"true_reward": [1.0]}, "b": {"true_reward": [0.0]}}
    changes = [Change("true_reward", text, 0.0, 1.0, interval(1.0)), Change("true_reward", "", 0.0, 1.0, interval(1.0))]
    (tmp_path / "x<y>.json").write_text("{}")
    hostile = replace(
        summary,
        reports={text: ModelReport(length=interval(9.0), over_refusal=interval(0.5), by_skill={text: skill})},
        names={"b": text},
        reference=text,
        contrasts=[Contrast(text, "b", changes), Contrast("b", text, changes)],
        evidence=Evidence([record], [text], {text: [text], "b": [""]}, values),
        reward_model=None,
        history=None,
        scores={text: [0.0, 1.0]},
        examples=[Example(record, text, {text: text}, {text: 1.0})],
        card=replace(CARD, model=text, command=text),
        files={"x<y>.json": text},
        title=text,
        opening=text,
        notes=[text],
        seconds={text: 1.0},
        config={text: text},
    )
    page = write(hostile, tmp_path)
    assert not {"script", "img"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    known = {"class", "id", "name", "href", "content", "d", "transform", "viewBox", "viewbox", "lang", "charset"}
    held = [a for a in page.attributes if a[1] in known and a[2]]
    assert not [a for a in held if "alert" in a[2] or "7*7" in a[2]]  # no text of a run in what a browser acts on
    words = " ".join(text.replace("\ud800", "?").replace("\u202e", "").split())
    assert page.text.count(words) >= 25
    assert page.text.count("The look of report.html") == 1  # nothing was included again
    assert "49" not in re.sub(r"[\d.]*\d[\d.]+", "", page.text.replace(words, ""))
    assert ("a", "href", "./x%3Cy%3E.json") in page.attributes


def test_nothing_in_the_page_goes_round_the_escaping():
    assert report.TEMPLATES.autoescape is True
    template = (Path(report.__file__).parent / "report.html.j2").read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe|autoescape", template)
    for name in ("report.py", "svg.py", "figures.py", "explorer.py"):
        assert "Markup" not in Path(report.__file__).with_name(name).read_text(encoding="utf-8")


def test_a_value_that_the_template_misses_is_an_error(summary, monkeypatch, tmp_path):
    known = report.page(summary)
    for name in known:
        left = {key: value for key, value in known.items() if key != name}
        monkeypatch.setattr(report, "page", lambda _, folder, left=left: left)
        with pytest.raises(jinja2.UndefinedError, match=f"'{name}' is undefined"):
            report.write_report(tmp_path / "report.html", summary)
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_foreign_prompts_has_a_page_too(tmp_path):
    bare = ModelReport(length=Interval(20.0, -math.inf, math.inf, 1))
    models = dict.fromkeys(("base", "sft", "rlhf"), bare)
    conversations = [as_conversation("What is love?")]
    examples = choose_examples({"rlhf": rollout(conversations, "a feeling")})
    lengths = {"base": {"length": [9.0] * 8}, "rlhf": {"length": [9.0, 8.0] * 4}}
    foreign = Evidence([as_conversation(f"{i}?") for i in range(8)], [""] * 8, {n: ["x"] * 8 for n in lengths}, lengths)
    counted = [Contrast("rlhf", "base", paired_changes(foreign, "rlhf", "base"))]
    page = write(RunSummary(models, {}, {}, contrasts=counted, evidence=foreign), tmp_path)
    assert "No oracle judges these prompts." in page.text
    assert "1 of 1 are not decided" in page.text  # four pairs differ
    page = write(RunSummary(models, {}, {}, examples=examples), tmp_path)
    assert "true reward 0" not in page.text
    assert "figure" not in page.tags
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
