"""`python -m twinlens` and the console script."""

from twinlens.rooms import check_packages


def main() -> None:
    check_packages()
    from twinlens.cli.app import run  # after the check: a stranger's package must not be imported

    run()


if __name__ == "__main__":
    main()
