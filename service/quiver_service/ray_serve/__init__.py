"""The service on Ray Serve: the same app in replicas of a cluster (docs/ray.md)."""
