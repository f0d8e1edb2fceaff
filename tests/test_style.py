"""The look of the project, held by tests: who imports whom, how long things are, what the README promises."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "minimon").glob("*.py"))
SCRIPTS = [ROOT / "train.py", ROOT / "eval.py"]
RUNTIME = {"torch", "tokenizers", "safetensors", "numpy", "jinja2", "huggingface_hub", "tqdm", "matplotlib"}
IMPORTS = {                                    # module: what of minimon it may import
    "files": set(), "ops": set(), "rope": {"ops"}, "loss": set(), "metrics": set(), "distributed": set(), "cli": {"distributed"},
    "logs": {"files"}, "study_figures": set(), "__init__": set(), "config": {"files", "rope"}, "template": {"files"},
    "tokenizer": {"files", "template"}, "lora": {"files", "ops"}, "state": {"distributed", "files"}, "known": {"files"},
    "instruct": {"files", "loss"}, "provenance": {"files", "records", "tasks"},
    "records": {"files", "logs"}, "transcript": {"records"}, "task": {"files", "records", "transcript"}, "tasks": {"files", "instruct", "task"},
    "model": {"config", "ops", "rope"}, "checkpoint": {"config", "model", "files"}, "batch": {"instruct", "tasks", "tokenizer"},
    "generate": {"batch", "model"}, "memory": {"batch"}, "plan": {"batch", "cli", "distributed", "instruct", "tasks"},
    "evaluate": {"batch", "distributed", "generate", "lora", "memory", "metrics", "model", "tasks", "tokenizer"},
    "attack": {"evaluate", "lora", "metrics", "tasks"}, "elicit": {"evaluate", "files", "metrics", "tasks"}, "calibrate": {"files", "metrics"},
    "scoring": {"calibrate", "distributed", "evaluate", "files", "logs", "records", "tasks", "transcript"}, "figure": {"metrics"},
    "report": {"figure", "files", "metrics"}, "baselines": {"batch", "evaluate", "metrics", "tasks"}, "findings": {"metrics"},
    "study_results": {"baselines", "findings", "metrics"},
    "study": {"checkpoint", "cli", "files", "report", "study_figures", "study_results", "tasks", "tokenizer"},
}


def imported(path):
    """(module, name of the project's own file or None) of every import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.name}: relative import"
        yield from names


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_imports_point_downwards(path):
    assert path.stem in IMPORTS, f"{path.name}: say in IMPORTS what it may import"
    own = {name.split(".")[1] for name in imported(path) if name.startswith("minimon.")}
    assert own <= IMPORTS[path.stem], f"{path.name} imports {own - IMPORTS[path.stem]}"
    assert "minimon" not in imported(path)


@pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=lambda path: path.stem)
def test_only_the_runtime_packages_are_imported(path):
    others = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {"minimon"}
    assert others <= RUNTIME, f"{path.name} imports {others - RUNTIME}"


def test_the_scripts_do_not_import_each_other():
    for path in SCRIPTS:
        assert not {"train", "eval"} & set(imported(path))


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_the_package_never_prints_seeds_or_draws_bars(path):
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert path.stem == "study" or not {"print", "torch.manual_seed", "np.random.seed", "random.seed", "tqdm"} & set(calls)
    assert path.stem == "cli" or "argparse" not in set(imported(path))


@pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=lambda path: path.stem)
def test_files_fit_the_line_budget(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 320 and max(map(len, lines), default=0) <= 140
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            budget = 100 if path in SCRIPTS and node.name == "main" else 45
            assert node.end_lineno - node.lineno < budget, f"{path.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines"


@pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=lambda path: path.stem)
def test_every_file_and_public_class_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if path.stem == "__init__":
        return
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name in exported()]
    for node in public:
        assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def exported():
    """The names that other people call."""
    return {"load_model", "load_tokenizer", "add_lora", "merge_lora", "save_adapter", "load_adapter", "label_token_loss", "vocab_token_loss",
            "inter_task_generalization", "score", "generate", "load_task", "load_mixture", "evaluate"}


def test_importing_has_no_effect():
    """Module level holds definitions, constants and the main guard; no call but of constructors of constants."""
    for path in PACKAGE:
        for node in ast.parse(path.read_text()).body:
            assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)), f"{path.name}:{node.lineno}"


# ---- README ------------------------------------------------------------------------------------------------------------------


def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_file_tree_is_the_file_tree():
    block = next(block for block in re.findall(r"```\n(.*?)```", readme(), re.S) if "tokenizer.py" in block)
    named = set(re.findall(r"\b([a-z_]+\.py)\b", block))
    there = {path.name for path in PACKAGE + SCRIPTS if path.stem != "__init__"} | {path.name for path in (ROOT / "data").glob("*.py")}
    assert named == there, f"README lacks {there - named}, has {named - there}"


def test_the_readme_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", readme())
    local = [link for link in links if "://" not in link]
    assert local and all((ROOT / link).exists() for link in local), [link for link in local if not (ROOT / link).exists()]


def test_the_readme_commands_use_flags_that_exist():
    import eval as evaluation
    import train
    known = {"train.py": train.Settings.__dataclass_fields__, "eval.py": evaluation.Settings.__dataclass_fields__}
    checked = 0
    for line in re.findall(r"^(?:\$ )?(python (?:train|eval)\.py.*)$", readme(), re.M):
        words = shlex.split(line, comments=True)
        for flag in (word for word in words if word.startswith("--")):
            assert flag[2:].split("=")[0].replace("-", "_") in known[words[1]], line
            checked += 1
    assert checked >= 5
