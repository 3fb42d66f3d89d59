"""`grpo-math VERB`: one parser for all verbs. A verb's module is imported when it runs, and gets the parsed options.

The keys of a recipe are not options of the parser: `--key value` pairs that no option takes are passed on, with
`--config`, as `options.words`, the argument of `load_recipe`.
"""

import argparse
import importlib
import io
import os
import re
import sys
from typing import NoReturn

from grpo_math import __version__
from grpo_math.errors import UserError, nearest, run_cli, suggestion
from grpo_math.verbs import TASKS, VERBS, Verb

DASHED = re.compile(r"--\w[\w.-]*(=|$)")
KEYS = "Every key of the recipe can be given as --key value, nested keys with dots: --eval.every 10."
LISTED = "`grpo-math train --help` lists the keys."


class Parser(argparse.ArgumentParser):
    """Errors in the arguments are UserErrors, one line each."""

    verb: Verb | None = None

    def format_help(self) -> str:
        if self.verb and self.verb.kind:
            add_keys(self, self.verb.kind)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument ") if " --" in message else f"{self.prog}: {message}")


class Tasks(argparse.RawDescriptionHelpFormatter):
    """The help of `grpo-math` itself lists the verbs by task, in its description."""

    def add_argument(self, action: argparse.Action) -> None:
        if not isinstance(action, argparse._SubParsersAction):
            super().add_argument(action)


def command_line() -> Parser:
    """The parser of all verbs."""
    parts = ["GRPO on math problems: one recipe, one command.\n`grpo-math VERB --help` explains a verb.\n"]
    for task, listed in TASKS.items():
        parts += [f"{task}:", *(f"  {name:<11} {VERBS[name].short}" for name in listed.split()), ""]
    parser = Parser("grpo-math", description="\n".join(parts), allow_abbrev=False, formatter_class=Tasks)
    parser.add_argument("--version", action="version", version=f"grpo-math {__version__}")
    tree = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        keys = f"{KEYS} {'' if verb.kind else LISTED}" if verb.keys else ""
        text = f"{verb.short[0].upper()}{verb.short[1:]}. {verb.more} {keys}"
        found = tree.add_parser(name, help=verb.short, description=text, allow_abbrev=False)
        found.verb = verb
        for names, more in verb.options:
            found.add_argument(*names, **more)
    return parser


def add_keys(parser: argparse.ArgumentParser, kind: str) -> None:
    """The keys of a recipe of this kind as options, for the help and for completion, in groups."""
    from grpo_math.recipe.schema import key_line, key_sections

    parser.usage = f"{parser.prog} --config FILE [options] [--KEY VALUE ...]"
    for title, keys in key_sections(kind).items():
        parts: dict[str, list] = {}
        for name, field in keys:
            parts.setdefault(name.partition(".")[0], []).append((name, field))
        single = [one for found in parts.values() if len(found) == 1 for one in found]
        nested = {f"{title}: {part}": found for part, found in parts.items() if len(found) > 1}
        for heading, found in ({title: single} | nested).items():
            group = parser.add_argument_group(heading)
            for name, field in found:
                group.add_argument(f"--{name}", metavar="VALUE", help=key_line(field).replace("%", "%%"))


def parse(argv: list[str]) -> argparse.Namespace:
    """The verb that `argv` names, and its options; where it takes recipe keys, `words` are `--config` and those."""
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        near = nearest(argv[0], VERBS)
        raise UserError(f"unknown verb {argv[0]!r}: " + (f"did you mean {near}?" if near else "see grpo-math --help"))
    options, rest = command_line().parse_known_args([underscored(word) for word in argv] or ["--help"])
    verb = VERBS[options.verb]
    known = [name for names, _ in verb.options for name in names if name.startswith("-")]
    if verb.keys:
        refuse_misspelt(rest, known)
        config = getattr(options, "config", None)
        options.words = [*(["--config", config] if config else []), *rest]
        options.words += ["--preflight", "false"] if getattr(options, "no_preflight", False) else []
    elif rest:
        hint = suggestion(rest[0], known, "", {}) if rest[0].startswith("-") else "unknown argument"
        raise UserError(f"grpo-math {options.verb}: {rest[0]}: {hint}")
    return options


def refuse_misspelt(words: list[str], known: list[str]) -> None:
    """Raise UserError for words that are nearer to one of the verb's `known` options than to any key of a recipe."""
    names = [name for word in words if DASHED.match(word) and "." not in (name := word.partition("=")[0])]
    if any(nearest(name[2:], [option[2:] for option in known]) for name in names):  # else the keys need not be read
        from grpo_math.recipe.recipe import recipe_keys

        kinds = map(recipe_keys, ("GRPO", "SFT"))
        keys = [f"--{key}" for kind in kinds for key in {**kind.model_fields, **kind.renamed}]
        near = {name: nearest(name, [*keys, *known]) for name in names}
        if found := [f"{name}: did you mean {one}?" for name, one in near.items() if one in known and name not in keys]:
            raise UserError("\n".join(found))


def underscored(word: str) -> str:
    """`--learning-rate` as `--learning_rate`. A reward's name, the second part of its key, is left unchanged."""
    if not DASHED.match(word):
        return word
    name, equals, value = word[2:].partition("=")
    parts = name.split(".")
    parts = [part if parts[0] == "rewards" and n == 1 else part.replace("-", "_") for n, part in enumerate(parts)]
    return f"--{'.'.join(parts)}{equals}{value}"


def dispatch(argv: list[str]) -> None:
    """Run the command line: import the verb's module, and give it the options. The plan of a training is launch's."""
    options = parse(argv)
    verb = VERBS[options.verb]
    module = VERBS["launch"].module if verb.kind and options.dry_run else verb.module
    importlib.import_module(f"grpo_math.{module}").main(options)


def run(verb: str) -> None:
    """`python -m grpo_math.VERB`, as accelerate launches it."""
    sys.exit(run_cli(dispatch, [verb, *sys.argv[1:]]))


def main() -> int:
    """The command `grpo-math`; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may be a terminal that knows no Unicode
            stream.reconfigure(errors="backslashreplace")
    sys.path.insert(0, "")  # as `python -m` does: modules in the current folder can be named in a recipe
    try:
        return run_cli(dispatch)
    except BrokenPipeError:  # `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
