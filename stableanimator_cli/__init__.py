"""StableAnimator on the command line: pictures into videos that keep the face."""

__version__ = "0.1.0"
