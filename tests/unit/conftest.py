"""Makes the checkout importable as ansible_collections.causeway.platform (linked below .cache/collections by make)."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = ROOT / ".cache" / "collections"
if COLLECTIONS.is_dir() and str(COLLECTIONS) not in sys.path:
    sys.path.insert(0, str(COLLECTIONS))
AGENT = ROOT / "roles" / "node_agent" / "files"
if AGENT.is_dir() and str(AGENT) not in sys.path:
    sys.path.insert(0, str(AGENT))

# Modules look up their collection's metadata when they end: imports go through Ansible's own finder from the start.
from ansible.plugins import loader
from ansible.utils.collection_loader import AnsibleCollectionConfig

if AnsibleCollectionConfig.collection_finder is None:
    loader.init_plugin_loader([str(COLLECTIONS)])
