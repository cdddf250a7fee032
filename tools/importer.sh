#!/usr/bin/env bash
# Builds the collection and lets the importer of Galaxy servers judge it; any error or warning fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.cache/venvs/importer
tools/setup.sh venv .cache/venvs/importer requirements-importer.txt
work=$root/.cache/importer
rm -rf "$work"
mkdir -p "$work/tmp"
tools/setup.sh copy "$work/source"
"$root/.venv/bin/ansible-galaxy" collection build --output-path "$work" "$work/source"
cd "$work"
# The importer's own ansible-lint looks for the collections this one depends on.
packages=("$root"/.venv/lib/python3*/site-packages)
export ANSIBLE_COLLECTIONS_PATH=$root/.cache/collections:${packages[0]}
unset ANSIBLE_CONFIG
export PATH=$venv/bin:$PATH
export GALAXY_IMPORTER_TMP_ROOT_DIR=$work/tmp
"$venv/bin/python" -m galaxy_importer.main "$work"/*.tar.gz | tee "$work/report.txt"
! grep -E '^(ERROR|WARNING):' "$work/report.txt"
