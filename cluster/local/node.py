"""`ray start` of a node that listens on loopback alone: `python node.py --head ...` or `--address ...`.

Ray replaces 127.0.0.1 by the machine's outer address, and listens on all interfaces then. That 127.0.0.1 stays what it
is can be asked for by a variable that Ray has for macOS, but no second node may join where that is set.
"""

from __future__ import annotations

import os
import sys

STAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""What keeps 127.0.0.1 for a node, for all that it starts, and for a driver that joins it."""


def main() -> None:
    """Becomes `ray start` with the arguments given."""
    os.environ |= STAY  # read when Ray is imported, and inherited by all that the node starts
    from ray._private import ray_constants, services
    from ray.scripts.scripts import main as ray

    ray_constants.ENABLE_RAY_CLUSTER = True  # in this process alone: more than one node is what is wanted here
    services.resolve_ip_for_localhost = lambda host: host
    sys.argv[:] = ["ray", "start", *sys.argv[1:]]
    ray()


if __name__ == "__main__":
    main()
