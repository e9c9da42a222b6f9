"""Federated LoRA fine-tuning under differential privacy, with SVD-based refactorization on the server.

This is the public interface of the library. It follows semantic versioning: what is listed in ``__all__``, and the
strategies of `fedsvd.flower`, changes incompatibly only with a new major version (before 1.0: a new minor version).
Other modules are internal. Names are imported when they are first used, so that ``import fedsvd`` loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsvd.commands.python_api import Run, load_run, train
    from fedsvd.errors import FedSVDError
    from fedsvd.lora.refactorize import Refactorized, orthonormal_rows, refactorize
    from fedsvd.lora.state_dict import refactorize_state_dict
    from fedsvd.privacy.accounting import Spend, calibrate, epsilon
    from fedsvd.privacy.ledger import Ledger
    from fedsvd.privacy.ledger_entries import Budget
    from fedsvd.privacy.randomness import SecureRandomness
    from fedsvd.training.per_example_gradients import fused_gradients

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "FedSVDError",
    "Ledger",
    "Refactorized",
    "Run",
    "SecureRandomness",
    "Spend",
    "__version__",
    "calibrate",
    "epsilon",
    "fused_gradients",
    "load_run",
    "orthonormal_rows",
    "refactorize",
    "refactorize_state_dict",
    "train",
]

_MODULES = {
    "Budget": "fedsvd.privacy.ledger_entries",
    "FedSVDError": "fedsvd.errors",
    "Ledger": "fedsvd.privacy.ledger",
    "Refactorized": "fedsvd.lora.refactorize",
    "Run": "fedsvd.commands.python_api",
    "SecureRandomness": "fedsvd.privacy.randomness",
    "Spend": "fedsvd.privacy.accounting",
    "calibrate": "fedsvd.privacy.accounting",
    "epsilon": "fedsvd.privacy.accounting",
    "fused_gradients": "fedsvd.training.per_example_gradients",
    "load_run": "fedsvd.commands.python_api",
    "orthonormal_rows": "fedsvd.lora.refactorize",
    "refactorize": "fedsvd.lora.refactorize",
    "refactorize_state_dict": "fedsvd.lora.state_dict",
    "train": "fedsvd.commands.python_api",
}


# Hidden from type checkers, which would take any name for a public one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
