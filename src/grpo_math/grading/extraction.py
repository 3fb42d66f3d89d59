r"""Where the answer of a completion stands, by answer style.

Several answers count as their list, without repeats: `\boxed{3} ... \boxed{4}` answers "3, 4", which is right for a
problem with these two solutions and wrong for any other, so hedging does not pay. Boxes without content, such as one
that the question asks to fill, are ignored. Only what follows the last `</think>` counts, and nothing after a
`<think>` that never closes. All functions take time linear in the length of the text.
"""

import re

from grpo_math.grading.tokens import has_content, normalise
from grpo_math.grading.units import TABLES

MAX_ANSWER = 4_000  # characters of an answer that are worth a look
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?<=\s)(\d[\w.,]*\b))|\\.|[{}]", re.DOTALL)
BOXED_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{?|\\.|[{}]", re.DOTALL)
HASH = re.compile(r"####[ \t]*(\S[^\n]*)")
TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
SENTENCE, REASON, HEADING, EXPRESSION = map(re.compile, TABLES["fallback"].values())


def boxes(text: str) -> list[str]:
    r"""What the `\boxed{...}` and `\fbox{...}` hold, braces balanced; none if one of them never closes.

    >>> boxes(r"first \boxed{\frac{1}{2}}, then \boxed{3}")
    ['\\frac{1}{2}', '3']
    """
    spans: list[tuple[int, int]] = []
    opened: list[tuple[int, int, int]] = []  # of a box: its macro, its content, spans before it; (-1, ...) of a brace
    inner = (0, 0)  # the box that closed last, macro and closing brace included
    start = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=len(text))
    for mark in BOX.finditer(text, start):
        sign = mark.group()
        if mark[1]:
            spans.append(mark.span(1))
        elif sign[-1] == "{" and len(sign) > 2:
            opened.append((mark.start(), mark.end(), len(spans)))
        elif sign == "{" and opened:
            opened.append((-1, 0, 0))
        elif sign == "}" and opened:
            macro, begin, before = opened.pop()
            if macro < 0:
                continue
            only_a_box = len(spans) > before and not (text[begin : inner[0]] + text[inner[1] : mark.start()]).strip()
            if not only_a_box:
                spans[before:] = [(begin, mark.start())]
            inner = (macro, mark.end())
    return [] if opened else [content for begin, end in spans if (content := text[begin:end].strip())]


def hashes(text: str) -> list[str]:
    """What follows `####` on its line, as GSM8K writes its answers."""
    lines = [line.strip() for line in HASH.findall(text) if not HEADING.fullmatch(line.strip())]
    return [answer for line in lines for answer in boxes(line) or [line]]


def tags(text: str) -> list[str]:
    r"""What `<answer>...</answer>` holds; a `\boxed{}` inside it is opened too."""
    contents = [content.strip() for content in TAG.findall(text)] if "</answer>" in text else []
    return [answer for content in contents for answer in boxes(content) or [content] if answer]


def fallback(text: str) -> list[str]:
    """For models that were never taught a format: boxes, else `####`, else "the answer is", else the last
    expression."""
    text = text.replace("**", "").replace("\N{MINUS SIGN}", "-")  # Markdown's bold, and the Unicode minus
    if found := boxes(text) or hashes(text):
        return found
    if sentences := SENTENCE.findall(text):
        said = " ".join(sentences[-1].split())
        return [said if len(said) > MAX_ANSWER else REASON.sub("", said) or said]
    found = [one[one.lastgroup or 0].strip() for one in EXPRESSION.finditer(text)]
    return [one for one in found if one][-1:]  # labels such as "step 3" are skipped


STYLES = {"boxed": boxes, "hash": hashes, "answer_tag": tags, "fallback": fallback}
FORMATS = {
    "hash": re.compile(r"(?s)(?:.*\n)?####[ \t]*\S[^\n]*(?:\n\s*)?"),
    "answer_tag": re.compile(
        r"(?s)\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>(?:(?!</?think>|</?answer>).)*</answer>\s*"
    ),
}


def without_boxes(text: str) -> str:
    r"""The text with every `\boxed{...}` replaced by what it holds.

    >>> without_boxes(r"so $\boxed{\frac{1}{2}}$.")
    'so $\\frac{1}{2}$.'
    """
    kept: list[str] = []
    opened: list[bool] = []  # whether each open brace is a box's
    start = 0
    for mark in BOXED_OR_BRACE.finditer(text):
        sign = mark.group()
        box = sign.startswith(("\\boxed", "\\fbox"))
        if sign[-1] == "{" and (box or sign == "{"):
            opened.append(box)
        if box or (sign == "}" and opened and opened.pop()):
            kept.append(text[start : mark.start()])
            start = mark.end()
    return "".join(kept) + text[start:]


def last_boxed(text: str) -> str | None:
    """The last box of a worked solution, which is its answer."""
    return boxes(text)[-1] if boxes(text) else None


def answers(text: str, style: str) -> list[str]:
    """The answers of a completion in `style` (a key of `STYLES`), repeated ones once."""
    said = text.rpartition("</think>")[2]
    found = STYLES[style](said) if "<think>" not in said else []
    return [
        one for one in dict.fromkeys(found) if one.isdigit() or len(one) > MAX_ANSWER or has_content(normalise(one))
    ]


def extract(text: str, style: str) -> str | None:
    """The answer of a completion: the list of its answers, or None when it gives none."""
    return ", ".join(answers(text, style)) or None


def well_formed(text: str, style: str) -> bool:
    r"""Whether the whole text is in `style`, right or wrong.

    `boxed`: there is a box, and all are complete. `hash`: its last line is `#### answer`. `answer_tag`: it is one
    `<think>...</think>` and one `<answer>...</answer>`, nothing before, between or after. `fallback`: any answer.
    """
    return extract(text, style) is not None and (style not in FORMATS or FORMATS[style].fullmatch(text) is not None)
