"""`python -m twinlens` and the console script."""

from twinlens.rooms import refuse_strangers


def main() -> None:
    refuse_strangers()
    from twinlens.cli.app import run  # after the check: a stranger's package must not be imported

    run()


if __name__ == "__main__":
    main()
