#!/usr/bin/env bash
# Prepares this machine for the checkout: packages and Python environments. Does nothing the second time.
#   setup.sh packages PROFILE...      packages of bindep.txt with one of these profiles
#   setup.sh venv DIRECTORY FILE...   Python environment with exactly these requirements
#   setup.sh link                     the checkout as collection causeway.platform below .cache/collections
#   setup.sh copy DIRECTORY           the checkout's files, without caches and what git ignores, in a directory
# PYTHON names the interpreter; by default the newest of 3.13, 3.12 and 3.11 that works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
    say "this step needs root, and there is no sudo: $*"
    exit 1
  fi
}

missing() { # packages on standard input that are not installed
  local name
  while read -r name; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || printf '%s\n' "$name"
  done
}

packages() {
  local profiles system names wanted script
  profiles=$(IFS='|' && printf '%s' "$*")
  # shellcheck source=/dev/null
  system=$(. /etc/os-release && printf '%s-%s' "${ID:-}" "${VERSION_CODENAME:-}")
  mapfile -t wanted < <(grep -v '^#' bindep.txt | grep -E "platform:(dpkg|$system) " | grep -Ew "$profiles" | cut -d' ' -f1 | missing)
  [ ${#wanted[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || { say "apt-get is needed to install: ${wanted[*]}"; exit 1; }
  say "installing packages: ${wanted[*]}"
  # The daemons of test packages shall not start: tests start their own.
  script=$(
    cat <<'SCRIPT'
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then trap "rm -f $policy" EXIT; printf "#!/bin/sh\nexit 101\n" >$policy; chmod 755 $policy; fi
apt-get -qq update && apt-get -qq install -y --no-install-recommends "$@" >/dev/null
SCRIPT
  )
  as_root env DEBIAN_FRONTEND=noninteractive sh -ec "$script" sh "${wanted[@]}"
  names=$(printf '%s\n' "${wanted[@]}" | missing)
  [ -z "$names" ] || { say "could not install: $names"; exit 1; }
}

python() { # a Python that works and that all pins fit
  local name
  for name in ${PYTHON:-} python3.13 python3.12 python3.11 python3; do
    "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
    "$name" -c 'import ensurepip, venv' 2>/dev/null || {
      command -v apt-get >/dev/null || continue
      as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
      as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        "python$("$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2
    }
    printf '%s\n' "$name"
    return
  done
  say "Python 3.11, 3.12 or 3.13 is needed (set PYTHON=/path/to/python3)"
  exit 1
}

venv() {
  local directory=$1 stamp want file
  shift
  stamp=$directory/.requirements
  want=$(cat "$@" | sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$want $PWD" ]; then return 0; fi
  file=$*
  say "Python environment $directory from $file"
  # An environment that was begun, moved or made for another Python is not worth mending.
  if ! "$directory/bin/python" -c 'import pip' 2>/dev/null || ! grep -qs "^#!$PWD/" "$directory/bin/pip"; then
    rm -rf "$directory"
    "$(python)" -m venv "$directory"
  fi
  rm -f "$stamp"
  local options=()
  for file in "$@"; do options+=(--requirement "$file"); done
  "$directory/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --prefer-binary "${options[@]}"
  printf '%s\n' "$want $PWD" >"$stamp"
}

link() {
  local parent=.cache/collections/ansible_collections/causeway
  mkdir -p "$parent"
  [ "$parent/platform" -ef . ] || ln -sfn ../../../.. "$parent/platform"
}

copy() {
  local file
  mkdir -p "$1"
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    [ ! -e "$file" ] || printf '%s\0' "$file"
  done | tar --null --files-from=- --create --file=- | tar --extract --directory="$1"
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
  packages | venv | link | copy) "$verb" "$@" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
