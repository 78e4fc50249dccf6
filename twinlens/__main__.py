"""Entry point of `python -m twinlens` and of the console script."""

from twinlens.rooms import check_packages


def main() -> None:
    check_packages()
    from twinlens.cli.app import run  # after the check: another project's package must not be imported

    run()


if __name__ == "__main__":
    main()
