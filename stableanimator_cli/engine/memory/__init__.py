"""Memory of rendering and training, predicted before anything is loaded."""
