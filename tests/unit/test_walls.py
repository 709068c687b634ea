"""The walls between the rooms: imports run one way, and no two files import each other."""

import ast
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
LEVELS = [  # a room imports from its own level's same room and from the levels before
    {"errors", "files", "stopping"},
    {"config", "cli"},
    {"models", "tokens"},
    {"data", "checkpoints", "parallel", "runlog"},
    {"rollout", "learning", "rewards"},
    {"credit", "figures", "setup"},
    {"evaluate", "experience", "progress", "start", "planning"},
    {"trainer", "checkpoint_view"},
    {"checkpoint_export"},
    {"train", "inspect_checkpoint", "export", "plan", "toy"},
]
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# single files, which may use each other in this order
TOP = {"credit", "figures", "setup", "evaluate", "experience", "progress", "start"}
STRANGERS = {"rewards": {"models"}, "learning": {"rewards"}, "models": {"config"}, "tokens": {"config"}}


def modules(package: str) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((REPO / package).rglob("*.py"))
    }


def imports(path: Path, known: set[str]) -> set[str]:
    """Full names of the imported modules; of ours, the file that is meant."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return found


OURS, WORKERS = modules("jax_rl"), modules("reward_workers")
GRAPH = {name: imports(path, OURS.keys() | WORKERS.keys()) for name, path in (OURS | WORKERS).items()}


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "jax_rl" and len(parts) > 1 else None


@pytest.mark.parametrize("module", [name for name in OURS if room(name)])
def test_imports_run_one_way(module):
    mine = room(module)
    assert mine in LEVEL_OF, f"{module}: a new room; say in this test which level it is on"
    for imported in GRAPH[module]:
        theirs = room(imported)
        if theirs is None or theirs == mine:
            continue
        assert theirs not in STRANGERS.get(mine, set()), f"{mine} must not know {theirs}: {module} imports {imported}"
        lower = LEVEL_OF[theirs] < LEVEL_OF[mine] or (LEVEL_OF[theirs] == LEVEL_OF[mine] and {mine, theirs} <= TOP)
        assert lower, f"{module} imports {imported}, which is not below it"


def test_no_two_files_import_each_other():
    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        for imported in GRAPH.get(module, set()) - {module.rpartition(".")[0]}:
            if imported in GRAPH and imported not in done:
                visit(imported, (*path, module))
        done.add(module)

    done: set[str] = set()
    for name in GRAPH:
        visit(name, ())


def test_the_workers_share_the_protocol_alone():
    for module, imported in GRAPH.items():
        if module in WORKERS:
            assert not {name for name in imported if name.startswith("jax_rl")}, module
        else:
            shared = {name for name in imported if name.split(".")[0] == "reward_workers"}
            assert shared <= {"reward_workers", "reward_workers.protocol"}, f"{module}: {shared}"


@pytest.mark.parametrize("module", ["reward_workers.protocol", "reward_workers.serve"])
def test_what_runs_before_the_heavy_imports_is_standard_library(module):
    outside = {name.split(".")[0] for name in GRAPH[module]} - sys.stdlib_module_names - {"reward_workers"}
    assert not outside
