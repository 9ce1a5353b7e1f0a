"""Measurements that need a Ray cluster; each module is a command of its own."""
