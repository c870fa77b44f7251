"""What runs beside the web process: a worker that goes on for ever, and a release task that ends."""

import sys
import time


def release():
    print("preparing the new version", flush=True)


def work():
    while True:
        print("looking for work", flush=True)
        time.sleep(5)


if __name__ == "__main__":
    {"release": release, "work": work}[sys.argv[1]]()
