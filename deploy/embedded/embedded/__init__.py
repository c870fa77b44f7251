"""Starts Postgres, NATS, Traefik and the engine of one machine."""
