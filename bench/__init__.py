"""The platform's figures: each measured against a baseline that runs in turn with it. See `pairs.py`."""
