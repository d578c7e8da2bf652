"""Task files of the user's own: what is wrong with one is told with its name, whenever it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wuneng.errors import TaskError
from wuneng.evaluate import own_task_code, own_task_files
from wuneng.evaluate.task_loading import load_tasks

TASK = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}, cache_dir: CACHE}
output_type: generate_until
test_split: test
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
"""
#: What is put in the place of what, and what is said of it.
WRONG = {
    "template": ("{{q}}", "{{q", "TemplateSyntaxError"),
    "unknown column": ("{{a}}", "{{zz}}", "'zz' is undefined"),
    "prompt that fails": ("{{q}}", "{{ 1 / 0 }}", "division by zero"),
    "output type": ("generate_until", "nosuch", "nosuch"),
    "split": ("test_split: test", "test_split: nosuch", "nosuch"),
    "number of tokens": ("max_gen_toks: 4", "max_gen_toks: x", "invalid literal for int"),
    "temperature": ("max_gen_toks: 4", "temperature: abc", "abc"),
    "temperature below 0": (
        "max_gen_toks: 4",
        "max_gen_toks: 4, do_sample: true, temperature: -1.0",
        "generation_kwargs: `temperature` (=-1.0)",
    ),
    "unknown setting": ("max_gen_toks: 4", "max_gen_toks: 4, bems: 3", "bems"),
    "number as prompt": ('"{{q}}"', "n", "Context is not a string"),
    "number to score": (
        'generate_until\ntest_split: test\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"',
        'loglikelihood_rolling\ntest_split: test\ndoc_to_text: ""\ndoc_to_target: n',
        "expected text to read and to score, got 0 (int)",
    ),
    "stop": ('["\\n"]', "5", "generation_kwargs.until: expected a text or several, got 5"),
    "filter": (
        "metric_list:",
        "filter_list: [{name: x, filter: [{function: regex, regex_pattern: '('}]}]\nmetric_list:",
        "unterminated subpattern",
    ),
}


@pytest.fixture
def evaluated(tmp_path: Path, wuneng: Any, llama_directory: Path) -> Any:
    rows = "".join(json.dumps({"q": f"What is {i}?", "a": str(i), "n": i}) + "\n" for i in range(4))
    (tmp_path / "rows.jsonl").write_text(rows)
    mine = tmp_path / "mine"
    mine.mkdir()

    def evaluate(text: str, *arguments: str) -> Any:
        text = text.replace("ROWS", str(tmp_path / "rows.jsonl"))
        (mine / "task.yaml").write_text(text.replace("CACHE", str(tmp_path / "hf")))
        return wuneng(
            *("eval", llama_directory, "--tasks", "mine", "--include-path", mine),
            *("--baseline", "none", "--out", tmp_path / "out", *arguments),
        )

    return evaluate


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_the_file(evaluated: Any, name: str) -> None:
    old, new, said = WRONG[name]
    assert old in TASK
    result = evaluated(TASK.replace(old, new))
    assert result.exit_code == 2, result.output
    assert "task 'mine': " in result.output
    assert said in result.output


def test_a_file_that_is_no_task_is_named(evaluated: Any) -> None:
    for text, said in (
        ("[1, 2]", "expected a mapping, got list"),
        ("task: {", "task.yaml: "),
        ("task: [" + "[" * 2000, "task.yaml: "),
        ("mine: 2020-99-99", "month must be in 1..12"),
        ("mine: !!int abc", "task.yaml: "),
    ):
        result = evaluated(text)
        assert result.exit_code == 2, result.output
        assert "No task files: " in result.output or "cannot be read" in result.output
        assert said in result.output


@pytest.mark.parametrize("members", ["5", "{a: 1}", "[[mine]]"])
def test_a_group_of_what_is_no_task(evaluated: Any, members: str) -> None:
    result = evaluated(f"group: mine\ntask: {members}\n")
    assert result.exit_code == 2, result.output
    assert "mine" in result.output


def test_code_of_a_task_runs_for_those_who_trust_it(evaluated: Any, tmp_path: Path) -> None:
    """Also where it is a file further that has it."""
    ran = tmp_path / "ran"
    code = f"def f(row):\n    open({str(ran)!r}, 'w')\n    return row['q']\n"
    (tmp_path / "mine" / "own.py").write_text(code)
    (tmp_path / "mine" / "shared.yml").write_text("doc_to_text: !function own.f\n")
    for text in (
        TASK.replace('"{{q}}"', "!function own.f"),
        TASK.replace('doc_to_text: "{{q}}"', "include: shared.yml"),
        TASK.replace('doc_to_text: "{{q}}"', '"include": [shared.yml]'),
    ):
        refused = evaluated(text)
        assert refused.exit_code == 2, refused.output
        assert "runs code of its own" in refused.output
        assert "--trust-remote-code" in refused.output
        assert not ran.exists()
        trusted = evaluated(text, "--trust-remote-code")
        assert trusted.exit_code == 0, trusted.output
        assert ran.exists()
        ran.unlink()


#: Programs in the place of a text, which leave a trace where they run.
TEMPLATES = (
    "{{ cycler.__init__.__globals__.os.system('touch TRACE') }}",
    "{{ ().__class__.__base__.__subclasses__() }}",
    "{% set x = 'a'.__class__ %}{{ x.__mro__ }}",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_no_way_to_the_interpreter(
    evaluated: Any, tmp_path: Path, template: str
) -> None:
    trace = tmp_path / "trace"
    text = TASK.replace("{{q}}", template.replace("TRACE", str(trace)))
    refused = evaluated(text)
    assert refused.exit_code == 2, refused.output
    assert "task.yaml: task 'mine': SecurityError" in refused.output
    assert "--trust-remote-code" in refused.output
    assert not trace.exists()
    trusted = evaluated(text, "--trust-remote-code")
    assert trusted.exit_code == 0, trusted.output
    assert trace.exists() == ("TRACE" in template)


def test_links_are_followed_as_the_harness_does(evaluated: Any, tmp_path: Path) -> None:
    """A task file that is a link, and one that includes a link to where its includes lie."""
    ran, away = tmp_path / "ran", tmp_path / "away"
    away.mkdir()
    (away / "own.py").write_text(f"def f(row):\n    open({str(ran)!r}, 'w')\n    return 'x'\n")
    (away / "function.yml").write_text("doc_to_text: !function own.f\n")
    (away / "real.yml").write_text("include: function.yml\n")
    (tmp_path / "mine" / "link.yml").symlink_to(away / "real.yml")
    without_text = TASK.replace('doc_to_text: "{{q}}"', "include: link.yml")
    result = evaluated(without_text)
    assert result.exit_code == 2, result.output
    assert "runs code of its own" in result.output
    whole = (tmp_path / "mine" / "task.yaml").read_text()
    (away / "task.yaml").write_text(whole.replace("include: link.yml", "include: real.yml"))
    (tmp_path / "mine" / "task.yaml").unlink()
    (tmp_path / "mine" / "task.yaml").symlink_to(away / "task.yaml")
    with pytest.raises(TaskError, match="runs code of its own"):
        load_tasks(["mine"], include_path=tmp_path / "mine")
    assert not ran.exists()
    result = evaluated(TASK.replace('doc_to_text: "{{q}}"', "include: nosuch.yml"))
    assert result.exit_code == 2, result.output


def test_a_template_reaches_nothing_of_an_image(tmp_path: Path) -> None:
    from jinja2.exceptions import SecurityError
    from lm_eval.utils import apply_template
    from PIL import Image

    row = {"image": Image.new("RGB", (2, 2)), "q": "x"}
    file = tmp_path / "written"
    with own_task_code.sandboxed_templates(tmp_path):
        for template in (f"{{{{ image.save({str(file)!r}, format='PPM') }}}}", "{{ image.size }}"):
            with pytest.raises(SecurityError):
                apply_template(template, row)
        loop = "{% set n = namespace(a=0) %}{% for c in q %}{% set n.a = loop.index %}{% endfor %}"
        assert apply_template(loop + "{{ n.a }}{{ cycler('a', 'b').next() }}", row) == "1a"
    assert not file.exists()


@pytest.mark.parametrize(
    "spelling", ["metric: exact_mach", "metric: exact_match, hf_evaluate: true"]
)
def test_a_metric_that_would_be_a_script(evaluated: Any, spelling: str) -> None:
    result = evaluated(TASK.replace("metric: exact_match", spelling))
    assert result.exit_code == 2, result.output
    assert "script of the evaluate library" in result.output
    assert ("Did you mean 'exact_match'" in result.output) == ("mach" in spelling)
    assert "--trust-remote-code" in result.output


def test_a_tag_of_python_is_not_constructed(evaluated: Any, tmp_path: Path) -> None:
    """Neither where the harness looks for tasks nor where it reads this one."""
    trace = tmp_path / "trace"
    for tag in ("object/apply:os.system", "object/new:os.system"):
        call = f"!!python/{tag} ['touch {trace}']"
        (tmp_path / "mine" / "another.yaml").write_text(f"task: another\ndoc_to_text: {call}\n")
        assert evaluated(TASK).exit_code == 0
        for text in (TASK + f"metadata: {call}\n", TASK.replace('"{{q}}"', call)):
            assert evaluated(text).exit_code == 2
        assert not trace.exists()


def test_templates_give_the_same_text_in_the_sandbox(tmp_path: Path) -> None:
    from lm_eval.utils import apply_template

    row = {"q": " a  b ", "words": ["x", "y"], "n": 3}
    for template in (
        "{{q.strip().upper()}}\n",
        "{% for w in words %}{{loop.index}}{{w}} {% endfor %}",
        "{{ q | regex_replace('a', 'z') }}",
        "{{ words | join('-') }} {{ '%d' % n }} {{ 'x{}'.format(n) }}",
    ):
        plain = apply_template(template, row)
        with own_task_code.sandboxed_templates(tmp_path):
            assert apply_template(template, row) == plain


def test_what_the_model_raises_is_not_the_files_fault(tmp_path: Path) -> None:
    """A task whose harness calls something of ours, which fails."""
    file, task = tmp_path / "task.yaml", object()

    def raised(module: str, inner: str) -> None:
        scope = {"__name__": inner}
        exec("def fail(): raise KeyError('x')", scope)
        outer: dict[str, Any] = {"__name__": module, "fail": scope["fail"]}
        exec("def run(self): fail()", outer)
        with own_task_files.run_errors({"mine": file}, {"mine": task}):
            outer["run"](task)

    with pytest.raises(TaskError, match=r"task\.yaml: task 'mine': KeyError: 'x'"):
        raised("lm_eval.api.task", "jinja2.runtime")
    with pytest.raises(KeyError):
        raised("lm_eval.api.task", "wuneng.model.modeling")
    with pytest.raises(KeyError):
        raised("somewhere", "somewhere.else")
