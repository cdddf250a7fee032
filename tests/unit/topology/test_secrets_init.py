"""The playbook that makes secrets: complete, encrypted, and nothing overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from ansible.parsing.vault import VaultLib, VaultSecret

from ansible_collections.causeway.platform.plugins.module_utils.topology.description import check_secrets

ROOT = Path(__file__).resolve().parents[3]


def run(file: Path, password: Path, *options: str) -> str:
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        *("-i", "localhost,", str(ROOT / "playbooks" / "secrets_init.yml"), "-e", f"secrets_file={file}", *options),
    ]
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_VAULT_PASSWORD_FILE": str(password),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_missing_secrets_are_made_once(tmp_path):
    password, file = tmp_path / "password", tmp_path / "secrets.yml"
    password.write_text("correct horse")
    ciphertext = VaultLib([("default", VaultSecret(b"correct horse"))]).encrypt(b"mine").decode()
    mine = "---\nregistry: !vault |\n" + "".join(f"  {line}\n" for line in ciphertext.splitlines())
    file.write_text(mine)
    run(file, password)
    assert check_secrets(file).problems == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    completed = file.read_text()
    assert completed.startswith(mine)

    assert "changed=0" in run(file, password)
    assert file.read_text() == completed
