"""The small networks that read figures, the first VAE that draws them, and their training."""
