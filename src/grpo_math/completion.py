"""The verb `completion`: a script for bash or zsh, made from the parser and the keys of a recipe."""

import argparse

import shtab

from grpo_math.__main__ import VERBS, add_keys, command_line
from grpo_math.recipe.file import shipped


def main(options: argparse.Namespace) -> None:
    """Print the script."""
    print(script(options.shell))


def script(shell: str) -> str:
    """The script of one of shtab's shells."""
    parser = command_line()
    (verbs,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    for name, one in verbs.choices.items():
        if kind := VERBS[name].kind or ("GRPO" if name in ("launch", "check") else ""):
            add_keys(one, kind)
        for action in one._actions:
            if action.dest == "config":
                action.complete = either_word_or_file("recipes")
            elif action.dest == "layout":
                action.complete = either_word_or_file("accelerate_configs")
            elif action.metavar in ("FILE.jsonl", "PROBLEMS", "RUN", "EVALUATION", "DIR", "FOLDER", "M"):
                action.complete = shtab.FILE
    return shtab.complete(parser, shell)


def either_word_or_file(folder: str) -> dict:
    """A file, or the name of one that is shipped in this folder."""
    names = " ".join(sorted(file.stem for file in shipped(folder).glob("*.yaml")))  # type: ignore[arg-type]
    function = f"_grpo_math_{folder}_or_file"
    return {
        "bash": function,
        "zsh": f"{{_values name {names}; _files}}",
        "preamble": {"bash": f'{function}() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}'},
    }
