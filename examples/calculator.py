"""A calculator as a tool. Its input is parsed with `ast`, and nothing but + - * / is computed: no code of the model's
runs."""

import ast
import operator
from fractions import Fraction

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
LONGEST = 200  # characters; without powers the result is about as long


def calculator(expression: str) -> str:
    """Computes an arithmetic expression.

    Args:
        expression: Numbers, + - * / and parentheses, such as (3+4)*2.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters, at most {LONGEST} are allowed")
    try:
        value = computed(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError("not an arithmetic expression") from None
    return str(value) if value.denominator == 1 else f"{float(value):g}"


def computed(node: ast.expr) -> Fraction:
    """The value of a parsed expression."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return Fraction(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -computed(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            return OPERATIONS[type(op)](computed(left), computed(right))
    raise ValueError("only numbers, + - * / and parentheses are allowed")
