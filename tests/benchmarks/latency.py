"""Reading from a store that answers late: ours against one object after the other, and theory.

    python tests/benchmarks/latency.py [--delay=0.05] [--items=3000] [--repeats=3]

A server on loopback, in its own process, adds the delay to every response. One after the other is
fsspec's own `cat_file` in a loop; ours is the reading stage of the job with its default
concurrency, decoding included (64 x 48 JPEGs: this is about waiting, not about decoding). Theory is
the concurrency over the delay, with no time at all for anything else.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from pathlib import Path

import bench
import fsspec

sys.path.insert(0, str(bench.ROOT / "tests"))
from faulty import faulty_server

from transforms.decoding import ImageDecoder
from transforms.listing import make_shard
from transforms.reading import ReadMedia, _ReadBatches
from transforms.records import MediaRef, Preprocess, ReadLimits

TARGET_OVER_SERIAL = 25
TARGET_OF_THEORY = 0.8
SERIAL_ITEMS = 60
STORES = ("gs", "http", "s3")
PREPROCESS = Preprocess(size=(224, 224), mean=(0, 0, 0), std=(1, 1, 1))


def serial(uris: list[str]) -> float:
    """Objects a second, one after the other."""
    filesystem = fsspec.filesystem(uris[0].partition("://")[0])
    # s3fs asks for the length first unless told not to part the object: one call each, as ours.
    once = {"max_concurrency": 1} if uris[0].startswith("s3:") else {}
    filesystem.cat_file(uris[0], **once)
    started = time.perf_counter()
    for uri in uris[:SERIAL_ITEMS]:
        filesystem.cat_file(uri, **once)
    return SERIAL_ITEMS / (time.perf_counter() - started)


def ours(uris: list[str]) -> float:
    """Objects a second, by the reading stage."""
    decoder = ImageDecoder(PREPROCESS, max_pixels=10**6)
    reader = _ReadBatches(ReadMedia(decoder, ReadLimits(), 128, len(uris)))
    shard = make_shard([MediaRef(uri, "v", 3000) for uri in uris])
    reader.setup()
    reader.start_bundle()
    started = time.perf_counter()
    batches = [value.value for value in (*reader.process(shard, 0, None), *reader.finish_bundle())]
    seconds = time.perf_counter() - started
    reader.teardown()
    read = sum(len(batch) for batch in batches)
    if read != len(uris):
        raise SystemExit(f"{len(uris) - read} of {len(uris)} objects were not read")
    return len(uris) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(bench.machine())
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
        GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",
    )
    theory = ReadLimits().concurrency / args.delay
    with bench.scratch() as folder:
        buffer = io.BytesIO()
        bench.natural_picture(0, (64, 48)).save(buffer, "JPEG")
        bucket = Path(folder) / "archive"
        bucket.mkdir()
        names = [f"{number:05d}.jpg" for number in range(args.items)]
        for name in names:
            (bucket / name).write_bytes(buffer.getvalue())
        with faulty_server(folder=folder, delay=args.delay) as server:
            os.environ["AWS_ENDPOINT_URL"] = os.environ["STORAGE_EMULATOR_HOST"] = server.url
            for scheme in STORES:
                root = f"{server.url}/archive" if scheme == "http" else f"{scheme}://archive"
                uris = [f"{root}/{name}" for name in names]
                pairs = list(
                    bench.interleaved(
                        lambda u=uris: serial(u), lambda u=uris: ours(u), args.repeats
                    )
                )
                for one, many in pairs:
                    print(f"  {scheme:4} one after the other {one:5.1f}/s, ours {many:6.1f}/s")
                over = statistics.median(many / one for one, many in pairs)
                share = statistics.median(many for _, many in pairs) / theory
                bench.result(
                    f"latency: {scheme}, {args.delay * 1000:.0f} ms an answer: {over:.1f} times "
                    f"one after the other (target {TARGET_OVER_SERIAL}), {share:.2f} of the "
                    f"{theory:.0f}/s of theory (target {TARGET_OF_THEORY})"
                )


if __name__ == "__main__":
    main()
