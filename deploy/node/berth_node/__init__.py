"""What runs on a server that becomes a node: it joins, its services are set up, it can be taken off again."""
