"""Nodes, placement and the desired state of every node."""
