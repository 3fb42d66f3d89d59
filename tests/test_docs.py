"""Links of the pages outside docs/ (`make docs` checks the others), and the tables that the site generates."""

import re
from types import SimpleNamespace

import pytest
from conftest import ROOT

import grpo_math
from grpo_math.__main__ import VERBS
from grpo_math.recipe.hints import REFUSED
from grpo_math.recipe.recipe import recipe_keys

LINK = re.compile(r"""(?:\]\(|(?:src|href)=")(?!https?:|mailto:)([^)#"\s]*)(?:#([^)"\s]+))?""")


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_lead_somewhere(name):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for target, anchor in LINK.findall(text):
        page = ROOT / target if target else ROOT / name
        assert page.exists(), f"{name}: {target}"
        if anchor and page.suffix == ".md":
            titles = re.findall(r"(?m)^#+ (.+)$", page.read_text())
            anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert anchor in anchors, f"{name}: {target}#{anchor}"


def test_the_reference_pages_have_every_key_and_command(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import docs_hooks

    config = SimpleNamespace(docs_dir=str(ROOT / "docs"), extra={"repository": "https://host/repository"})
    pages = {}
    for name in ("recipe", "commands"):
        path = ROOT / "docs" / "reference" / f"{name}.md"
        page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(path), src_uri=f"reference/{name}.md"))
        pages[name] = docs_hooks.on_page_markdown(path.read_text(), page, config, None)
    keys = {key for kind in ("GRPO", "SFT") for key in recipe_keys(kind).model_fields} - REFUSED.keys()
    named = {name.partition(".")[0] for name in re.findall(r"(?m)^\| `([\w.]+)` \|", pages["recipe"])}
    assert keys <= named
    assert "[recipes/schema.json](https://host/repository/recipes/schema.json)" in pages["recipe"]
    assert [verb for verb in VERBS if f"\n## {verb}\n" not in pages["commands"]] == []
    api = (ROOT / "docs" / "reference" / "api.md").read_text()
    assert [name for name in grpo_math.__all__ if f"heading: grpo_math.{name}," not in api] == []
    assert not re.search(r"\| *\|$", pages["recipe"], re.MULTILINE)  # a key without a description


def test_a_link_to_a_file_that_is_not_there_is_a_warning(monkeypatch, caplog):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import docs_hooks

    config = SimpleNamespace(docs_dir=str(ROOT / "docs"), extra={"repository": "https://host/repository"})
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(ROOT / "docs" / "x.md"), src_uri="x.md"))
    docs_hooks.on_page_markdown("[a](../recipes/none.yaml) [b](models.md)", page, config, None)
    assert caplog.messages == ["x.md: a link to ../recipes/none.yaml, which is not there"]


OTHER_NAMES = r"(?i)groups? without signal|(\d|\bchanged|\bfew|\btest|\bthis|\bsteps, by) questions?\b"


def test_texts_use_one_name_for_one_thing():
    """zero-std group, and problem for the items of a dataset; a question is the text of one."""
    kinds = ("docs/**/*.md", "src/**/*.py", "src/**/*.j2", "src/**/report.js", "recipes/*.yaml", "README.md")
    found = [path for kind in kinds for path in ROOT.glob(kind) if re.search(OTHER_NAMES, path.read_text())]
    assert found == []
