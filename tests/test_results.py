"""docs/results: the published runs, their table, and what must not be published."""

import importlib.util
import json
from pathlib import Path

import pytest
from make_run import make_run

from grpo_math.errors import UserError
from grpo_math.recipe.recipe import load_recipe
from grpo_math.report.completions import encoded

ROOT = Path(__file__).parents[1]
RUNS = sorted(path.parent for path in (ROOT / "docs/results").glob("*/results.json"))
PRIVATE = (
    ("/home/ann/x", "an absolute path"),
    ("/gpfs/users/ann", "an absolute path"),
    ("see\n/lustre/ann", "an absolute path"),
    ("node:/export/ann", "an absolute path"),
    ("--dataset.path=~/data", "an absolute path"),
    ("file:///root", "an absolute path"),
    ("10.0.0.7", "an address"),
    ("https://ann:secret@host", "an address"),
    ("gpu17.corp", "an address"),
    (f"see\nhf_{'x' * 20}", "a token"),
    (f"gho_{'x' * 36}", "a token"),
    (f"ASIA{'X' * 16}", "a token"),
)


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results", ROOT / "scripts/results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_agrees_with_the_published_runs(results):
    assert {run.name for run in RUNS} >= set(results.MEASURED)
    assert (ROOT / "docs/results/README.md").read_text(encoding="utf-8") == results.page(ROOT / "docs/results")


def test_published_runs_are_whole_small_and_have_nothing_private(results):
    for run in RUNS:
        assert {file.name for file in run.iterdir()} == set(results.FILES)
        recipe = load_recipe(["--config", str(run / "recipe.yaml")])
        assert recipe.keys["num_train_epochs" if recipe.sft else "max_steps"]
        assert (run / "report.html").stat().st_size < results.LARGEST
        for file in results.FILES:
            results.refuse_private(run / file)


def test_a_run_is_published_and_one_with_something_private_is_refused(results, tmp_path):
    run = make_run(tmp_path / "mine", steps=2)
    found = json.loads((run / "environment.json").read_text()) | {"platform": "Linux-6.1-a-machine"}
    (run / "environment.json").write_text(json.dumps(found))
    out = tmp_path / "out"
    results.publish(run, out)
    assert {file.name for file in (out / "mine").iterdir()} == set(results.FILES)
    assert "a-machine" not in (out / "mine/environment.json").read_text() + (out / "mine/report.html").read_text()
    for text, what in PRIVATE:
        (run / "environment.json").write_text(json.dumps(found | {"command": ["train", text]}))
        with pytest.raises(UserError, match=f"mine/environment.json has {what}"):
            results.publish(run, tmp_path / "none")
    (run / "environment.json").write_text(json.dumps(found | {"command": ["grpo-math", "quickstart"]}))
    with pytest.raises(UserError, match="mine: fails a bound of its recipe"):
        results.publish(run, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    page = (out / "mine/report.html").read_text()
    embedded = page.replace(
        'id="figures"',
        f'id="more" type="application/gzip">{encoded(b"see /home/ann/x now")}</script><script id="figures"',
    )
    (out / "mine/report.html").write_text(embedded)
    with pytest.raises(UserError, match=r"mine/report.html has an absolute path, '/home/ann/x'"):
        results.refuse_private(out / "mine/report.html")
