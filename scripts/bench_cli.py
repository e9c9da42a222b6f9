"""Run a benchmark of one component against alternatives; see for example `scripts/bench refactorize --help`."""

import argparse

import bench_dp_step
import bench_gpu
import bench_imports
import bench_memory
import bench_profile
import bench_refactorize
import bench_scale
import bench_traffic
import bench_wire


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    benches = parser.add_subparsers(required=True, metavar="BENCH")
    bench_profile.add_parser(benches)
    bench_refactorize.add_parser(benches)
    bench_dp_step.add_parser(benches)
    bench_imports.add_parser(benches)
    bench_memory.add_parser(benches)
    bench_gpu.add_parser(benches)
    bench_traffic.add_parser(benches)
    bench_scale.add_parser(benches)
    bench_wire.add_parser(benches)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
