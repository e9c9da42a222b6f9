"""Files that have changed since this process read them: the next run must not use what they held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedsvd.config import Config
from fedsvd.config.paths import absolute_values
from fedsvd.models.head_choice import choose_head
from fedsvd.models.pooling import choose_pooling
from fedsvd.runtime.base_model import load_public_corpus
from fedsvd.runtime.data import clear_tokenizer_cache
from fedsvd.runtime.losses import clear_caches
from fedsvd.runtime.public_mean import clear_public_inputs

# Name, time of modification, size and inode of each file.
_State = tuple[tuple[str, int, int, int], ...]
# What the last run that named a path found there.
_STATES: dict[str, _State] = {}


def forget_changed_files(config: Config) -> None:
    """Clear everything cached in this process if files of a run have changed since an earlier run in it began.

    Called when a run begins, not when it reads: a run uses the files as they are when it begins, however long it takes.
    Notebooks and sweeps execute several runs in one process.

    Args:
        config: The configuration of the run that begins; its data, public text and model may be files or directories.
    """
    paths = (path for key, path in absolute_values(config).items() if key.startswith(("data.", "model.")))
    states = {path: tuple(sorted(_states(Path(path)))) for path in paths}
    if any(_STATES.get(path, state) != state for path, state in states.items()):
        clear_caches()
        clear_public_inputs()
        clear_tokenizer_cache()
        for cached in (load_public_corpus, choose_pooling, choose_head):
            cached.cache_clear()
    _STATES.update(states)


def _states(path: Path) -> Iterator[tuple[str, int, int, int]]:
    for file in path.rglob("*") if path.is_dir() else (path,):
        try:
            status = file.stat()
        except (OSError, ValueError):
            # Whoever reads it reports that it is missing.
            continue
        yield str(file), status.st_mtime_ns, status.st_size, status.st_ino
