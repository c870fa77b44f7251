"""What the services of Berth say to each other and to the world: pure data, no I/O."""
