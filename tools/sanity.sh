#!/usr/bin/env bash
# ansible-test sanity on a copy of the tracked files: it wants a path that ends in ansible_collections/causeway/platform.
# Arguments go to ansible-test, for example --test pylint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
work=$root/.cache/sanity
copy=$work/ansible_collections/causeway/platform
rm -rf "$work/ansible_collections"
mkdir -p "$work/home/.ansible/test/cache"
tools/setup.sh copy "$copy"

# Its environments live in the checkout's cache, with pip's settings of the user.
real=${HOME:-/root}
[ ! -e "$real/.config" ] || ln -sfn "$real/.config" "$work/home/.config"
[ ! -e "$real/.pip" ] || ln -sfn "$real/.pip" "$work/home/.pip"
# ansible-test would fetch a script that installs pip into its environments; Python brings one, so nothing is fetched.
sed -n "s/.*pip='\([0-9.]*\)'.*/\1/p" "$root"/.venv/lib/python3*/site-packages/ansible_test/_internal/python_requirements.py |
  while read -r version; do
    cat >"$work/home/.ansible/test/cache/get_pip_${version//./_}.py" <<'SCRIPT'
import subprocess
import sys

subprocess.check_call([sys.executable, "-m", "ensurepip"])
subprocess.check_call([sys.executable, "-m", "pip", "install", *[a for a in sys.argv[1:] if a not in ("--no-setuptools", "--no-wheel")]])
SCRIPT
  done

# Of pyenv's stand-ins some do not run; the interpreters themselves do.
path=
IFS=: read -ra entries <<<"$PATH"
for entry in "${entries[@]}"; do
  case $entry in */.pyenv/shims | "$root/.venv/bin") ;; *) path=$path:$entry ;; esac
done
for entry in "${PYENV_ROOT:-$real/.pyenv}"/versions/3.*/bin; do
  [ ! -d "$entry" ] || path=$entry:$path
done
cd "$copy"
git init -q . 2>/dev/null && git add -A 2>/dev/null
HOME=$work/home PATH=$root/.venv/bin:$path "$root/.venv/bin/ansible-test" sanity --color no "$@"
