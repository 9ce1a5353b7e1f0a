"""Ray nodes in processes of this machine, for the tests that need a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20
HEAD = {"num_cpus": 0, "object_store_memory": 200 * MIB, "include_dashboard": False}


@dataclass
class LocalCluster:
    """Nodes in processes of this machine, and a head that does no work and is never lost."""

    cluster: Any
    nodes: list[Any] = field(default_factory=list)

    def add(self) -> str:
        """One more node of one processor; its id."""
        node = self.cluster.add_node(
            num_cpus=1, object_store_memory=100 * MIB, include_dashboard=False
        )
        self.nodes.append(node)
        return str(node.node_id)

    def kill(self, node_id: str) -> None:
        """End a node's processes at once."""
        node = next(node for node in self.nodes if node.node_id == node_id)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
