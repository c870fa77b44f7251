import os

# Only root can start an engine; what everybody else is told instead is in test_engine.py.
collect_ignore = [] if os.geteuid() == 0 else ["test_engine_at_work.py"]
