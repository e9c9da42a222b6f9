"""The schema of the group ``federation``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fedsvd.config.types import Count, NonNegative, Positive, WholeNumber
from fedsvd.config.validate import Matches, Range, check_fields
from fedsvd.errors import ConfigError


@dataclass(frozen=True)
class FederationConfig:
    """The clients, and where they run.

    Attributes:
        name: ``local`` (in this process), ``simulation`` (Flower's engine) or ``remote`` (a SuperLink that is up);
            ``flwr run`` ignores it.
        num_clients: Clients in the federation; each holds one partition.
        clients_per_round: Clients drawn for a round; null for all.
        client_ranks: Each client's own rank, at most ``model.rank``; null: ``model.rank`` for all.
        min_replies: Fewest good replies with which a round counts; with fewer the model stays as it was.
        weighting: ``examples``: a client counts by how many it has, and tells it; ``uniform``: all count alike, and
            none tells.
        min_completion: Least share of a round's clients whose good replies make it count; 0: ``min_replies`` alone.
        secure_aggregation: The server learns the sum of the clients' updates and no single one.
        min_survivors: Fewest clients in whose secure sum a client hides; with fewer a round is skipped.
        round_timeout_s: Seconds after which a round goes on without those that have not answered.
        connect_timeout_s: Seconds to wait for all clients at the start, and for a new one to say who it is.
        retries: How often a message is sent again, within the round, to a client that is gone or has crashed. A client
            that was charged for the lost attempt is charged for the new one, too.
        retry_after_s: Seconds before it is; doubled each time.
        max_num_examples: Largest data set that a client is believed to hold.
        max_reply_norm: Largest L2 norm of a client's update; DP-SGD's clipping sets a lower one of its own.
        client_num_cpus: CPU cores of a simulated client.
        client_num_gpus: GPUs of a simulated client; a fraction lets clients share one.
        ray_address: A Ray cluster that is already up; null starts one here.
        superlink: Address of the SuperLink, ``host:port``.
        root_certificates: Certificate of the authority that the SuperLink's own is checked by; null: no TLS.
        connection: Name of a connection in Flower's own ``config.toml``, in the place of the two above.
        server_runs: Folder for run folders, as the ServerApp sees it.
        fetch: Command that copies a run folder here, with ``{remote}`` and ``{local}`` for the two folders; null where
            ``server_runs`` is a folder of this machine, too.
    """

    name: Literal["local", "simulation", "remote"]
    num_clients: Count = 4
    clients_per_round: Count | None = None
    client_ranks: tuple[Count, ...] | None = None
    min_replies: Count = 1
    weighting: Literal["examples", "uniform"] = "examples"
    min_completion: Annotated[float, Range(0, 1)] = 0.0
    secure_aggregation: bool = False
    min_survivors: Annotated[int, Range(2)] = 2
    round_timeout_s: Positive = 3600.0
    connect_timeout_s: Positive = 300.0
    retries: WholeNumber = 1
    retry_after_s: NonNegative = 1.0
    max_num_examples: Count = 10_000_000
    max_reply_norm: Positive = 10_000.0
    client_num_cpus: Positive = 1.0
    client_num_gpus: NonNegative = 0.0
    ray_address: str | None = None
    superlink: Annotated[str, Matches(r"\S+:\d+", "host:port")] = "127.0.0.1:8000"
    root_certificates: str | None = "certs/ca.crt"
    connection: str | None = None
    server_runs: Annotated[str, Matches(r"/.*", "an absolute path")] = "/app/runs"
    fetch: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "federation")
        in_a_round = self.clients_per_round or self.num_clients
        if in_a_round > self.num_clients:
            raise ConfigError(
                f"federation.clients_per_round = {in_a_round} is more than "
                f"federation.num_clients = {self.num_clients}: give 1 to {self.num_clients}, or null for all clients."
            )
        if self.min_replies > in_a_round:
            raise ConfigError(
                f"federation.min_replies = {self.min_replies} is more than the {in_a_round} clients of a round, so no "
                f"round could ever count: give 1 to {in_a_round}."
            )
        if self.secure_aggregation and in_a_round < self.min_survivors:
            raise ConfigError(
                f"federation.min_survivors = {self.min_survivors} is more than the {in_a_round} clients of a round, so "
                "no secure sum could ever be taken: lower it, or draw more clients."
            )
        if self.client_ranks is not None and len(self.client_ranks) != self.num_clients:
            raise ConfigError(
                f"federation.client_ranks = {list(self.client_ranks)} has {len(self.client_ranks)} numbers for "
                f"federation.num_clients = {self.num_clients} clients: give one for each, or null."
            )
        if self.client_ranks is not None and self.secure_aggregation:
            raise ConfigError(
                f"federation.client_ranks = {list(self.client_ranks)} is not possible with "
                "federation.secure_aggregation = True: vectors of different lengths have no sum."
            )
        if self.ray_address is not None and self.name != "simulation":
            raise ConfigError(
                f"federation.ray_address = {self.ray_address!r} has no meaning with federation.name = {self.name}: "
                "take federation=simulation, or set federation.ray_address=null."
            )
        if self.fetch is not None and not all(word in self.fetch for word in ("{remote}", "{local}")):
            raise ConfigError(
                f"federation.fetch = {self.fetch!r} does not say what to copy where: write {{remote}} for the server's "
                "run folder and {local} for the one here, or set it to null."
            )
