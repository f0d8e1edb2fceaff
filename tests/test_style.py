"""The look of the project, held by tests: who imports whom, what the package may not do, what the README promises."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "minimon").rglob("*.py"))
FLAT = sorted((ROOT / "minimon").glob("*.py"))
SCRIPTS = [ROOT / "train.py", ROOT / "eval.py"]
METHOD = {"batch", "model", "attention", "ops", "lora", "loss", "steps", "generate", "evaluate", "metrics"}
DOORS = {"tasks", "tokenizer", "checkpoint", "files"}
ROOMS = {  # folder -> other folders that it may open
    "hf": set(),
    "formats": set(),
    "run": {"formats", "hf"},
    "report": {"run"},
    "serve": {"formats", "run", "report"},
    "study": {"formats", "run", "report"},
}
OPENS = {
    "checkpoint": {"hf"},
    "tokenizer": {"hf"},
    "tasks": {"formats"},
}  # a door opens its own room and no other
RUNTIME = {"torch", "tokenizers", "safetensors", "numpy", "jinja2", "huggingface_hub", "tqdm", "zstandard"}
EXTRAS = {  # packages that one file alone imports
    "study/figures.py": {"matplotlib"},
    "serve/control_arena.py": {
        "anyio",
        "control_arena",
        "inspect_ai",
        "pydantic",
    },  # anyio comes with inspect_ai
    "serve/inspect_scorer.py": {"anyio", "inspect_ai"},
}


def name_of(path: Path) -> str:
    return (
        path.relative_to(ROOT / "minimon").as_posix() if path.is_relative_to(ROOT / "minimon") else path.name
    )


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: relative import"
            found |= (
                {node.module}
                if node.module != "minimon"
                else {f"minimon.{alias.name}" for alias in node.names}
            )
    return found


def own(path: Path) -> set[str]:
    """What a file imports of minimon: the names of flat modules and of folders."""
    return {module.split(".")[1] for module in imported(path) if module.startswith("minimon.")}


packaged = pytest.mark.parametrize("path", PACKAGE, ids=name_of)
every = pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=name_of)


@pytest.mark.parametrize("path", FLAT, ids=name_of)
def test_a_flat_module_is_the_method_or_a_door_and_imports_flat_modules_only(path):
    if path.stem == "__init__":
        return
    assert path.stem in METHOD | DOORS, (
        f"{path.name}: a flat module is the method or one of its doors; a folder is a feature"
    )
    rooms = own(path) & set(ROOMS)
    assert rooms <= OPENS.get(path.stem, set()), f"{path.name} imports from {rooms}"


@packaged
def test_a_room_opens_few_others(path):
    room = path.parent.name
    if room in ROOMS:
        others = (own(path) & set(ROOMS)) - {room}
        allowed = ROOMS[room] | ({"run"} if path.stem == "__main__" else set())  # for the command line
        assert others <= allowed, f"{name_of(path)} imports from {others - allowed}"


@every
def test_only_the_runtime_packages_are_imported(path):
    others = {module.split(".")[0] for module in imported(path)} - set(sys.stdlib_module_names) - {"minimon"}
    assert others <= RUNTIME | EXTRAS.get(name_of(path), set()), f"{path.name} imports {others - RUNTIME}"


def test_the_scripts_do_not_import_each_other():
    for path in SCRIPTS:
        assert not {"train", "eval"} & imported(path)


@packaged
def test_the_package_never_prints_parses_seeds_or_draws_bars_outside_run_and_its_entry_points(path):
    if path.parent.name == "run" or path.stem == "__main__":
        return
    calls = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    }
    assert not {"print", "torch.manual_seed", "np.random.seed", "random.seed", "tqdm"} & calls
    assert "argparse" not in imported(path)


@every
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


PUBLIC = {
    "load_model",
    "load_tokenizer",
    "add_lora",
    "merge_lora",
    "save_adapter",
    "load_adapter",
    "label_token_loss",
    "vocab_token_loss",
    "inter_task_generalization",
    "score",
    "generate",
    "load_task",
    "load_mixture",
    "evaluate",
    "Monitor",
}


def test_every_public_name_is_there_and_says_what_it_is():
    found = set()
    for path in PACKAGE:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in PUBLIC:
                assert ast.get_docstring(node), f"{name_of(path)}: {node.name} has no docstring"
                found.add(node.name)
    assert found == PUBLIC


@packaged
def test_importing_has_no_effect(path):
    """Module level holds definitions, constants and the main guard; no call but of constructors of constants."""
    for node in ast.parse(path.read_text()).body:
        assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)), (
            f"{path.name}:{node.lineno}"
        )


# ---- README ----------------------------------------------------------------------------------------------------------


PAGES = [ROOT / "README.md", *(ROOT / "minimon").rglob("README.md"), *(ROOT / "data").rglob("README.md")]
PAGES += (ROOT / "tests").rglob("README.md")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def test_the_readme_is_read_in_ten_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_readme_file_tree_is_the_file_tree():
    parts = re.split(r"^```.*\n", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    (tree,) = [block for block in parts[1::2] if "tokenizer.py" in block]
    assert set(re.findall(r"\b([a-z_]+\.py)\b", tree)) == {
        path.name for path in FLAT + SCRIPTS if path.stem != "__init__"
    }
    assert set(re.findall(r"^  ([a-z]+)/", tree, re.M)) == set(ROOMS)


@pages
def test_the_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert all((page.parent / link).exists() for link in local), [
        link for link in local if not (page.parent / link).exists()
    ]


@pages
def test_the_commands_of_a_page_use_flags_that_exist(page):
    import eval as evaluation
    import train

    settings = {
        "train.py": train.Settings.__dataclass_fields__,
        "eval.py": evaluation.Settings.__dataclass_fields__,
    }
    for line in re.findall(
        r"^(?:\$ )?((?:\w+=\S+ )*(?:python|torchrun\b.*?) (?:train|eval)\.py.*)$", page.read_text(), re.M
    ):
        words = shlex.split(line, comments=True)
        script = next(word for word in words if word in settings)
        for word in words[words.index(script) :]:
            if word.startswith("--"):
                assert word[2:].split("=")[0].replace("-", "_") in settings[script], line
