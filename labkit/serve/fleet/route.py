"""Ray's router of requests, told by ours: a call goes to the replica that its first argument names."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class Told(RequestRouter):
    """Sends a call to the replica whose id is its first argument, and to the least busy one if that is not there."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank of candidates, of which Ray takes the one with the shortest queue."""
        wanted: Any = pending_request.args[0] if pending_request is not None and pending_request.args else None
        named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
        return [named or list(candidate_replicas)]
