"""Motions as numbers: the 134-point layout, skeleton drawing, files, and fitting one image size to another."""
