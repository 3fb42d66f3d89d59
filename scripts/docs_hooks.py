"""What mkdocs.yml adds to the pages: the tables of keys and commands, and links to files outside docs/.

The tables are made when the site is built, from what checks a recipe and parses the command line: a committed copy
could be out of date.
"""

import argparse
import inspect
import json
import logging
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from grpo_math.__main__ import command_line
from grpo_math.recipe.checking import describe, limits
from grpo_math.recipe.recipe import recipe_keys
from grpo_math.recipe.schema import key_sections
from grpo_math.recipe.trl import DEFAULTS
from grpo_math.rewards.reward import REWARDS, settings

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
LINK = re.compile(r"\]\((\.\./[^)#\s]+)")
OPTION = re.compile(r"`[^`]*`|--[a-z][\w.]*\w")
GUIDES = {  # the parts of a recipe, in the order of the page, and where they are explained
    "dataset": "datasets", "prompt_template": "recipe", "rewards": "rewards", "eval": "evaluation",
    "grading": "grading", "alarms": "preflight", "dynamic_sampling": "dynamic_sampling", "completions": "runs",
    "sft": "tutorials/sft_then_grpo",
}  # fmt: skip
logger = logging.getLogger("mkdocs.hooks.docs")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Fill in the tables, and lead links to files outside docs/ to the repository."""
    for mark, table in {"recipe keys": our_keys, "TRL's keys": trl_keys, "commands": commands}.items():
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", table())
    docs, folder = Path(config.docs_dir), Path(page.file.abs_src_path).parent

    def in_repository(link: re.Match) -> str:
        path = (folder / link[1]).resolve()
        if path.is_relative_to(docs):
            return link[0]
        if not path.exists():
            logger.warning("%s: a link to %s, which is not there", page.file.src_uri, link[1])
        return f"]({config.extra['repository']}/{path.relative_to(ROOT)}"

    markdown = LINK.sub(in_repository, markdown)
    # GitHub wants a pipe escaped in code in a table, and Python-Markdown would show the backslash
    return ROW.sub(lambda row: re.sub(r"`[^`]*`", lambda code: code[0].replace(r"\|", "|"), row[0]), markdown)


def on_post_page(output: str, page, config) -> str:
    """Report a page that loads something from elsewhere: the site has to open without a network."""
    for address in re.findall(r"<(?:script|link|img)\b[^>]+?\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", output):
        logger.warning("%s loads %s", page.file.src_uri, address)
    return output


def table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def key_table(keys: Iterable[tuple]) -> str:
    rows = []
    for name, field in keys:
        default = "required" if field.is_required() else f"`{json.dumps(field.default, default=list)}`"
        bounded = any(hasattr(one, limit) for one in field.metadata for limit in ("ge", "gt", "le", "lt"))
        kind = describe(field.annotation) + (f", {limits(field).removeprefix('a number ')}" if bounded else "")
        rows.append([f"`{name}`", kind, default, field.description or ""])
    return table(["key", "type and range", "default", "meaning"], rows)


def our_keys() -> str:
    """Every key of grpo-math, a section for each part of a recipe."""
    text, parts, fields = "", {}, recipe_keys("GRPO").model_fields | recipe_keys("SFT").model_fields
    for kind in ("GRPO", "SFT"):
        for name, field in next(iter(key_sections(kind).values())):
            parts.setdefault(name.partition(".")[0], {})[name] = field
    single = {name: keys[name] for name, keys in parts.items() if [*keys] == [name]}
    text = f"## Single keys\n\n{key_table(single.items())}\n"
    for name in sorted(parts.keys() - single.keys(), key=[*GUIDES].index):
        shown = {key: field for key, field in parts[name].items() if key != name}
        text += f"## {name}\n\n{sentence(fields[name].description)} See [the guide](../{GUIDES[name]}.md).\n\n"
        text += f"{key_table(shown.items())}\n"
        if name == "rewards":
            text += f"### Shipped rewards\n\nThe settings are further keys of the entry.\n\n{shipped_rewards()}\n"
    return text


def shipped_rewards() -> str:
    rows = []
    for name, function in REWARDS.items():
        own = "<br>".join(f"`{key}: {json.dumps(value)}`" for key, value in settings(function).items())
        rows.append([f"`{name}`", own, inspect.getdoc(function).partition("\n\n")[0].replace("\n", " ")])
    return table(["reward", "settings and their defaults", "score"], rows)


def trl_keys() -> str:
    """TRL's keys: those of both trainers, those of one, the model's."""
    (_, grpo, model), (_, sft, _) = (key_sections(kind).values() for kind in ("GRPO", "SFT"))
    same = [name for name, field in grpo if repr(field) == repr(dict(sft).get(name))]
    sections = {
        "Keys of GRPOConfig": [key for key in grpo if key[0] not in same],
        "Keys of SFTConfig": [key for key in sft if key[0] not in same],
        "Keys of both": [key for key in grpo if key[0] in same],
        "Keys of ModelConfig": model,
    }
    text = f"Defaults of grpo-math that differ from TRL's: {', '.join(f'`{name}`' for name in DEFAULTS)}.\n\n"
    return text + "\n".join(f"### {title}\n\n{key_table(keys)}" for title, keys in sections.items())


def commands() -> str:
    """A section for each verb: what it does, its usage, its options."""
    (verbs,) = (one for one in command_line()._actions if isinstance(one, argparse._SubParsersAction))
    text = ""
    for name, parser in verbs.choices.items():
        usage = textwrap.fill(" ".join(parser.format_usage().split()[1:]), 88, subsequent_indent="    ")
        rows = []
        for one in parser._actions[1:]:  # without --help
            if one.help == argparse.SUPPRESS:
                continue
            names = one.option_strings or [one.metavar or one.dest]
            shown = " ".join(filter(None, [", ".join(names), one.option_strings and one.nargs != 0 and one.metavar]))
            rows.append([f"`{shown}`", flagged(one.help)])
        text += f"## {name}\n\n{flagged(parser.description)}\n\n```text\n{usage}\n```\n\n"
        text += f"{table(['option', 'meaning'], rows)}\n" if rows else ""
    return text


def flagged(text: str | None) -> str:
    """The text with its options as code."""
    return OPTION.sub(lambda found: f"`{found[0].strip('`')}`", text or "")


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."
