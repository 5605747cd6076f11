"""A Spark on this machine, as wide and as large as it is told."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

from pyspark import SparkConf, SparkContext

#: Bytes that Spark's documents leave to what lies outside the JVM's heap, at least.
OVERHEAD = 384 << 20

#: Bytes of heap where no limit is given.
HEAP = 4 << 30


@contextmanager
def context(options):
    """Yield a SparkContext whose Python workers find the functions that lie beside this file."""
    heap = max(options.memory - OVERHEAD, OVERHEAD) if options.memory else HEAP
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ["PYSPARK_PYTHON"] = sys.executable
    settings = {
        "spark.master": f"local[{options.workers}]",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": f"{heap >> 20}m",
        "spark.driver.maxResultSize": "0",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.log.level": "ERROR",
        "spark.local.dir": str(options.out.absolute() / "spark"),
    }
    with SparkContext(conf=SparkConf().setAll(settings.items())) as spark:
        yield spark
