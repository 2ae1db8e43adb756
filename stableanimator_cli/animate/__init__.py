"""``sa animate``: from an image and a motion to a video and its record."""

from stableanimator_cli.callable_package import make_callable

make_callable(__name__)
