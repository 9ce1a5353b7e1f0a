"""These tests start a Ray cluster in containers: `make test-cluster`."""
