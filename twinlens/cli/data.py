"""`twinlens data ...`: making, mending and looking at datasets."""

import typer

app = typer.Typer(help="Make, convert, mend and look at datasets.", no_args_is_help=True)
