"""``sa preprocess``: videos become clip folders, skeleton videos and motions; datasets are looked over."""

from stableanimator_cli.callable_package import make_callable

make_callable(__name__)
