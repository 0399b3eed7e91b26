"""Pretrained networks: backbones, weight files and SWAG posteriors."""
