"""Check that every default stated in a docstring is the default in the code; exit status 1 where one is not.

Reads the sources without importing them. A default is stated as in `name (`int`, *optional*, defaults to 3):` or,
in the text of an argument, as "defaults to `3`". Compared are arguments of public functions and methods, and
attributes of public classes (dataclasses, configurations) or the arguments of their `__init__`.

    python .ci/check_docstrings.py [folder or file ...]
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("modeling", "processing", "training", "serving")

SECTION = re.compile(r"^\s*(Args|Arguments|Parameters|Attributes|Keyword Args|Other Parameters):\s*$")
OTHER_SECTION = re.compile(r"^\s*(Returns?|Raises|Yields?|Examples?|Notes?|References?|Source|Shapes?):?\s*$")
# `name:`, `name (type):`, `*args (type):`, with the type in any number of parentheses up to the last `):`.
ENTRY = re.compile(r"^(?P<indent>\s*)`{0,2}\*{0,2}(?P<name>[A-Za-z_]\w*)`{0,2}\s*(?:\((?P<type>.*?)\))?\s*:(?:\s|$)")
STATED = re.compile(
    r"""\bdefaults?(?:\s+to|\s+is|:)\s+
        (?: `+(?P<ticked>[^`]+)`+ | (?P<quoted>"[^"]*"|'[^']*') | (?P<plain>[(\[{][^)\]}]*[)\]}]|[^\s,;]+) )""",
    re.VERBOSE | re.IGNORECASE,
)

MISSING = object()  # the argument exists and has no default


def main(arguments: list[str]) -> int:
    """Check the given paths, or the project's four folders; returns the exit status."""
    root = Path(__file__).resolve().parent.parent
    paths = [Path(name) for name in arguments] or [root / name for name in FOLDERS]
    problems = []
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            shown = file.relative_to(root) if file.is_relative_to(root) else file
            problems += [f"{shown}:{line}: {text}" for line, text in check_source(file.read_text(encoding="utf-8"))]
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} docstring default(s) differ from the code")
    return 1 if problems else 0


def check_source(source: str) -> list[tuple[int, str]]:
    """Problems in one file's source, as (line, text)."""
    tree = ast.parse(source)
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            constants[node.target.id] = node.value
    problems = []
    for name, node in public_definitions(tree, ""):
        defaults = class_defaults(node) if isinstance(node, ast.ClassDef) else function_defaults(node)
        for line, argument, stated, exact in stated_defaults(node):
            if argument not in defaults:  # inherited, or not an argument at all: not ours to compare
                continue
            default = defaults[argument]
            if default is not MISSING:
                default = constants.get(default.id, default) if isinstance(default, ast.Name) else default
            if not agree(stated, exact, default):
                expected = "no default" if default is MISSING else f"`{ast.unparse(default)}`"
                problems.append((line, f"{name}: `{argument}`: got `{stated}` in the docstring, expected {expected}"))
    return problems


def public_definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """Public classes and functions under `node` with their dotted names, methods and `__init__` included."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_") and not child.name.endswith("__"):
            continue
        yield prefix + child.name, child
        if isinstance(child, ast.ClassDef):
            yield from public_definitions(child, f"{prefix}{child.name}.")


def function_defaults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, object]:
    """Each argument's default expression, or MISSING."""
    positional = node.args.posonlyargs + node.args.args
    padded = [MISSING] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    defaults = {argument.arg: default for argument, default in zip(positional, padded, strict=True)}
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        defaults[argument.arg] = MISSING if default is None else default
    return {name: unwrap(default) for name, default in defaults.items()}


def class_defaults(node: ast.ClassDef) -> dict[str, object]:
    """Defaults of the arguments of `__init__` and of the class attributes."""
    defaults: dict[str, object] = {}
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            defaults.update(function_defaults(child))
    for child in node.body:
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            defaults[child.target.id] = unwrap(MISSING if child.value is None else child.value)
        elif isinstance(child, ast.Assign) and len(child.targets) == 1 and isinstance(child.targets[0], ast.Name):
            defaults[child.targets[0].id] = unwrap(child.value)
    return defaults


def unwrap(default: object) -> object:
    """The value inside a dataclass `field(...)`, a validated one or typer's `Option(...)` and `Argument(...)`."""
    if not isinstance(default, ast.Call):
        return default
    called = ast.unparse(default.func).split(".")[-1]
    keywords = {keyword.arg: keyword.value for keyword in default.keywords}
    if called in ("Option", "Argument"):
        value = default.args[0] if default.args else keywords.get("default", MISSING)
        return MISSING if isinstance(value, ast.Constant) and value.value is ... else value
    # Also `probability(default=0.1)` and `interval(min=0)(default=8)`, fields that check what is put into them.
    if "default" in keywords:
        return keywords["default"]
    if called == "field":
        factory = keywords.get("default_factory")
        if isinstance(factory, ast.Lambda):
            return factory.body
        if isinstance(factory, ast.Name) and factory.id in ("list", "dict", "tuple"):
            return ast.parse({"list": "[]", "dict": "{}", "tuple": "()"}[factory.id], mode="eval").body
        return MISSING
    return default


def stated_defaults(node: ast.AST) -> Iterator[tuple[int, str, str, bool]]:
    """(line, argument, stated default, whether it is marked as code) for each default in the node's docstring."""
    if not (node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)):
        return
    constant = node.body[0].value
    if not isinstance(constant.value, str):
        return
    entries: list[tuple[int, str, list[str]]] = []
    inside, level = False, None
    for offset, text in enumerate(constant.value.splitlines()):
        if SECTION.match(text):
            inside, level = True, None
            continue
        if OTHER_SECTION.match(text):
            inside = False
        if not inside or not text.strip():
            continue
        entry = ENTRY.match(text)
        indent = len(text) - len(text.lstrip())
        if entry and (level is None or indent == level):
            level = indent
            entries.append((constant.lineno + offset, entry["name"], [text]))
        elif entries and level is not None and indent > level:
            entries[-1][2].append(text.strip())
        else:
            inside = False
    for line, name, texts in entries:
        stated = STATED.search(" ".join(texts))
        if stated is None:
            continue
        if stated["ticked"] or stated["quoted"]:
            yield line, name, (stated["ticked"] or stated["quoted"]).strip(), True
        else:
            plain = stated["plain"].rstrip(":.")
            # The parenthesis around the type ends the default, one inside the default does not: `(0, 1)):`.
            while plain.endswith(")") and plain.count(")") > plain.count("("):
                plain = plain[:-1].rstrip(":.")
            yield line, name, plain, False


def agree(stated: str, exact: bool, default: object) -> bool:
    """Whether the stated default is the code's. Words that are no value ("defaults to the model's") are let pass."""
    try:
        expression = ast.parse(stated, mode="eval").body
        value = ast.literal_eval(expression)
    except (SyntaxError, ValueError):
        value = MISSING
        expression = None if not exact else _parse(stated)
    if value is MISSING and not exact:
        return True
    if default is MISSING:
        return False
    try:
        code_value = ast.literal_eval(default)
    except ValueError:
        code_value = MISSING
    if value is not MISSING and code_value is not MISSING:
        return value == code_value and isinstance(value, bool) == isinstance(code_value, bool)
    if value is MISSING and code_value is None:
        # None stands for something found at run time, which the docstring names.
        return True
    if value is MISSING and code_value == stated:
        return True
    return expression is not None and ast.unparse(expression) == ast.unparse(default)


def _parse(text: str) -> ast.expr | None:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
