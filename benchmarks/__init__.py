"""What pytest-cgroup costs, as ratios between runs that alternate on the same machine: ``python -m benchmarks``."""
