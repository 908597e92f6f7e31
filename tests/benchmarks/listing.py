"""Peak memory of listing a million objects over that of a tenth, and what parallel parts bring.

    python tests/benchmarks/listing.py [--small=100000] [--large=1000000] [--pairs=3]

A store on loopback, a process of its own, makes up the objects' pages as they are asked for: all
under one prefix, or in 64 folders. Each listing is a fresh process that counts what `files_under`
gives and keeps nothing. Peak memory is the resident set that the system accounts to that process
when it ends, all its modules included. For the parts, every answer waits as a distant store's does.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import bench

TARGET = 1.2
LATENCY_S = 0.05
FOLDERS = 64
SHAPES = {"one prefix": 1, f"{FOLDERS} folders": FOLDERS}
STORES = {"gs": "GCS", "s3": "S3"}
HIGHEST = "\U0010ffff"


@dataclass(frozen=True)
class Objects:
    """`count` objects below `in/`, in folders if there are several, that nobody has to keep."""

    count: int
    folders: int

    def key(self, index: int) -> str:
        if self.folders == 1:
            return f"in/picture-{index:08d}.jpg"
        return f"in/{index * self.folders // self.count:04d}/picture-{index:08d}.jpg"

    def first(self, key: str) -> int:
        """The index of the first object whose key is not before this one."""
        return bisect.bisect_left(range(self.count), key, key=self.key)

    def page(
        self, prefix: str, delimiter: str, start: int, room: int
    ) -> tuple[list[int], list[str], int | None]:
        """Objects and prefixes from an index on, and the index of what did not find room."""
        start, end = max(start, self.first(prefix)), self.first(prefix + HIGHEST)
        if not delimiter or self.folders == 1 or prefix.count("/") > 1:
            last = min(end, start + room)
            return list(range(start, last)), [], last if last < end else None
        prefixes: list[str] = []
        while start < end and len(prefixes) < room:
            prefixes.append(self.key(start).rpartition("/")[0] + "/")
            start = self.first(prefixes[-1] + HIGHEST)
        return [], prefixes, start if start < end else None


def serve() -> None:
    """Answer both stores' listings; the first line printed is the address."""
    from aiohttp import web

    def asked(query: dict[str, str]) -> Objects:
        # What is in the store is in the bucket's name, so that one server is all of them.
        count, folders = query["bucket"].split("-")[1:3]
        return Objects(int(count), int(folders))

    async def wait(bucket: str) -> None:
        await asyncio.sleep(int(bucket.split("-")[3]) / 1000)

    async def google(request: web.Request) -> web.Response:
        query = {**request.query, **request.match_info}
        objects = asked(query)
        await wait(query["bucket"])
        token = query.get("pageToken")
        start = int(token) if token else objects.first(query.get("startOffset", ""))
        indexes, prefixes, more = objects.page(
            query.get("prefix", ""), query.get("delimiter", ""), start, int(query["maxResults"])
        )
        items = ",".join(
            f'{{"name":"{objects.key(index)}","generation":"{1_700_000_000_000_000 + index}",'
            f'"size":"{100_000 + index}"}}'
            for index in indexes
        )
        token = f'"nextPageToken":"{more}",' if more is not None else ""
        text = f'{{{token}"prefixes":{json.dumps(prefixes)},"items":[{items}]}}'
        return web.Response(text=text, content_type="application/json")

    async def amazon(request: web.Request) -> web.Response:
        query = {**request.query, **request.match_info}
        objects = asked(query)
        await wait(query["bucket"])
        token = query.get("continuation-token")
        after = query.get("start-after")
        start = int(token) if token else objects.first(after + "\0") if after else 0
        indexes, prefixes, more = objects.page(
            query.get("prefix", ""), query.get("delimiter", ""), start, int(query["max-keys"])
        )
        items = "".join(
            f"<Contents><Key>{objects.key(index)}</Key>"
            "<LastModified>2026-01-02T03:04:05.000Z</LastModified>"
            f"<ETag>&quot;{index:032x}&quot;</ETag><Size>{100_000 + index}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for index in indexes
        )
        common = "".join(
            f"<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>" for prefix in prefixes
        )
        token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more is not None else ""
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<EncodingType>url</EncodingType><IsTruncated>{str(more is not None).lower()}"
            f"</IsTruncated>{token}{items}{common}</ListBucketResult>"
        )
        return web.Response(text=text, content_type="application/xml")

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/storage/v1/b/{bucket}/o", google)
        app.router.add_get("/{bucket}", amazon)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def count(store: str, address: str, bucket: str, at_once: int | None) -> None:
    """List a bucket; print how many objects there were and how many seconds it took."""
    sys.path.insert(0, str(bench.ROOT))
    import fsspec

    from transforms import browsing, buckets

    if at_once:
        buckets.AT_ONCE = at_once
    if store == "gs":
        filesystem = fsspec.filesystem("gs", endpoint_url=address, token="anon")
    else:
        filesystem = fsspec.filesystem("s3", endpoint_url=address, key="test", secret="test")
    started = time.perf_counter()
    listed = sum(1 for _ in browsing.files_under(filesystem, f"{bucket}/in"))
    print(json.dumps({"listed": listed, "seconds": time.perf_counter() - started}))


@dataclass(frozen=True)
class Listed:
    """What a listing took."""

    objects_per_s: float
    peak_mebibytes: float


def listing(
    address: str,
    store: str,
    objects: Objects,
    latency_s: float = 0,
    at_once: int | None = None,
) -> Listed:
    """List made-up objects in a process of its own."""
    bucket = f"made-{objects.count}-{objects.folders}-{latency_s * 1000:.0f}"
    command = [sys.executable, __file__, "--count", store, address, bucket, str(at_once or 0)]
    environment = {**os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    # A child's peak counts its parent's until it has started, and ours is small.
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"the listing ended with {child.returncode}")
    took = json.loads(said)
    if took["listed"] != objects.count:
        raise SystemExit(f"{took['listed']} objects were listed of {objects.count}")
    return Listed(took["listed"] / took["seconds"], usage.ru_maxrss / 1024)


@contextmanager
def made_up_store() -> Iterator[str]:
    """The store's address."""
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def measure_memory(address: str, store: str, shape: str, args: argparse.Namespace) -> None:
    sizes = {}
    for size, repeats in ((args.small, args.repeats), (args.large, 1)):
        runs = [listing(address, store, Objects(size, SHAPES[shape])) for _ in range(repeats)]
        speed = statistics.median(run.objects_per_s for run in runs)
        peak = statistics.median(run.peak_mebibytes for run in runs)
        print(
            f"  {STORES[store]}, {shape}: {size:9,d} objects: {speed:8,.0f} objects/s, "
            f"peak {peak:6.1f} MiB",
            flush=True,
        )
        sizes[size] = speed, peak
    (small_speed, small), (large_speed, large) = sizes[args.small], sizes[args.large]
    bench.result(
        f"listing, {STORES[store]}, {shape}: {large_speed:,.0f} objects/s and a peak of "
        f"{large:.0f} MiB for {args.large:,} objects, {small_speed:,.0f} and {small:.0f} MiB for "
        f"{args.small:,}: {large / small:.3f} times the memory; target at most {TARGET}"
    )


def measure_parts(address: str, store: str, args: argparse.Namespace) -> None:
    objects = Objects(args.small, FOLDERS)
    pairs = bench.interleaved(
        lambda: listing(address, store, objects, LATENCY_S),
        lambda: listing(address, store, objects, LATENCY_S, at_once=1),
        args.pairs,
    )
    speeds = [(several.objects_per_s, one.objects_per_s) for several, one in pairs]
    several, one = (statistics.median(column) for column in zip(*speeds, strict=True))
    bench.result(
        f"listing, {STORES[store]}, {FOLDERS} folders, answers after {LATENCY_S * 1000:.0f} ms: "
        f"{several:,.0f} objects/s in parallel parts, {one:,.0f} one after the other: "
        f"{bench.spread([first / second for first, second in speeds])} times as fast"
    )


def main() -> None:
    if sys.argv[1:] == ["--serve"]:
        return serve()
    if sys.argv[1:2] == ["--count"]:
        store, address, bucket, at_once = sys.argv[2:]
        return count(store, address, bucket, int(at_once) or None)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="of the small one")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--store", choices=STORES, help="only this one")
    args = parser.parse_args()
    print(bench.machine())
    with made_up_store() as address:
        for store in [args.store] if args.store else STORES:
            for shape in SHAPES:
                measure_memory(address, store, shape, args)
            measure_parts(address, store, args)
    return None


if __name__ == "__main__":
    main()
