"""``sa train``: clips and a model folder to a run folder whose checkpoints are model folders."""

from stableanimator_cli.callable_package import make_callable

make_callable(__name__)
