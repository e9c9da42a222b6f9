"""What the server knows of the factors that clients train and keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedsvd.methods import Method, State
from fedsvd.runs.folder import RunFolder
from fedsvd.wire.train_messages import VERSIONED, ClientReport
from server.client_level import account_name

# Key of the last replies in the checkpoint's state.
_REPLIES = "personal"


@dataclass
class PersonalFactors:
    """The name under which clients keep their factors of a run, and which clients must have some.

    Attributes:
        account: The name of the run, the same for all of its processes; empty if the method has no personal factors.
        last_replies: By client number, the last round that trained personal factors and to which it has replied.
    """

    account: str = ""
    last_replies: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of_run(
        cls, method: Method, folder: RunFolder, state: State, history: Sequence[Mapping[str, Any]], head_rounds: int
    ) -> PersonalFactors:
        """Return what is known at the start of a process of a run.

        Args:
            method: The run's method.
            folder: The run directory.
            state: The `state` of an earlier process; empty without one.
            history: The rows of ``metrics.jsonl`` of earlier processes.
            head_rounds: Number of rounds at the start that train no factor.
        """
        if not method.traits.personal:
            return cls()
        replies = {int(client): int(last) for client, last in state.get(_REPLIES, {}).items()}
        trained = [row for row in history if row["server_round"] > head_rounds and row["clients_used"]]
        if not replies and trained:
            # A checkpoint of an earlier version does not say who has replied; the rows do.
            replies = {int(client): trained[-1]["server_round"] for client in trained[-1]["client_epsilons"]}
        return cls(account_name(folder.account), replies)

    @property
    def state(self) -> State:
        """The state that a resumed run needs."""
        replies = {str(client): torch.tensor(last) for client, last in self.last_replies.items()}
        return {_REPLIES: replies} if replies else {}

    def versions(self, client: int | None) -> dict[str, int]:
        """Return the versions of a client's personal factors, for its task."""
        return dict.fromkeys(VERSIONED, self.last_replies.get(client, 0) if client is not None else 0)

    def add(self, reports: Iterable[ClientReport], server_round: int) -> None:
        """Enter the clients whose replies were accepted in a round that trained personal factors."""
        self.last_replies.update((report.partition_id, server_round) for report in reports)
