"""Sampling: functions over a denoiser that know latents and sigma, and nothing of networks, faces or files."""
