"""Makes one machine match its desired state, and is the ingress of that machine."""
