"""The small networks that detect and measure figures, the first VAE, and their training."""
