"""A Spark on this machine, as wide and as large as it is told."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

from pyspark import SparkConf, SparkContext, StorageLevel

#: Bytes of the JVM's heap where no limit is given; Spark does not start with less than the second.
HEAP, LEAST_HEAP = 4 << 30, 512 << 20


@contextmanager
def context(options, clock):
    """Yield a SparkContext whose Python workers find the functions that lie beside this file, and a function
    that ends a step and computes now what is to be timed."""
    # Under a limit Python's workers need as much as the JVM, which takes of its heap only what it uses.
    heap = max(options.memory // 2, LEAST_HEAP) if options.memory else HEAP
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

        def finish(step, rdd):
            if clock.steps:
                rdd = rdd.persist(StorageLevel.MEMORY_AND_DISK)
                rdd.count()
            clock.mark(step)
            return rdd

        clock.mark("start-up")
        yield spark, finish
    # What it takes to end counts as what it takes to start.
    clock.mark("start-up")


def first(pair):
    return pair[0]
