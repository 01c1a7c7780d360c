"""medtame: adapt a general-purpose vision-language model to medical images, and learn honestly whether it helped.

    data = medtame.load("labels.csv", task="classification")
    encoder = medtame.encoder("bundled")
    result = medtame.compare(data, encoder, methods=["zero_shot", "clap"], shots=(1, 4, "all"), out="out")
    run = medtame.adapt(data, encoder, method=result.best, out="run")
    run = medtame.open("run")
    run.predict(["scan.dcm"]).to_csv("predictions.csv")

Research use only: not for clinical decisions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medtame.comparison import compare
    from medtame.errors import MedtameError
    from medtame.run import adapt, encoder, load, open

__all__ = ["MedtameError", "__version__", "adapt", "compare", "encoder", "load", "open"]

_HOME = {"adapt": "run", "encoder": "run", "load": "run", "open": "run", "compare": "comparison", "MedtameError": "errors"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: `medtame --help` needs no torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'medtame' has no attribute {name!r}")
    return getattr(import_module(f"medtame.{_HOME[name]}"), name)
