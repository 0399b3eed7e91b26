"""All faults, in the order of the table."""

from tests.faults.damage import repeat, truncate
from tests.faults.disk import fill_disk
from tests.faults.driver import kill_drivers
from tests.faults.hostile import feed_hostile
from tests.faults.longer import kill_long_runs
from tests.faults.nodes import kill_nodes
from tests.faults.outage import lose_server, pause_server
from tests.faults.rows import Scenario
from tests.faults.second import start_second
from tests.faults.signals import interrupt
from tests.faults.workers import kill_workers

SCENARIOS = (
    Scenario("driver", "SIGKILL of the driver, then `run`", kill_drivers, 20),
    Scenario("worker", "SIGKILL of a trial's process", kill_workers, 20),
    Scenario("long", "SIGKILL of a long run with checkpoints", kill_long_runs, 3),
    Scenario("node", "a Ray node killed, a new one joins", kill_nodes, 5),
    Scenario("outage", "MLflow server killed for 30 s", pause_server, 5),
    Scenario("server", "MLflow server killed for good", lose_server, 5),
    Scenario("disk", "disk full", fill_disk, 3),
    Scenario("truncated", "record or series cut at a random byte", truncate, 50),
    Scenario("signals", "Ctrl-C or SIGTERM during a run", interrupt, 4),
    Scenario("second", "a second `run` while one works", start_second, 3),
    Scenario("hostile", "malformed configs and results", feed_hostile, 500),
    Scenario("seed", "same seed again", repeat, 3),
)
