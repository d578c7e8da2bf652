"""Where a recipe goes once training has it: it is handed on in one direction, and not far."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.test_import_direction import sources

#: What may see a whole recipe below ``run``: who opens the run, who looks for the one to continue,
#: who writes the recipe down, and who resolves it.
MODULES = {
    "wuneng.train.run",
    "wuneng.train.opening",
    "wuneng.train.resume",
    "wuneng.train.extension",
    "wuneng.train.outline",
    "wuneng.train.plan",
    "wuneng.recipe.load",
    "wuneng.recipe.dump",
}


@dataclass
class Program:
    """Functions by ``module:name``, and what each module calls them."""

    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    names: dict[str, dict[str, str]] = field(default_factory=dict)

    def resolved(self, module: str, called: ast.expr) -> str | None:
        """The function that an expression of ``module`` calls, where it is one of ours."""
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            owner = self.names[module].get(called.value.id, "")
            return f"{owner}.{called.attr}" if f"{owner}.{called.attr}" in self.functions else None
        if not isinstance(called, ast.Name):
            return None
        found = self.names[module].get(called.id, "")
        return next((f for f in (found, f"{found}.__init__") if f in self.functions), None)


def program(modules: dict[str, Path]) -> Program:
    found = Program()
    for module, path in modules.items():
        names = found.names.setdefault(module, {})
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names.update({a.asname or a.name: f"{node.module}:{a.name}" for a in node.names})
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names[node.name] = f"{module}:{node.name}"
            if isinstance(node, ast.FunctionDef):
                found.functions[f"{module}:{node.name}"] = node
            elif isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        found.functions[f"{module}:{node.name}.{method.name}"] = method
    _follow_packages(found)
    return found


def _follow_packages(found: Program) -> None:
    """``from wuneng.recipe import dump_recipe`` means the function of ``wuneng.recipe.dump``."""
    for names in found.names.values():
        for name, target in names.items():
            package, _, what = target.partition(":")
            names[name] = found.names.get(package, {}).get(what, target)


def recipes_of(function: ast.FunctionDef) -> set[str]:
    """Variables of a function that hold a recipe, by annotation or by where they come from."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    known = {a.arg for a in arguments if a.annotation and _is_recipe(ast.unparse(a.annotation))}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and _holds(node.value, known):
            known |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            known |= {node.target.id} if _is_recipe(ast.unparse(node.annotation)) else set()
    return known


def _is_recipe(annotation: str) -> bool:
    return "Recipe" in annotation.replace(" | ", " ").split()


def _holds(value: ast.expr, known: set[str]) -> bool:
    """Whether an expression is a recipe: a variable, one of two, or an altered copy."""
    if isinstance(value, ast.IfExp):
        return _holds(value.body, known) or _holds(value.orelse, known)
    if isinstance(value, ast.Call):
        copied = isinstance(value.func, ast.Attribute) and value.func.attr == "model_copy"
        return copied and _holds(value.func.value, known)  # type: ignore[attr-defined]
    return isinstance(value, ast.Name) and value.id in known


def handed_on(program: Program, place: str) -> Iterator[str]:
    """The functions that ``place`` hands a recipe to."""
    module, function = place.partition(":")[0], program.functions[place]
    known = recipes_of(function)
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            target = program.resolved(module, node.func)
            if target and any(_holds(value, known) for value in given):
                yield target


def walk(program: Program, place: str, trail: list[str]) -> Iterator[list[str]]:
    """Every way from ``place`` on, as the list of places that it leads through."""
    yield [*trail, place]
    for target in dict.fromkeys(handed_on(program, place)):
        if target not in trail and target != place:
            yield from walk(program, target, [*trail, place])


def returns(trails: list[list[str]]) -> set[tuple[str, str]]:
    """Steps that lead back to a file which the trail had left."""
    found = set()
    for trail in trails:
        files = [place.partition(":")[0] for place in trail]
        if len(files) > 1 and files[-1] != files[-2] and files[-1] in files[:-1]:
            found.add((trail[-2], trail[-1]))
    return found


def test_the_recipe_of_a_run_goes_one_way() -> None:
    code = program(sources())
    trails = list(walk(code, "wuneng.train.run:run", []))
    places = {trail[-1] for trail in trails}
    assert {"wuneng.train.plan:plan_run", "wuneng.recipe.dump:dump_recipe"} <= places
    back = returns(trails)
    assert not back, "\n".join(f"{one} hands it back to {other}" for one, other in sorted(back))
    elsewhere = {place for place in places if place.partition(":")[0] not in MODULES}
    assert not elsewhere, f"the recipe reaches {sorted(elsewhere)}; hand over a part of the plan"


def test_what_is_below_the_plan_knows_no_recipe() -> None:
    """No function takes one, so none can keep one."""
    seen = [
        place
        for place, function in program(sources()).functions.items()
        if place.startswith("wuneng.train.")
        and place.partition(":")[0] not in MODULES
        and recipes_of(function)
    ]
    assert not seen, seen


def test_a_way_back_is_found(tmp_path: Path) -> None:
    texts = {
        "wuneng.one": "from wuneng.two import f\ndef run(recipe: Recipe):\n    f(recipe)\n"
        "def g(recipe: Recipe | None):\n    pass\n",
        "wuneng.two": "from wuneng import one\nfrom wuneng.one import g\n"
        "def f(given: Recipe):\n    longer = given.model_copy(update={})\n    g(recipe=longer)\n",
    }
    modules = {}
    for name, text in texts.items():
        modules[name] = tmp_path / f"{name}.py"
        modules[name].write_text(text, encoding="utf-8")
    trails = list(walk(program(modules), "wuneng.one:run", []))
    assert [trail[-1] for trail in trails] == ["wuneng.one:run", "wuneng.two:f", "wuneng.one:g"]
    assert returns(trails) == {("wuneng.two:f", "wuneng.one:g")}
