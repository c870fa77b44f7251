"""Hostnames and routes."""
