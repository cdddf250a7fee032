#!/bin/sh
# Vault password of the lab on this machine: made at first use, kept out of git. Real sites use their own.
set -eu
state=$(cd "$(dirname "$0")/../.." && pwd)/.cache
file=$state/vault-password
if [ ! -s "$file" ]; then
  mkdir -p "$state"
  (umask 077 && head -c 32 /dev/urandom | base64 >"$file.$$" && mv "$file.$$" "$file")
fi
cat "$file"
