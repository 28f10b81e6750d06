"""equipoise: hospitals reduce the demographic bias of a classifier together, without pooling patients."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# `server`, `client`, `common` and `simulations` are folders at the top of the repository; in a checkout without
# symbolic links (and in a Flower app bundle, which drops them) they are found beside this package.
_here = _Path(__file__).resolve().parent
if not (_here / "server").is_dir() and (_here.parent / "server").is_dir():
    __path__.append(str(_here.parent))
