"""``sa train``: clips and a model folder to a run folder whose checkpoints are model folders."""
