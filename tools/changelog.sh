#!/usr/bin/env bash
# Turns the fragments in changelogs/fragments into CHANGELOG.rst, for the version in galaxy.yml.
# On a copy: antsibull-changelog wants a path that ends in ansible_collections/causeway/platform, and no caches in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
work=$root/.cache/changelog
copy=$work/ansible_collections/causeway/platform
rm -rf "$work"
tools/setup.sh copy "$copy"
packages=("$root"/.venv/lib/python3*/site-packages)
export ANSIBLE_COLLECTIONS_PATH=$work:${packages[0]} PATH=$root/.venv/bin:$PATH
cd "$copy"
antsibull-changelog release "$@"
cp CHANGELOG.rst "$root/"
cp changelogs/changelog.yaml "$root/changelogs/"
# The released fragments are in changelog.yaml now.
for fragment in "$root"/changelogs/fragments/*; do
  [ -e "$copy/changelogs/fragments/${fragment##*/}" ] || rm -f "$fragment"
done
