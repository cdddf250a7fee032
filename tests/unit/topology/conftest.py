"""A sound description to spoil."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from ansible_collections.causeway.platform.plugins.module_utils.topology.description import (
    Description,
    read_description,
)
from ansible_collections.causeway.platform.plugins.module_utils.topology.problems import DescriptionError

PLATFORM = {
    "plugin": "causeway.platform.topology",
    "platform": "shop",
    "domain": "shop.internal",
    "services": "services/",
    "regions": {
        "north": {
            "gateway": {"address": "10.0.0.10"},
            "zones": {
                "north-a": {
                    "hosts": {
                        "edge1": {"address": "10.0.1.11", "components": ["gateway"]},
                        "core1": {"address": "10.0.1.21", "components": ["registry", "trust"]},
                        "app1": {"address": "10.0.1.31", "components": ["services"]},
                    }
                },
                "north-b": {
                    "hosts": {
                        "core2": {"address": "10.0.2.21", "components": ["registry"]},
                        "app2": {"address": "10.0.2.31", "components": ["services"]},
                    }
                },
                "north-c": {
                    "hosts": {
                        "core3": {"address": "10.0.3.21", "components": ["registry", "metrics"]},
                        "app3": {"address": "10.0.3.31", "components": ["services"]},
                    }
                },
            },
        }
    },
}
CATALOG = {
    "name": "catalog",
    "version": "1.0.0",
    "image": {"archive": "images/{service}-{version}.tar"},
    "port": 8080,
    "mesh_port": 7100,
    "instances": {"min": 3, "max": 6},
    "routes": [{"prefix": "/catalog"}],
}
ORDERS = {**CATALOG, "name": "orders", "mesh_port": 7110, "routes": [{"prefix": "/orders"}], "calls": ["catalog"]}
REMOVED = object()


class Files:
    """A description in a temporary folder; ``set`` changes a value by its path, ``text`` a whole file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = {
            "platform": copy.deepcopy(PLATFORM),
            "catalog": copy.deepcopy(CATALOG),
            "orders": copy.deepcopy(ORDERS),
        }
        self.texts: dict[str, bytes] = {}

    def set(self, file: str, path: str, value: object) -> None:
        target: object = self.data.setdefault(file, {})
        parts = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in parts[:-1]:
            target = target.setdefault(part, {}) if isinstance(target, dict) else target[part]  # type: ignore[index]
        if value is REMOVED:
            del target[parts[-1]]  # type: ignore[attr-defined]
        else:
            target[parts[-1]] = value  # type: ignore[index]

    def text(self, file: str, text: str | bytes) -> None:
        self.texts[file] = text.encode() if isinstance(text, str) else text

    def write(self) -> Path:
        (self.folder / "services").mkdir(exist_ok=True)
        for name in {*self.data, *self.texts}:
            place = self.folder / (f"{name}.yml" if name in ("platform", "secrets") else f"services/{name}.yml")
            place.write_bytes(self.texts.get(name) or yaml.safe_dump(self.data.get(name), sort_keys=False).encode())
            if name in self.texts:
                place.write_bytes(self.texts[name])
        return self.folder / "platform.yml"

    def read(self) -> Description:
        return read_description(self.write())

    def problems(self) -> list[str]:
        """What is wrong, one line each; empty if nothing is."""
        try:
            self.read()
        except DescriptionError as error:
            return [str(problem).replace(f"{self.folder}/", "") for problem in error.problems]
        return []


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)
