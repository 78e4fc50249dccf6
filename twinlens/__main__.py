"""Entry point: `python -m twinlens` and the console script."""

import os

from twinlens.package_check import check_packages


def main() -> None:
    # Idle OpenMP threads sleep instead of spinning: two spinning threads make a busy two-core machine six times slower.
    # The library reads the variable when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    check_packages()
    from twinlens.cli.app import run  # only now, because it imports these packages

    run()


if __name__ == "__main__":
    main()
