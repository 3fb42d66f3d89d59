"""Where the answer of a completion stands, by answer style.

The rule for several answers: the last one counts. All functions take time linear in the length of the text.
"""

import re


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}` or `\fbox{...}`, braces balanced; None without one.

    A box that never closes is no answer, and neither is anything before it: the model did not finish.

    >>> last_boxed(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0 or not (opening := re.compile(r"\\(?:boxed|fbox)\s*\{").match(text, start)):
        return None
    depth = 1
    for brace in re.compile(r"(?s)\\.|[{}]").finditer(text, opening.end()):  # \{ is no brace, \\{ is
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[opening.end() : brace.start()].strip()
    return None


def last_hash(text: str) -> str | None:
    """What follows the last `####` on its line, as GSM8K writes its answers."""
    _, mark, answer = text.rpartition("####")
    lines = answer.strip().splitlines()
    return lines[0].strip() if mark and lines else None


def last_tag(text: str) -> str | None:
    r"""The content of the last `<answer>...</answer>`; a `\boxed{}` inside it is opened too."""
    head, closing, _ = text.rpartition("</answer>")
    _, opening, answer = head.rpartition("<answer>")
    if not (closing and opening and answer.strip()):
        return None
    return last_boxed(answer) or answer.strip()


STYLES = {"boxed": last_boxed, "hash": last_hash, "answer_tag": last_tag}
FORMATS = {
    "hash": re.compile(r"(?s)(?:.*\n)?####[ \t]*\S[^\n]*\s*"),
    "answer_tag": re.compile(
        r"(?s)\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>(?:(?!</?think>|</?answer>).)*</answer>\s*"
    ),
}


def extract(text: str, style: str) -> str | None:
    """The answer of a completion in `style`, or None when it gives none (an empty answer is none)."""
    return STYLES[style](text) or None


def well_formed(text: str, style: str) -> bool:
    r"""Whether the whole text is in `style`, right or wrong.

    `boxed`: its last box is complete and not empty. `hash`: its last line is `#### answer`. `answer_tag`: it is one
    `<think>...</think>` and one `<answer>...</answer>`, nothing before, between or after.
    """
    return extract(text, style) is not None and (style not in FORMATS or FORMATS[style].fullmatch(text) is not None)
