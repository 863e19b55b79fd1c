"""How much code there is in a file."""

import ast
import io
import tokenize


def _docstrings(text):
    """Numbers of the lines of strings that stand alone."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant):
                found |= {*range(statement.lineno, statement.end_lineno + 1)}
    return found


def code_lines(text):
    """Numbers of the lines that hold code, without docstrings, comments and blank lines."""
    docstrings = _docstrings(text)
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in silent | {tokenize.ENDMARKER} or token.start[0] in docstrings:
            continue
        found |= {*range(token.start[0], token.end[0] + 1)}
    return found
