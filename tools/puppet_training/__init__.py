"""Training of the small model at 256x256 (``models/puppet``), on a CPU or one GPU, from figures drawn on the fly."""
