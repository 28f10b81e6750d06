"""`equipoise site init`: everything that a hospital starts from, in one folder that it owns.

site.yaml                the site file, to be edited
ca.pem                   the coordinator's authority: no other server is accepted
node.key, node.pub       the SuperNode's key
peers/                   enrolments of the other hospitals, as pinned
agent/                   the site agent's own: identity key, ledger, logs, decisions (mode 0700)
door/agent.sock          where the SuperNode reaches the agent
supernode/               the SuperNode's own
bin/                     the SuperNode's programs as they are run here (docs/decisions/0053, 0054)
start-agent.sh, start-supernode.sh, supervise.sh and service files
"""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path

from equipoise import __version__
from equipoise.common.errors import StudyError
from equipoise.common.files import write_whole
from equipoise.common.identity import (
    Enrolment,
    new_identity_key,
    new_node_key,
    public_identity,
    public_node_key,
    read_enrolment,
)
from equipoise.common.sitefile import Site
from equipoise.common.supervision import RETRY_S, python_script, start_script, supervisor, unit

_SITE_FILE = """# What {site} decides for itself. This file is never sent. docs/site-file.md explains every key.
# After a change: `equipoise site check`, then start the agent again.
site: {site}

data:
  manifest: {manifest}          # .csv or .parquet, one row per image or visit
  # images: images.zip           # where a study reads images
  patient: patient               # column that identifies the patient; it never leaves
  # columns: {{malignant: diagnosis}}   # study's column: your column, where they differ
  splits: {{train: 0.6, validation: 0.2, test: 0.2}}
  # Secret. Made for you; keep it for the life of the data: with another key patients move between the splits.
  split_key: {split_key}
  synthetic: false               # true only for made-up data: then studies without noise are allowed

# Your words for the study's: column: {{yours: theirs}}
coding: {{}}

caps:
  # Epsilon that all studies together may cost any one patient, for the life of these data. Without it no private
  # study takes place here.
  # epsilon: 4
  cohort_minimum: 50
  methods: all
  queries: all
  models: ["equipoise.common.models:*"]

approve: manual                  # or a list of study hashes; all else waits for `equipoise site approve`

# The hospitals that you compute with, for the secure sum: `equipoise site pin` puts their enrolments into this folder.
peers: {{minimum: 3, folder: peers}}

socket:
  path: door/agent.sock
  # group: equipoise-door        # Unix group of the SuperNode's user, where it is not the agent's own
"""


def init_site(folder: Path, site: str, superlink: str, ca: Path, port: int, manifest: str) -> Enrolment:
    """Write the folder.

    Args:
        folder: new, or without a site file.
        site: the hospital's name.
        superlink: `host:port` of the coordinator, as it is reached from here.
        ca: the coordinator's CA certificate.
        port: a free port of this machine for the SuperNode's own processes, on 127.0.0.1.
        manifest: path of the cohort for the site file.

    Returns:
        What the coordinator has to know.

    Raises:
        StudyError: the folder holds a site already, or the CA certificate is missing.
        StorageError: the folder cannot be written.
    """
    folder = folder.resolve()
    if (folder / "site.yaml").exists():
        raise StudyError(f"{folder}: holds a site already; edit its site.yaml, or give another folder")
    if not ca.is_file():
        raise StudyError(f"--ca {ca}: no such file; the coordinator gives you its tls/ca.pem")
    before = os.umask(0o077)
    try:
        node, identity = new_node_key(), new_identity_key()
        write_whole(folder / "agent" / "identity.key", identity)
        write_whole(folder / "node.key", node)
        # The service files let their services write in these, and systemd starts none whose folder is not there.
        for name in ("door", "supernode"):
            (folder / name).mkdir(exist_ok=True)
    finally:
        os.umask(before)
    folder.chmod(0o755)
    (folder / "door").chmod(0o750)
    write_whole(folder / "node.pub", public_node_key(node) + b"\n")
    write_whole(folder / "ca.pem", ca.read_bytes())
    agent = ["equipoise", "agent", str(folder / "site.yaml"), "--state", str(folder / "agent")]
    supernode = ["flower-supernode", "--root-certificates", str(folder / "ca.pem"), "--superlink", superlink]
    supernode += ["--auth-supernode-private-key", str(folder / "node.key"), "--host", "127.0.0.1", "--port", str(port)]
    supernode += ["--node-config", f'socket="{folder / "door" / "agent.sock"}"']
    home = {"FLWR_HOME": str(folder / "supernode" / "home")}
    scripts = {
        "start-agent.sh": start_script(f"the site agent of {site}", agent, folder / "agent"),
        "start-supernode.sh": start_script(
            f"the SuperNode of {site}", supernode, folder / "supernode", home, folder / "bin"
        ),
        "bin/flwr-clientapp": python_script("equipoise.client.launcher"),
        "bin/flower-supernode": python_script("equipoise.client.supernode"),
        "supervise.sh": supervisor(),
    }
    for name, text in scripts.items():
        write_whole(folder / name, text.encode())
        (folder / name).chmod(0o755)
    own = [f"ReadWritePaths={folder}/agent {folder}/door", "PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"]
    services = {
        "equipoise-agent.service": unit(
            f"equipoise site agent of {site}", folder / "start-agent.sh", "equipoise-agent", 5, own
        ),
        "equipoise-supernode.service": unit(
            f"Flower SuperNode of {site}",
            folder / "start-supernode.sh",
            "equipoise-node",
            RETRY_S,
            [f"ReadWritePaths={folder}/supernode", f"InaccessiblePaths={folder}/agent"],
            "equipoise-agent.service",
        ),
    }
    for name, text in services.items():
        write_whole(folder / name, text.encode())
    split_key = secrets.token_hex(32)
    text = _SITE_FILE.format(site=site, manifest=manifest, split_key=split_key)
    before = os.umask(0o077)
    try:
        write_whole(folder / "site.yaml", text.encode())
    finally:
        os.umask(before)
    return enrolment(folder, site)


def ownership(folder: Path) -> list[str]:
    """What root runs so that each service's user owns what it alone may read; all is the user's who ran `init`."""
    owned = {"agent": ("site.yaml", "agent"), "agent:equipoise-door": ("door",), "node": ("node.key", "supernode")}
    return [
        f"chown -R equipoise-{user} {' '.join(shlex.quote(str(folder / name)) for name in names)}"
        for user, names in owned.items()
    ]


def enrolment(folder: Path, site: str) -> Enrolment:
    """The public keys of the site in `folder`.

    Raises:
        StudyError: its keys are not there.
    """
    node, _ = _keys(folder)
    return Enrolment(site, public_node_key(node).decode("ascii"), public_identity(_keys(folder)[1]), __version__)


def signed_enrolment(folder: Path, site: str) -> bytes:
    """The file that the coordinator gets."""
    return enrolment(folder, site).signed(_keys(folder)[1])


def pin_peer(folder: Path, site: Site, file: Path) -> Enrolment:
    """Keep another hospital's enrolment in the folder of peers.

    Raises:
        StudyError: the file is no enrolment, is this site's own, or that hospital is pinned under another key.
    """
    found = read_enrolment(file)
    if found.site == site.site:
        raise StudyError(f"{file}: the enrolment of this site itself; pin those of the others")
    if site.peers.keys.get(found.site, found.identity) != found.identity:
        raise StudyError(f"{file}: {found.site} is pinned under another key; ask them, then delete the old enrolment")
    write_whole(folder / site.peers.folder / f"{found.site}.json", file.read_bytes())
    return found


def _keys(folder: Path) -> tuple[bytes, bytes]:
    try:
        return (folder / "node.key").read_bytes(), (folder / "agent" / "identity.key").read_bytes()
    except OSError as error:
        raise StudyError(f"{error.filename}: cannot be read; `equipoise site init` makes the keys of a site") from None
