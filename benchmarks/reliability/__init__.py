"""Scenarios that show what the service does under load and faults, each with its control."""
