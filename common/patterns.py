"""How the texts of study and site files are written that are no free text, as a rule and in a person's words."""

from __future__ import annotations

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SHA256 = "^[0-9a-f]{64}$"
BYTES = "^([0-9a-f]{2})*$"
IDENTITY = "^ed25519:[A-Za-z0-9+/]{43}=$"
FACTORY = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"

IN_WORDS = {
    NAME: "up to 64 lower-case letters, digits, dots, underscores and hyphens (a-z 0-9 . _ -), the first one a letter "
    "or a digit",
    SHA256: "64 hexadecimal digits (0-9 a-f)",
    BYTES: "an even number of hexadecimal digits (0-9 a-f)",
    IDENTITY: "a public key as its site shows it, beginning with ed25519:",
    FACTORY: "module:function, as in equipoise.common.models:mlp",
}
