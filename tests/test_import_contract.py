"""The import contract in pyproject.toml refuses upward imports at every layer, and imports between neighbours."""

from __future__ import annotations

import graphlib
import re
import tomllib
from pathlib import Path

import grimp
import pytest
from importlinter.contracts.layers import LayersContract

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACT = next(entry for entry in SETTINGS["contracts"] if entry["type"] == "layers" and "containers" not in entry)
LAYERS = [re.findall(r"[\w.]+", line) for line in CONTRACT["layers"]]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*SETTINGS["root_packages"], cache_dir=None)


def kept(graph: grimp.ImportGraph) -> bool:
    options = {"layers": CONTRACT["layers"]}
    session = {"root_packages": SETTINGS["root_packages"]}
    return LayersContract(CONTRACT["name"], session, options).check(graph, verbose=False).kept


def planted(graph: grimp.ImportGraph, importer: str, imported: str) -> bool:
    """Whether the contract still holds after one more import; the graph is left as it was."""
    if imported in graph.find_modules_directly_imported_by(importer):
        pytest.fail(f"{importer} imports {imported} already")
    graph.add_import(importer=importer, imported=imported)
    try:
        return kept(graph)
    finally:
        graph.remove_import(importer=importer, imported=imported)


def test_the_layers_hold_every_package(graph: grimp.ImportGraph) -> None:
    assert len(LAYERS) == 10 and kept(graph)
    named = {name for layer in LAYERS for name in layer}
    assert {f"ldm.{path.stem}" for path in (ROOT / "ldm").glob("*.py") if path.stem[:2] != "__"} <= named
    packages = {f"ldm.{path.parent.name}" for path in (ROOT / "ldm").glob("*/__init__.py")}
    assert packages - named <= {"ldm.util"}, "the lineage's ldm.util only hands on names"


@pytest.mark.parametrize("index", range(1, len(LAYERS)))
def test_an_upward_import_is_refused(graph: grimp.ImportGraph, index: int) -> None:
    for importer in LAYERS[index]:
        for imported in LAYERS[index - 1]:
            assert not planted(graph, importer, imported), f"{importer} may import {imported}"


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if len(layer) > 1], ids=" | ".join)
def test_neighbours_do_not_know_each_other(graph: grimp.ImportGraph, layer: list[str]) -> None:
    for importer in layer:
        for imported in layer:
            if importer != imported:
                assert not planted(graph, importer, imported), f"{importer} may import {imported}"


def test_no_package_imports_itself_by_way_of_others(graph: grimp.ImportGraph) -> None:
    packages = {name for name in graph.find_children("ldm") if graph.find_children(name)}
    direct = {
        name: {
            f"ldm.{imported.split('.')[1]}"
            for module in {name} | graph.find_descendants(name)
            for imported in graph.find_modules_directly_imported_by(module)
            if imported.startswith("ldm.")
        }
        & packages - {name}
        for name in packages
    }
    order = graphlib.TopologicalSorter(direct).static_order()
    assert set(order) == packages
