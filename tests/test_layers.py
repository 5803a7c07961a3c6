"""The layers of docs/architecture.md, read from the import statements.

Every import counts, wherever it stands: one inside a function or below TYPE_CHECKING also says
what a module has to know.
"""

import ast
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom to the top. `minismtp` is the package itself: the names for plugin authors.
LAYERS = {
    "values": "reply address peer cache clock database stash threads files groupsync user_names"
    " passwords ciphers der printable exposure privileges start",
    "wire": "smtp smtp.path smtp.grammar smtp.commands smtp.content smtp.protocol smtp.sasl"
    " smtp.proxy smtp.client_hello",
    "mail": "chronicle tracing content cleanup resolver remote web authres findings"
    " activity client_certificate"
    " envelope delivery dsn headers message mime_conversion mime_source transfer_encoding"
    " session received tls entry spool_file spool"
    " config metrics metrics_files state"
    " quarantine encoded_words"
    " state_store state_sqlite state_redis"
    " events output log stacks replies admission backoff board pulse scalars schema sections"
    " sending settings suspects tally xclient address_list",
    "hooks": "hookspecs guard hooks plugins",
    "authors": "minismtp",
    "receiver": "receiver conversation authentication ehlo error_count refusal_log refusals"
    " reporting service storing submission transaction",
    "sockets": "control connection listen notify server testing",
    "roles": "insight.overview insight.page insight.top"
    " insight.explain insight.shadow insight.trace"
    " insight insight.sessions outbound.watch"
    " worker readiness endpoint outbound outbound.agenda outbound.schedule"
    " outbound.destination outbound.dane outbound.mta_sts outbound.well_known outbound.policy"
    " outbound.security outbound.answer outbound.deadlines outbound.channel outbound.content"
    " outbound.extensions outbound.transfer outbound.client outbound.course outbound.attempt"
    " outbound.metrics outbound.selection outbound.ledger outbound.backlog outbound.handover"
    " outbound.in_progress"
    " outbound.custody outbound.intake outbound.notices outbound.clerk outbound.courier"
    " outbound.runner",
    "program": "supervisor launch watchdog generation rundir children herald check permissions"
    " listing postmaster warden skeleton rehearsal trial stored replay"
    " commands commands.common commands.operation commands.insight commands.authoring"
    " cli __main__",
}
LAYER_OF = {
    module: number for number, names in enumerate(LAYERS.values()) for module in names.split()
}
TOP = len(LAYERS)
# The lowest two layers need nothing but Python, except where an extra is the subject.
THIRD_PARTY = {"passwords": {"argon2"}, "address": {"idna"}}


def module_name(path: Path) -> str:
    """Give a module's name as LAYERS spells it."""
    parts = path.relative_to(ROOT / "minismtp").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "minismtp"


MODULES = {module_name(path): path for path in sorted((ROOT / "minismtp").rglob("*.py"))}
SHIPPED_PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))


def imported_names(path: Path, package: str) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports; relative ones below `package`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            parents = parents[: len(parents) + 1 - node.level] if node.level else []
            prefix = [*parents, *([node.module] if node.module else [])]
            yield from (".".join([*prefix, alias.name]) for alias in node.names)


def imports_of(module: str) -> Iterator[str]:
    """Yield what a module of minismtp imports, its own siblings by their full names."""
    path = MODULES[module]
    yield from imported_names(path, ".".join(path.parent.relative_to(ROOT).parts))


def project_imports(module: str) -> set[str]:
    """Give the modules of minismtp that a module imports."""
    found = set()
    for name in imports_of(module):
        top, _, rest = name.partition(".")
        if top != "minismtp":
            continue
        owner = rest
        while owner and owner not in LAYER_OF:  # the last parts may be a name inside a module
            owner = owner.rpartition(".")[0]
        if not owner and "." in rest:  # a module that LAYERS does not know
            owner = rest.rpartition(".")[0]
        found.add(owner or "minismtp")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_no_higher_layer(module: str) -> None:
    assert module in LAYER_OF, "a new module needs its place in LAYERS"
    higher = {
        name for name in project_imports(module) if LAYER_OF.get(name, TOP) > LAYER_OF[module]
    }
    assert not higher


def test_modules_import_each_other_without_a_cycle() -> None:
    graph = {module: project_imports(module) for module in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the cycle


@pytest.mark.parametrize(
    "module", [name for name in MODULES if LAYER_OF.get(name, TOP) <= LAYER_OF["smtp"]]
)
def test_values_and_wire_need_only_the_standard_library(module: str) -> None:
    outside = {name.partition(".")[0] for name in imports_of(module)} - {"minismtp"}
    assert outside - sys.stdlib_module_names <= THIRD_PARTY.get(module, set())


@pytest.mark.parametrize("module", MODULES)
def test_module_does_not_import_a_shipped_plugin(module: str) -> None:
    assert not {name for name in imports_of(module) if name.startswith("minismtp_plugins")}


@pytest.mark.parametrize(
    "path",
    [path for path in SHIPPED_PLUGINS if "milter" not in path.stem],  # a whole protocol
    ids=lambda path: path.stem,
)
def test_shipped_plugin_is_a_small_file(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 200


@pytest.mark.parametrize("path", SHIPPED_PLUGINS, ids=lambda path: path.stem)
def test_shipped_plugin_uses_only_what_authors_may_use(path: Path) -> None:
    tree = ast.parse(MODULES["minismtp"].read_bytes())
    public = {
        f"minismtp.{name}"
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    }
    if path.stem == "_pytest":
        public |= {"minismtp.testing.Dialogues", "minismtp.testing.Mailroom"}
    used = {
        name
        for name in imported_names(path, "minismtp_plugins")
        if name.partition(".")[0] == "minismtp"
    }
    assert used <= public


@pytest.mark.parametrize(
    "package", [name for name in ("smtp", "outbound", "insight", "commands") if name in MODULES]
)
def test_inner_package_holds_nothing_itself(package: str) -> None:
    body = ast.parse(MODULES[package].read_bytes()).body
    assert [type(node) for node in body] in ([], [ast.Expr])  # at most a docstring
