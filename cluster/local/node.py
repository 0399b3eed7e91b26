"""`ray start` of a node that listens on loopback only.

Ray replaces 127.0.0.1 by the machine's outer address, unless a variable for macOS is set, which forbids a second node.
"""

import os
import sys

LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # for a node, what it starts, and a driver that joins it

if __name__ == "__main__":
    os.environ |= LOOPBACK_ENV  # read when Ray is imported
    from ray._private import ray_constants, services
    from ray.scripts.scripts import main

    ray_constants.ENABLE_RAY_CLUSTER = True  # in this process only: allow more than one node
    services.resolve_ip_for_localhost = lambda host: host
    sys.argv[:] = ["ray", "start", *sys.argv[1:]]
    main()
