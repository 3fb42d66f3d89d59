"""The command that a verb prints as the next one: each is run as it was printed."""

import json
import shlex

import forked
import pytest
from conftest import ROWS

from grpo_math.__main__ import dispatch
from grpo_math.errors import UserError


@pytest.mark.slow
def test_from_a_file_to_a_comparison(policy_folder, tmp_path):
    folder = tmp_path / "a b"  # a folder to quote

    def run(words):
        """The words of the command that follows this one."""
        status, output = forked.grpo_math(words, folder)
        assert status == 0, output
        printed = [line for line in output.splitlines() if line.startswith("next: ")]
        assert len(printed) <= 1
        return shlex.split(printed[0])[2:] if printed else None

    folder.mkdir()
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    check = run(["init", "mine.jsonl", "--out", "my recipe.yaml", "--model", str(policy_folder)])
    assert check == ["check", "--layout", "cpu", "--config", "my recipe.yaml"]
    launch = run([*check, "--max_completion_length", "8"])
    keys = ["--config", "my recipe.yaml", "--max_completion_length", "8"]
    assert launch == ["launch", "--layout", "cpu", *keys]
    assert run([*launch, "--dry_run"]) is None
    assert run([*check, "--json"]) is None
    train = run([*check, *keys[2:], "--layout", "none"])
    assert train == ["train", *keys]
    few = ["--max_steps", "1", "--prompts_per_step", "1", "--num_generations", "2", "--eval.batch_size", "8"]
    compare = run([*train, *few, "--output_dir", "my run"])
    evaluations = [f"my run/completions/eval-{step:06}.parquet" for step in (0, 1)]
    assert compare == ["compare", *evaluations]
    assert run(compare) is None
    evaluate = run([*train, *few, "--output_dir", "other", "--eval.before_after", "false"])
    assert evaluate == ["evaluate", "--config", "other/recipe.yaml", "--model", "other"]
    before = run([*evaluate, "--batch_size", "8"])
    assert before == [*evaluate[:3], "--model", str(policy_folder), "--batch_size", "8"]
    compare = run(before)
    assert compare[0] == "compare"
    assert ["-final-" in folder for folder in compare[1:]] == [True, False]
    assert run(compare) is None
    again = run(["export", "other", "merged"])
    assert again == ["evaluate", "--model", "merged", "--config", "other/recipe.yaml"]
    assert run(again)[0] == "compare"


def test_nothing_follows_a_mistake(write_recipe, capsys):
    with pytest.raises(SystemExit):
        dispatch(["check", "--config", str(write_recipe()), "--layout", "none", "--max_completion_length", "1000"])
    assert "next: " not in capsys.readouterr().out
    with pytest.raises(UserError):
        dispatch(["export", "nowhere", "merged"])
