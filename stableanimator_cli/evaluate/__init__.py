"""``sa evaluate``: videos to scores, tables and a report."""

from stableanimator_cli.callable_package import make_callable

make_callable(__name__)
