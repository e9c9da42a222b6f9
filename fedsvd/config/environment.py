"""Environment variables in a configuration (``${oc.env:NAME}``): for who types it, on the machine where it is typed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from fedsvd.errors import ConfigError

# Of a thread, since clients and jobs compose in threads of one process.
_IS_REFUSED = ContextVar("environment_is_refused", default=False)


@contextmanager
def environment_refused() -> Iterator[None]:
    """Let every configuration that this thread composes or resolves inside the context fail at a variable.

    The resolver itself refuses: a text such as ``${oc.${a}:NAME}`` does not tell which resolver it calls.
    """
    token = _IS_REFUSED.set(True)
    try:
        yield
    finally:
        _IS_REFUSED.reset(token)


def _variable(*arguments: Any) -> str | None:
    if _IS_REFUSED.get():
        raise ConfigError("a run on real nodes cannot read environment variables; let your shell expand them")
    return oc.env(*arguments)


OmegaConf.register_new_resolver("oc.env", _variable, replace=True)
