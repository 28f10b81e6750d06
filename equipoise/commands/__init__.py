"""Commands that come in families, one file each; `equipoise.cli` registers them."""
